"""Fixtures of the import tests."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """An empty folder to import from."""
    folder = tmp_path / "source"
    folder.mkdir()
    return folder


@pytest.fixture
def images_dir(tmp_path: Path) -> Path:
    """The set of a dataset to import into; it does not exist yet."""
    return tmp_path / "project" / "dataset" / "10_hero"
