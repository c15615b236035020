"""Frozen objects are not traversed by the garbage collector, and are freed when they are no longer used."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from lora_studio.ui.dataset import contents as dataset_contents
from lora_studio.ui.dataset.contents import Contents
from lora_studio.ui.gc_freeze import gc_frozen
from lora_studio.workspace.project import Home


@pytest.fixture(autouse=True)
def unfrozen() -> Iterator[None]:
    yield
    gc.unfreeze()


def test_the_collector_is_enabled_again_after_an_error() -> None:
    def fail() -> None:
        with gc_frozen():
            assert not gc.isenabled()
            raise LookupError

    with pytest.raises(LookupError):
        fail()
    assert gc.isenabled()
    assert gc.get_freeze_count()


def test_contents_of_a_large_dataset_are_freed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dataset_contents, "MAX_PARTIAL_UPDATE", 2)
    project = Home(tmp_path).create_project("a")
    for number in range(4):
        Image.new("RGB", (8, 8), (number, 0, 0)).save(project.images_dir / f"{number}.png")
    contents = Contents.load(project)
    assert gc.get_freeze_count()
    assert contents.captions.findings
    assert len(contents.by_id) == 4
    freed = [weakref.ref(contents), *map(weakref.ref, contents.items)]
    gc.disable()
    try:
        del contents
        assert [each() for each in freed] == [None] * 5
    finally:
        gc.enable()
