"""Fixtures of the caption tests."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.captions import make_caption_folder


@pytest.fixture
def caption_folder(tmp_path: Path) -> Path:
    """Four images: two with plain captions, one with a caption in Latin-1, one without."""
    return make_caption_folder(tmp_path)
