"""The caption edit history: undo, redo, interruptions, and edits that a job records batch by batch."""

from __future__ import annotations

from pathlib import Path

import pytest

from lora_studio import files
from lora_studio.dataset.captions import edit_history, edits
from lora_studio.dataset.captions.edit_history import MAX_EDITS, CaptionHistory, EditState
from lora_studio.dataset.captions.edits import plan_edit
from lora_studio.dataset.captions.text import read_caption, split_tags
from lora_studio.errors import DiskFullError, InputError
from lora_studio.workspace.project import Home
from tests.support.captions import apply_edit, caption_contents, images_in, tag_in_batches


def test_undo_restores_every_byte_and_redo_writes_it_again(caption_folder: Path) -> None:
    before = caption_contents(caption_folder)
    report = apply_edit(caption_folder, edits.add("new"))
    assert [image.stem for image in report.changed] == ["a", "b", "c", "d"]
    after = caption_contents(caption_folder)
    assert after["c"].decode() == "ohwx, café, new"
    assert after["d"] == b"new"
    assert len(CaptionHistory.of(caption_folder).undo().changed) == 4
    assert caption_contents(caption_folder) == before
    assert len(CaptionHistory.of(caption_folder).redo().changed) == 4
    assert caption_contents(caption_folder) == after
    with pytest.raises(InputError) as caught:
        CaptionHistory.of(caption_folder).redo()
    assert caught.value.code == "no_edit"


def test_undo_without_an_edit_fails_and_creates_no_files(caption_folder: Path) -> None:
    existing = sorted(caption_folder.iterdir())
    with pytest.raises(InputError) as caught:
        CaptionHistory.of(caption_folder).undo()
    assert caught.value.code == "no_edit"
    assert sorted(caption_folder.iterdir()) == existing


def test_undo_keeps_captions_that_changed_since(caption_folder: Path) -> None:
    apply_edit(caption_folder, edits.add("new"))
    (caption_folder / "a.txt").write_text("mine")
    (caption_folder / "b.png").unlink()
    report = CaptionHistory.of(caption_folder).undo()
    assert sorted(item.image.stem for item in report.kept) == ["a", "b"]
    assert len({item.reason for item in report.kept}) == 2
    assert caption_contents(caption_folder) == {
        "a": b"mine",
        "b": b"ohwx, smiley, new",
        "c": "ohwx, café".encode("latin-1"),
    }


def test_applying_a_plan_keeps_captions_that_changed_since_the_plan(caption_folder: Path) -> None:
    plan = plan_edit(images_in(caption_folder), edits.add("new"))
    (caption_folder / "a.txt").write_text("mine")
    report = CaptionHistory.of(caption_folder).apply(plan)
    assert [item.image.stem for item in report.kept] == ["a"]
    assert caption_contents(caption_folder)["a"] == b"mine"
    assert caption_contents(caption_folder)["b"] == b"ohwx, smiley, new"


def interrupt_after(number: int, patched: pytest.MonkeyPatch) -> None:
    """Raise KeyboardInterrupt once this number of captions is in place."""
    put, done = files.rename_into_place, []

    def interrupted(path: Path, temporary: Path, mode: int) -> None:
        if len(done) == number:
            raise KeyboardInterrupt
        done.append(path)
        put(path, temporary, mode)

    patched.setattr(files, "WRITE_THREADS", 1)
    patched.setattr(files, "rename_into_place", interrupted)


@pytest.mark.parametrize("written", range(4))
def test_an_interrupted_edit_can_be_undone(caption_folder: Path, monkeypatch: pytest.MonkeyPatch, written: int) -> None:
    before = caption_contents(caption_folder)
    with monkeypatch.context() as patched:
        interrupt_after(written, patched)
        with pytest.raises(KeyboardInterrupt):
            apply_edit(caption_folder, edits.add("new"))
    report = CaptionHistory.of(caption_folder).undo()
    assert len(report.changed) == written
    assert caption_contents(caption_folder) == before


