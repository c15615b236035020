"""Undo records of tagging that earlier versions kept in job folders become edits of the caption history."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import pytest

from lora_studio.dataset.captions import edits
from lora_studio.dataset.captions.convert_tagging_undo import CONVERTED_FILE, RECORDS_FILE
from lora_studio.dataset.captions.edit_history import CaptionHistory, EditState
from lora_studio.dataset.captions.edits import plan_edit
from lora_studio.workspace.project import Home, Project
from tests.support.captions import caption_contents, images_in, make_caption_folder

HOUR_NS = 3600 * 10**9


@pytest.fixture
def project(home: Home) -> Project:
    project = home.create_project("old")
    make_caption_folder(project.images_dir)
    return project


def tag_as_before(project: Project, name: str, texts: dict[str, str], *, age_ns: int = HOUR_NS) -> Path:
    """Change captions and write the job folder that earlier versions wrote."""
    job = project.path / "tags" / name
    (job / "captions").mkdir(parents=True)
    (job / "job.toml").touch()
    records, events = [], []
    for stem, text in texts.items():
        file = project.images_dir / f"{stem}.txt"
        before = None
        if file.is_file():
            data = file.read_bytes()
            before = hashlib.sha256(data).hexdigest()
            (job / "captions" / f"{before}.txt").write_bytes(data)
        after = hashlib.sha256(text.encode()).hexdigest()
        records.append("\n" + json.dumps({"file": str(file), "before": before, "after": after}))
        image = str(project.images_dir / f"{stem}.png")
        events.append(json.dumps({"event": "tagged", "path": image, "caption": text}) + "\n")
        file.write_bytes(text.encode())
    (job / RECORDS_FILE).write_text("".join(records) + '\n{"file": "torn')
    (job / "events.jsonl").write_text("".join(events))
    changed = (job / RECORDS_FILE).stat().st_mtime_ns - age_ns
    os.utime(job / RECORDS_FILE, ns=(changed, changed))
    return job


def test_an_old_tagging_is_undone_and_redone_like_an_edit(project: Project) -> None:
    before = caption_contents(project.images_dir)
    job = tag_as_before(project, "001", {"a": "red", "c": "café", "d": "new"})
    after = caption_contents(project.images_dir)
    history = CaptionHistory.of(project.dataset_dir)
    assert [edit.images for edit in history.edits()] == [3]
    assert history.state_of_job(job) is EditState.NEWEST
    assert history.undo().kept == []
    assert caption_contents(project.images_dir) == before
    history.redo()
    assert caption_contents(project.images_dir) == after


def test_converts_once_and_deletes_nothing(project: Project) -> None:
    job = tag_as_before(project, "001", {"a": "red"})
    content = (job / RECORDS_FILE).read_bytes()
    assert len(CaptionHistory.of(project.dataset_dir).edits()) == 1
    assert len(CaptionHistory.of(project.images_dir).edits()) == 1
    assert not (job / RECORDS_FILE).exists()
    assert (job / CONVERTED_FILE).read_bytes() == content
    assert len(list((job / "captions").iterdir())) == 1


def test_files_of_the_same_name_that_are_not_of_a_job_are_not_converted(project: Project) -> None:
    job = tag_as_before(project, "001", {"a": "red"})
    (job / "job.toml").unlink()
    assert CaptionHistory.of(project.dataset_dir).edits() == []
    assert (job / RECORDS_FILE).exists()


def test_old_taggings_and_edits_are_ordered_by_time(project: Project) -> None:
    before = caption_contents(project.images_dir)
    tag_as_before(project, "001", {"a": "first"}, age_ns=3 * HOUR_NS)
    tag_as_before(project, "002", {"a": "second", "b": "second"}, age_ns=2 * HOUR_NS)
    CaptionHistory(project.path).apply(plan_edit(images_in(project.images_dir), edits.add("new")))
    history = CaptionHistory.of(project.dataset_dir)
    assert [edit.images for edit in history.edits()] == [4, 2, 1]
    for _ in range(3):
        assert history.undo().kept == []
    assert caption_contents(project.images_dir) == before


def test_a_caption_that_was_edited_later_is_kept_by_undo(project: Project) -> None:
    tag_as_before(project, "001", {"a": "red", "b": "blue"})
    (project.images_dir / "a.txt").write_text("mine")
    report = CaptionHistory.of(project.dataset_dir).undo()
    assert [image.stem for image in report.changed] == ["b"]
    assert [item.image.stem for item in report.kept] == ["a"]
    assert caption_contents(project.images_dir)["a"] == b"mine"


def test_the_project_may_have_been_renamed(project: Project, home: Home) -> None:
    before = caption_contents(project.images_dir)
    tag_as_before(project, "001", {"a": "red", "d": "new"})
    moved = home.rename_project("old", "moved")
    CaptionHistory.of(moved.dataset_dir).undo()
    assert caption_contents(moved.images_dir) == before


def test_a_tagging_that_was_undone_before_is_not_an_edit(project: Project) -> None:
    data = (project.images_dir / "a.txt").read_bytes()
    job = tag_as_before(project, "001", {"a": "red"})
    (project.images_dir / "a.txt").write_bytes(data)
    assert CaptionHistory.of(project.dataset_dir).edits() == []
    assert (job / CONVERTED_FILE).exists()


def test_a_caption_that_a_killed_job_left_in_an_earlier_version_is_undone(project: Project) -> None:
    before = caption_contents(project.images_dir)
    job = tag_as_before(project, "001", {"a": "first"})
    first = (job / RECORDS_FILE).read_text()
    sha256 = hashlib.sha256(b"second").hexdigest()
    line = {"file": str(project.images_dir / "a.txt"), "before": hashlib.sha256(b"first").hexdigest(), "after": sha256}
    (job / RECORDS_FILE).write_text(f"{first}\n{json.dumps(line)}")
    (job / "events.jsonl").write_text(json.dumps({"event": "tagged", "caption": "second"}) + "\n")
    assert CaptionHistory.of(project.dataset_dir).undo().kept == []
    assert caption_contents(project.images_dir) == before
