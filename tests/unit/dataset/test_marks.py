"""marks.json: the user's marks are never lost, and a damaged file is set aside."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from lora_studio.dataset.marks import LEGACY_FILE, MARKS_FILE, Marks, damaged_marks, load_marks, save_marks

MARKS = Marks(kept=frozenset({"k"}), reviewed=frozenset({"r", "s"}))


def test_marks_are_read_back_as_they_were_written(tmp_path: Path) -> None:
    assert load_marks(tmp_path) == Marks()
    save_marks(tmp_path, MARKS)
    assert load_marks(tmp_path) == MARKS
    assert [path.name for path in tmp_path.iterdir()] == [MARKS_FILE]


def test_an_image_is_marked_and_unmarked() -> None:
    marked = MARKS.with_kept(["a"]).with_reviewed([("b", "a caption")])
    assert (marked.kept, marked.reviewed) == ({"a", "k"}, {"b", "r", "s"})
    assert marked.with_kept(["a"], kept=False).without_reviewed(["b"]) == MARKS


def test_a_review_holds_for_the_captions_that_were_read(tmp_path: Path) -> None:
    save_marks(tmp_path, MARKS.with_reviewed([("a", "ink, key"), ("a", "key"), ("b", None)]))
    marks = load_marks(tmp_path)
    for image, caption, reviewed in [
        ("a", "ink,  key\n", True),
        ("a", "key", True),
        ("a", "ink", False),
        ("b", "", True),
        ("b", "ink", False),
        ("c", "", False),
    ]:
        assert marks.is_reviewed(image, caption) == reviewed
    assert marks.is_reviewed("r", "anything"), "a mark of an earlier version"
    assert not marks.without_reviewed(["a"]).is_reviewed("a", "key")


def test_the_marks_of_an_earlier_version_are_carried_over_once(tmp_path: Path) -> None:
    (tmp_path / LEGACY_FILE).write_text('{"report": null, "stamps": {}, "kept": ["k"], "reviewed": ["s", "r"]}')
    assert load_marks(tmp_path) == MARKS
    save_marks(tmp_path, Marks())
    assert load_marks(tmp_path) == Marks()


def test_marks_that_are_truncated_anywhere_are_set_aside_and_never_overwritten(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    save_marks(tmp_path, MARKS)
    whole = (tmp_path / MARKS_FILE).read_bytes()
    for length in range(len(whole.rstrip())):
        folder = tmp_path / str(length)
        folder.mkdir()
        (folder / MARKS_FILE).write_bytes(whole[:length])
        caplog.clear()
        assert load_marks(folder) == Marks()
        assert (folder / MARKS_FILE).read_bytes() == whole[:length], "reading changes nothing"
        assert [record.levelno for record in caplog.records] == [logging.WARNING]
        assert damaged_marks(folder) == [folder / MARKS_FILE]
        save_marks(folder, Marks(kept=frozenset({"new"})))
        assert load_marks(folder) == Marks(kept=frozenset({"new"}))
        assert (folder / "marks.damaged.json").read_bytes() == whole[:length]
        assert "marks.damaged.json" in caplog.text
        assert damaged_marks(folder) == [folder / "marks.damaged.json"]


def test_each_damaged_file_gets_a_name_of_its_own(tmp_path: Path) -> None:
    for number in range(3):
        (tmp_path / MARKS_FILE).write_text(f"damaged {number}")
        save_marks(tmp_path, MARKS)
    assert {path.name: path.read_text() for path in tmp_path.glob("marks.damaged*")} == {
        "marks.damaged.json": "damaged 0",
        "marks.damaged-2.json": "damaged 1",
        "marks.damaged-3.json": "damaged 2",
    }


def test_whole_marks_are_not_set_aside(tmp_path: Path) -> None:
    save_marks(tmp_path, MARKS)
    save_marks(tmp_path, Marks())
    assert [path.name for path in tmp_path.iterdir()] == [MARKS_FILE]
    assert damaged_marks(tmp_path) == []
