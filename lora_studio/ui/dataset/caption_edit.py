"""Edits of a single caption in Review: the text box, the chips, and which image comes next."""

from __future__ import annotations

from dataclasses import replace
from enum import StrEnum

from lora_studio.dataset.captions.edit_history import CaptionHistory
from lora_studio.dataset.captions.edits import Edit, plan_edit, set_text
from lora_studio.dataset.captions.text import join_tags, split_tags, with_tags, without_tags
from lora_studio.dataset.marks import change_marks
from lora_studio.errors import InputError
from lora_studio.settings.choices import TagPosition
from lora_studio.ui.dataset.contents import Contents
from lora_studio.ui.dataset.image_item import ImageItem
from lora_studio.ui.dataset.state import DatasetState, Draft, one_line, original_of


class ChipPick(StrEnum):
    """Verbs of a chip's buttons. The subject after the colon is a tag; for MOVE, its new index precedes it."""

    DROP = "drop"
    ADD = "add"
    MOVE = "move"


class CaptionChanged(InputError):
    """A caption that is being edited in the text box became `on_disk` on disk; `identity` is its image's id."""

    def __init__(self, item: ImageItem) -> None:
        self.identity = item.id
        self.on_disk = one_line(item.caption)
        super().__init__(
            f"The caption of {item.name} was changed by another program or page to {self.on_disk!r}.",
            "Your text is still in the box: Save overwrites the other one.",
            code="caption_changed",
        )


def save_draft(state: DatasetState) -> DatasetState:
    """Save the caption in the text box if it was edited and its image still exists.

    Every handler that leaves the image calls this first. Raises CaptionChanged if the caption on disk changed since the
    edit began.
    """
    draft, item = state.place.draft, state.current
    if item is None or not draft.is_edited:
        return state
    text, on_disk = one_line(draft.text), one_line(item.caption)
    if on_disk not in (draft.caption_before, text):
        raise CaptionChanged(item)
    change_caption(state.contents, item, set_text(text, f"Edited {item.name}"))
    saved = Draft(item.id, draft.text, original_of(item.id, text))
    return replace(state.with_draft(saved).after_change([item.path]), saved="Saved.")


def accept_other_caption(changed: CaptionChanged) -> str:
    """Return the caption before the edit with which the next save overwrites the one on disk."""
    return original_of(changed.identity, changed.on_disk)


def change_caption(contents: Contents, item: ImageItem, edit: Edit) -> bool:
    """Apply an edit to one caption as an entry of the undo history; return whether the caption changed.

    A reviewed image stays reviewed: its new caption is the user's own.
    """
    plan = plan_edit([item.path], edit)
    changed = bool(plan.changes) and bool(CaptionHistory.of(contents.project.dataset_dir).apply(plan).changed)
    if changed and item.reviewed and item.info:
        seen = [(item.info.sha256, caption) for caption in (item.caption, plan.changes[0].after)]
        change_marks(contents.project.path, lambda marks: marks.with_reviewed(seen))
    return changed


def chip_edit(asked: str, trigger: str) -> Edit:
    """Return the edit that a chip's button asks for, see `ChipPick`; raise InputError for unknown requests."""
    verb, _, subject = asked.partition(":")
    index, _, moved = subject.partition(":")
    match verb:
        case ChipPick.DROP if subject:
            return Edit(f"Removed {subject}", lambda caption: without_tags(caption, [subject]))
        case ChipPick.ADD if split_tags(subject):
            tags = join_tags(split_tags(subject))
            return Edit(f"Added {tags}", lambda caption: with_tags(caption, tags, TagPosition.BACK, trigger))
        case ChipPick.MOVE if index.isdecimal() and len(index) < 6 and moved:
            return Edit(f"Moved {moved}", lambda caption: move_tag(caption, moved, int(index)))
    raise InputError("Unknown button.", "Reload the page.", code="pick")


def move_tag(caption: str, tag: str, index: int) -> str:
    """Return a caption with a tag moved to another index; unchanged if it does not have the tag."""
    tags = split_tags(caption)
    if tag not in tags:
        return caption
    tags.remove(tag)
    tags.insert(index, tag)
    return join_tags(tags)
