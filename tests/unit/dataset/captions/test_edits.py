"""Edits of captions: what they do to a text, what they would do to a folder, and the way back."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lora_studio import files
from lora_studio.dataset.captions import edit_history as history
from lora_studio.dataset.captions import edits
from lora_studio.dataset.captions.edit_history import MAX_EDITS, CaptionHistory
from lora_studio.dataset.captions.edits import plan_edit
from lora_studio.dataset.captions.text import join_tags, read_caption, split_tags, with_replaced, with_tags
from lora_studio.errors import InputError
from lora_studio.settings.choices import TagPosition
from lora_studio.workspace.project import Home

tags = st.sampled_from(
    ["1girl", "long hair", "Long Hair", "smile", "ohwx", "ohwx girl", "a sentence that is long", ":d"]
)
captions = st.lists(tags, max_size=6).map(", ".join)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Four images: two plain captions, one in Latin-1, one without."""
    for name, data in (("a", b"ohwx, smile, day"), ("b", b"ohwx, smiley"), ("c", "ohwx, café".encode("latin-1"))):
        (tmp_path / f"{name}.txt").write_bytes(data)
    for name in "abcd":
        (tmp_path / f"{name}.png").write_bytes(name.encode())
    return tmp_path


def images(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.png"))


def texts(folder: Path) -> dict[str, bytes]:
    return {file.stem: file.read_bytes() for file in sorted(folder.glob("*.txt"))}


def apply(folder: Path, edit: edits.Edit) -> history.EditReport:
    return CaptionHistory.of(folder).apply(plan_edit(images(folder), edit))


@pytest.mark.parametrize(
    ("caption", "position", "expected"),
    [
        ("ohwx, smile", TagPosition.FRONT, "new, ohwx, smile"),
        ("ohwx, smile", TagPosition.AFTER_TRIGGER, "ohwx, new, smile"),
        ("ohwx, smile", TagPosition.BACK, "ohwx, smile, new"),
        ("smile, day", TagPosition.AFTER_TRIGGER, "new, smile, day"),
        ("photo of ohwx, day", TagPosition.AFTER_TRIGGER, "photo of ohwx, new, day"),
        ("NEW, smile", TagPosition.FRONT, "NEW, smile"),
        ("", TagPosition.BACK, "new"),
    ],
)
def test_tags_are_added_where_they_are_wanted(caption: str, position: TagPosition, expected: str) -> None:
    assert with_tags(caption, "new", position, "ohwx") == expected


@given(captions, tags, tags)
def test_a_replaced_tag_is_gone_and_nothing_else_is(caption: str, old: str, new: str) -> None:
    changed = with_replaced(caption, old, new)
    before, after = ({tag.casefold() for tag in split_tags(text)} for text in (caption, changed))
    if old.casefold() not in before:
        assert changed == caption
    else:
        assert after == before - {old.casefold()} | {new.casefold()}


@given(captions, tags, st.sampled_from(TagPosition))
def test_added_and_removed_is_as_before(caption: str, tag: str, position: TagPosition) -> None:
    added = edits.add(tag, position, "ohwx").change(caption)
    assert edits.add(tag, position, "ohwx").change(added) == added
    if tag.casefold() not in {other.casefold() for other in split_tags(caption)}:
        assert edits.remove([tag]).change(added) == join_tags(split_tags(caption))


@pytest.mark.parametrize(
    ("edit", "a", "b"),
    [
        (edits.remove(["SMILE"]), "ohwx, day", "ohwx, smiley"),
        (edits.replace("smile", "grin, teeth"), "ohwx, grin, teeth, day", "ohwx, smiley"),
        (edits.substitute(r"(\w+), (smil\w+)", r"\2, \1"), "smile, ohwx, day", "smiley, ohwx"),
        (edits.substitute(r"smile,? ?", ""), "ohwx, day", "ohwx, y"),
    ],
)
def test_a_plan_says_what_will_be_and_it_is(folder: Path, edit: edits.Edit, a: str, b: str) -> None:
    plan = plan_edit(images(folder), edit)
    before = texts(folder)
    assert len(plan.changes) + plan.unchanged == 4
    CaptionHistory.of(folder).apply(plan)
    assert [read_caption(folder / f"{name}.png") for name in "ab"] == [a, b]
    for change in plan.changes:
        assert read_caption(change.image) == change.after
    CaptionHistory.of(folder).undo()
    assert texts(folder) == before


def test_every_byte_comes_back_and_can_be_done_again(folder: Path) -> None:
    before = texts(folder)
    report = apply(folder, edits.add("new"))
    assert [image.stem for image in report.changed] == ["a", "b", "c", "d"]
    after = texts(folder)
    assert after["c"].decode() == "ohwx, café, new"
    assert after["d"] == b"new"
    assert CaptionHistory.of(folder).undo().what == "Undone: Added new"
    assert texts(folder) == before
    assert CaptionHistory.of(folder).redo().what == "Done again: Added new"
    assert texts(folder) == after
    with pytest.raises(InputError, match="no edit to do again"):
        CaptionHistory.of(folder).redo()


def test_where_nothing_was_edited_there_is_nothing_to_undo_and_nothing_is_made(folder: Path) -> None:
    there = sorted(folder.iterdir())
    with pytest.raises(InputError, match="no edit to undo"):
        CaptionHistory.of(folder).undo()
    assert sorted(folder.iterdir()) == there


def test_what_somebody_changed_since_is_kept_and_said(folder: Path) -> None:
    apply(folder, edits.add("new"))
    (folder / "a.txt").write_text("mine")
    (folder / "b.png").unlink()
    report = CaptionHistory.of(folder).undo()
    assert {item.image.stem: item.reason for item in report.kept} == {
        "a": "it was changed since by somebody else",
        "b": "the image is no longer there",
    }
    assert texts(folder) == {"a": b"mine", "b": b"ohwx, smiley, new", "c": "ohwx, café".encode("latin-1")}


def test_a_plan_does_not_overwrite_what_it_has_not_seen(folder: Path) -> None:
    plan = plan_edit(images(folder), edits.add("new"))
    (folder / "a.txt").write_text("mine")
    report = CaptionHistory.of(folder).apply(plan)
    assert [item.image.stem for item in report.kept] == ["a"]
    assert texts(folder)["a"] == b"mine"
    assert texts(folder)["b"] == b"ohwx, smiley, new"


def die_after(number: int, patched: pytest.MonkeyPatch) -> None:
    """Captions are put in place until there are so many of them."""
    put, done = files.rename_into_place, []

    def dies(path: Path, temporary: Path, mode: int) -> None:
        if len(done) == number:
            raise KeyboardInterrupt
        done.append(path)
        put(path, temporary, mode)

    patched.setattr(files, "WRITE_THREADS", 1)
    patched.setattr(files, "rename_into_place", dies)


@pytest.mark.parametrize("written", range(4))
def test_an_edit_that_was_killed_between_two_captions_can_be_undone(
    folder: Path, monkeypatch: pytest.MonkeyPatch, written: int
) -> None:
    before = texts(folder)
    with monkeypatch.context() as patched:
        die_after(written, patched)
        with pytest.raises(KeyboardInterrupt):
            apply(folder, edits.add("new"))
    report = CaptionHistory.of(folder).undo()
    assert len(report.changed) == written
    assert texts(folder) == before


def test_an_edit_that_was_killed_while_it_was_done_again_can_be_undone(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = texts(folder)
    apply(folder, edits.add("new"))
    after = texts(folder)
    CaptionHistory.of(folder).undo()
    with monkeypatch.context() as patched:
        die_after(2, patched)
        with pytest.raises(KeyboardInterrupt):
            CaptionHistory.of(folder).redo()
    assert texts(folder) not in (before, after)
    assert len(CaptionHistory.of(folder).undo().changed) == 2
    assert texts(folder) == before


def test_the_latest_edits_are_kept_and_undone_in_turn(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert MAX_EDITS == 50
    monkeypatch.setattr(history, "MAX_EDITS", 4)
    for number in range(7):
        apply(folder, edits.add(f"tag {number}"))
    past = CaptionHistory.of(folder).edits()
    assert [edit.what for edit in past] == [f"Added tag {number}" for number in (6, 5, 4, 3)]
    for _ in range(2):
        CaptionHistory.of(folder).undo()
    assert [edit.undone for edit in CaptionHistory.of(folder).edits()] == [True, True, False, False]
    assert split_tags(read_caption(folder / "d.png") or "")[-1] == "tag 4"
    apply(folder, edits.add("other"))
    assert not any(edit.undone for edit in CaptionHistory.of(folder).edits())


def test_a_project_keeps_its_edits_beside_the_dataset_and_moves_with_them(home: Home) -> None:
    project = home.create_project("a")
    image = project.images_dir / "one.png"
    image.write_bytes(b"")
    image.with_suffix(".txt").write_text("smile")
    apply(project.images_dir, edits.remove(["smile"]))
    assert [path.name for path in project.images_dir.iterdir() if path.suffix == ".txt"] == ["one.txt"]
    assert (project.path / "caption_edits").is_dir()
    moved = home.rename_project("a", "b")
    CaptionHistory.of(moved.dataset_dir).undo()
    assert read_caption(moved.images_dir / "one.png") == "smile"


def test_a_record_that_names_another_place_is_refused(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    apply(folder, edits.add("new"))
    [record] = (folder / "caption_edits").glob("*.jsonl")
    record.write_text(record.read_text().replace('"a.png"', '"../a.png"'))
    with pytest.raises(InputError, match="lies elsewhere"):
        CaptionHistory.of(folder).undo()


@pytest.mark.parametrize(
    ("pattern", "replacement", "told"),
    [("(", "", "no regular expression"), ("a", r"\3", "cannot be used"), ("", "x", "No regular expression")],
)
def test_a_bad_pattern_is_refused(pattern: str, replacement: str, told: str) -> None:
    with pytest.raises(InputError, match=told):
        edits.substitute(pattern, replacement).change("a cat")


def test_a_pattern_that_takes_for_ever_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(edits, "REGEX_SECONDS", 0.02)
    edit = edits.substitute("(a|aa)+$", "")
    with pytest.raises(InputError, match="takes too long"):
        edit.change("a" * 60 + "b")
