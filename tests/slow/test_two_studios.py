"""Two studios on one workspace: both work at once on a project, and nothing of either is lost."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lora_studio.dataset.captions.edit_history import CaptionHistory
from lora_studio.dataset.captions.edits import add, plan_edit
from lora_studio.dataset.captions.text import read_caption
from lora_studio.dataset.curate import Proposal, reject, rejected_images, restore_images
from lora_studio.dataset.images.decode import find_images
from lora_studio.dataset.ingest.importers import import_paths
from lora_studio.dataset.marks import change_marks, load_marks
from lora_studio.workspace.cell_stars import starred_cells, toggle_star
from lora_studio.workspace.project import Home, Project
from lora_studio.workspace.run_notes import RunNotes, change_notes, read_notes
from tests.support.import_sources import draw, pack
from tests.support.jobs import make_project, make_run

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")]

IMAGES = 24


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return make_project(Home(tmp_path / "home"), images=IMAGES)


def at_once(*works: Callable[[], object]) -> None:
    """Run each function in a process of its own, all at once; fail if one raises."""
    ready, go = os.pipe()
    children = []
    for work in works:
        child = os.fork()
        if child == 0:
            status = 1
            try:
                os.read(ready, 1)
                work()
                status = 0
            except BaseException as error:
                print(f"{error!r}", file=sys.stderr)
            os._exit(status)
        children.append(child)
    os.write(go, b"x" * len(works))
    statuses = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    assert statuses == [0] * len(works)
    os.close(ready)
    os.close(go)


def test_importing_one_zip_twice_gives_each_image_once(project: Project, tmp_path: Path) -> None:
    entries = {f"new {number}.png": draw(tmp_path / "x.png", number).read_bytes() for number in range(IMAGES)}
    archive = pack(tmp_path / "a.zip", entries)
    works = [lambda: import_paths([archive], project.images_dir)] * 2
    at_once(*works)
    assert len(find_images(project.dataset_dir)) == 2 * IMAGES
    assert not list(project.path.rglob(".import*"))


def test_images_that_both_set_aside_can_all_be_restored(project: Project) -> None:
    images = find_images(project.dataset_dir)
    halves = [images[: IMAGES // 2], images[IMAGES // 3 :]]  # they overlap

    def set_aside(chosen: list[Path]) -> None:
        for image in chosen:
            reject([Proposal(path=image, reason="blurred")], project.rejected_dir)

    at_once(*(lambda chosen=chosen: set_aside(chosen) for chosen in halves))
    assert find_images(project.dataset_dir) == []
    assert {entry.image for entry in rejected_images(project.rejected_dir)} == set(images)
    assert sorted(restore_images(project.rejected_dir)[0]) == images
    assert all(read_caption(image) for image in images)


def test_marks_stars_notes_and_settings_of_both_are_kept(project: Project) -> None:
    run = make_run(project)
    hashes = [f"{number:064x}" for number in range(2 * IMAGES)]

    def work(mine: list[str], **changes: Any) -> None:
        for image in mine:
            change_marks(project.path, lambda marks, image=image: marks.with_kept([image]))
            toggle_star(run.path, f"{image}.png")
        for name, value in changes.items():
            project.change_info(**{name: value})

    first = {"trigger_word": "inkstamp_hc", "base": "embedded", "vram_gib": 8.0}
    second = {"notes": "two", "kind": "style", "parent": "001"}
    at_once(lambda: work(hashes[::2], **first), lambda: work(hashes[1::2], **second))
    assert load_marks(project.path).kept == set(hashes)
    assert sorted(starred_cells(run.path)) == [f"{image}.png" for image in hashes]
    assert project.info().model_dump().items() >= (first | second).items()
    at_once(lambda: change_notes(run.path, stars=3), lambda: change_notes(run.path, notes="good"))
    assert read_notes(run.path) == RunNotes(stars=3, notes="good")
    assert not list(project.path.rglob("*.lock"))


def test_caption_edits_of_both_are_kept_and_can_be_undone(project: Project) -> None:
    images = find_images(project.dataset_dir)
    before = [read_caption(image) for image in images]

    def edit(tag: str, chosen: list[Path]) -> None:
        for image in chosen:
            CaptionHistory.of(project.dataset_dir).apply(plan_edit([image], add(tag)))

    at_once(lambda: edit("first", images[::2]), lambda: edit("second", images[1::2]))
    after = [str(read_caption(image)) for image in images]
    assert all(("first", "second")[number % 2] in text for number, text in enumerate(after))
    history = CaptionHistory.of(project.dataset_dir)
    while history.can_undo:
        history.undo()
    assert [read_caption(image) for image in images] == before