def test_an_interrupted_redo_can_be_undone(caption_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = caption_contents(caption_folder)
    apply_edit(caption_folder, edits.add("new"))
    after = caption_contents(caption_folder)
    CaptionHistory.of(caption_folder).undo()
    with monkeypatch.context() as patched:
        interrupt_after(2, patched)
        with pytest.raises(KeyboardInterrupt):
            CaptionHistory.of(caption_folder).redo()
    assert caption_contents(caption_folder) not in (before, after)
    assert len(CaptionHistory.of(caption_folder).undo().changed) == 2
    assert caption_contents(caption_folder) == before


def test_only_the_most_recent_edits_are_stored(caption_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert MAX_EDITS == 50
    monkeypatch.setattr(edit_history, "MAX_EDITS", 4)
    for number in range(7):
        apply_edit(caption_folder, edits.add(f"tag {number}"))
    past = CaptionHistory.of(caption_folder).edits()
    assert [edit.what for edit in past] == [f"Added tag {number}" for number in (6, 5, 4, 3)]
    for _ in range(2):
        CaptionHistory.of(caption_folder).undo()
    assert [edit.undone for edit in CaptionHistory.of(caption_folder).edits()] == [True, True, False, False]
    assert split_tags(read_caption(caption_folder / "d.png") or "")[-1] == "tag 4"
    apply_edit(caption_folder, edits.add("other"))
    assert not any(edit.undone for edit in CaptionHistory.of(caption_folder).edits())


def test_the_edits_of_a_project_move_with_it(home: Home) -> None:
    project = home.create_project("a")
    image = project.images_dir / "one.png"
    image.write_bytes(b"")
    image.with_suffix(".txt").write_text("smile")
    apply_edit(project.images_dir, edits.remove(["smile"]))
    assert [path.name for path in project.images_dir.iterdir() if path.suffix == ".txt"] == ["one.txt"]
    assert (project.path / "caption_edits").is_dir()
    moved = home.rename_project("a", "b")
    CaptionHistory.of(moved.dataset_dir).undo()
    assert read_caption(moved.images_dir / "one.png") == "smile"


def test_the_batches_of_a_job_are_one_edit(caption_folder: Path) -> None:
    before = caption_contents(caption_folder)
    tag_in_batches(caption_folder, "a", "b")
    tag_in_batches(caption_folder, "c", "d", resume=True)
    after = caption_contents(caption_folder)
    history = CaptionHistory.of(caption_folder)
    assert [(edit.what, edit.images) for edit in history.edits()] == [("Tagged", 4)]
    assert len(history.undo().changed) == 4
    assert caption_contents(caption_folder) == before
    assert len(history.redo().changed) == 4
    assert caption_contents(caption_folder) == after


def test_another_run_of_a_job_folder_is_another_edit(caption_folder: Path) -> None:
    tag_in_batches(caption_folder, "a")
    tag_in_batches(caption_folder, "b")
    assert [edit.images for edit in CaptionHistory.of(caption_folder).edits()] == [1, 1]


def test_a_batch_that_cannot_be_recorded_changes_no_caption(
    caption_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def disk_full(file: Path, lines: object) -> None:
        raise DiskFullError("No room left.", "Free some.", code="disk_full")

    tag_in_batches(caption_folder, "a")
    after = caption_contents(caption_folder)
    monkeypatch.setattr(edit_history, "append_lines", disk_full)
    with pytest.raises(DiskFullError):
        tag_in_batches(caption_folder, "b", resume=True)
    assert caption_contents(caption_folder) == after


def test_tells_whether_the_edit_of_a_job_is_the_one_to_undo(caption_folder: Path) -> None:
    history, job = CaptionHistory.of(caption_folder), caption_folder / "job"
    assert history.state_of_job(job) is EditState.NONE
    tag_in_batches(caption_folder, "a")
    assert history.state_of_job(job) is EditState.NEWEST
    apply_edit(caption_folder, edits.add("new"))
    assert history.state_of_job(job) is EditState.APPLIED
    history.undo()
    history.undo()
    assert history.state_of_job(job) is EditState.UNDONE
