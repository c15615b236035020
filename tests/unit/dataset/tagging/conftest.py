"""A folder to tag."""

from __future__ import annotations

from pathlib import Path

import pytest

from lora_studio.workspace.project import Home
from tests.support.tagging_jobs import TaggingJob


@pytest.fixture
def studio(tmp_path: Path, home: Home, monkeypatch: pytest.MonkeyPatch) -> TaggingJob:
    """An empty folder of images, and its tagging job."""
    return TaggingJob(tmp_path, home, monkeypatch)
