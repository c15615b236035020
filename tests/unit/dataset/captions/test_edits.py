"""Edits of captions: what each does to a text, and the plan for a folder."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lora_studio.dataset.captions import edits
from lora_studio.dataset.captions.edit_history import CaptionHistory
from lora_studio.dataset.captions.edits import plan_edit
from lora_studio.dataset.captions.text import join_tags, read_caption, split_tags, with_replaced, with_tags
from lora_studio.errors import InputError
from lora_studio.settings.choices import TagPosition
from tests.support.captions import caption_contents, images_in

tags = st.sampled_from(
    ["1girl", "long hair", "Long Hair", "smile", "ohwx", "ohwx girl", "a sentence that is long", ":d"]
)
captions = st.lists(tags, max_size=6).map(", ".join)


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
def test_adds_tags_at_the_position(caption: str, position: TagPosition, expected: str) -> None:
    assert with_tags(caption, "new", position, "ohwx") == expected


@given(captions, tags, tags)
def test_replace_changes_only_the_tag(caption: str, old: str, new: str) -> None:
    changed = with_replaced(caption, old, new)
    before, after = ({tag.casefold() for tag in split_tags(text)} for text in (caption, changed))
    if old.casefold() not in before:
        assert changed == caption
    else:
        assert after == before - {old.casefold()} | {new.casefold()}


@given(captions, tags, st.sampled_from(TagPosition))
def test_remove_reverts_add(caption: str, tag: str, position: TagPosition) -> None:
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
def test_applying_a_plan_writes_what_the_plan_shows(caption_folder: Path, edit: edits.Edit, a: str, b: str) -> None:
    plan = plan_edit(images_in(caption_folder), edit)
    before = caption_contents(caption_folder)
    assert len(plan.changes) + plan.unchanged == 4
    CaptionHistory.of(caption_folder).apply(plan)
    assert [read_caption(caption_folder / f"{name}.png") for name in "ab"] == [a, b]
    for change in plan.changes:
        assert read_caption(change.image) == change.after
    CaptionHistory.of(caption_folder).undo()
    assert caption_contents(caption_folder) == before


@pytest.mark.parametrize(("pattern", "replacement"), [("(", ""), ("a", r"\3"), ("", "x")])
def test_refuses_an_invalid_pattern(pattern: str, replacement: str) -> None:
    with pytest.raises(InputError) as caught:
        edits.substitute(pattern, replacement).change("a cat")
    assert caught.value.code == "regex"


def test_stops_a_pattern_that_takes_too_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(edits, "REGEX_SECONDS", 0.02)
    edit = edits.substitute("(a|aa)+$", "")
    with pytest.raises(InputError) as caught:
        edit.change("a" * 60 + "b")
    assert caught.value.code == "regex"


def test_each_line_of_a_caption_with_several_is_edited(tmp_path: Path) -> None:
    """The lines are captions of their own with the setting enable_wildcard."""
    image = tmp_path / "a.png"
    image.touch()
    image.with_suffix(".txt").write_text("red,  cat\n\na sentence\nnew, dog")
    history = CaptionHistory.of(tmp_path)
    history.apply(plan_edit([image], edits.add("new")))
    assert image.with_suffix(".txt").read_text() == "red, cat, new\na sentence, new\nnew, dog"
    assert plan_edit([image], edits.remove(["not there"])).changes == []
    history.apply(plan_edit([image], edits.set_text("one", "Edited")))
    assert read_caption(image) == "one"
    history.undo()
    assert image.with_suffix(".txt").read_text() == "red, cat, new\na sentence, new\nnew, dog"
