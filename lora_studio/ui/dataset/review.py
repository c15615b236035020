"""The Review section: one image with its caption as chips and as text, and the mark that it was reviewed.

The browser keeps three values of an edited caption: its text, the id of its image, and the text before the edit. So a
late save reaches the image that it was typed for, and does not overwrite a caption that changed on disk meanwhile.
Chips edit the caption on disk.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Any

import gradio as gr
from markupsafe import Markup

from lora_studio.dataset.captions.edit_history import CaptionHistory
from lora_studio.dataset.captions.edits import Edit, plan_edit, set_text
from lora_studio.dataset.captions.text import join_tags, split_tags, with_tags, without_tags
from lora_studio.dataset.captions.token_count import MAX_TOKENS, count_tokens
from lora_studio.errors import InputError
from lora_studio.settings.choices import TagPosition
from lora_studio.ui.dataset.chips import add_field, tag_chips
from lora_studio.ui.dataset.contents import Contents
from lora_studio.ui.dataset.image_item import ImageItem, Selection, has_trigger
from lora_studio.ui.dataset.layout import Data
from lora_studio.ui.dataset.suggestions import TagSuggester
from lora_studio.ui.widgets.events import Updates
from lora_studio.ui.widgets.html import Tone, cards, empty_card, html, note, render
from lora_studio.ui.widgets.thumbnails import thumbnail_url
from lora_studio.workspace.project import Home

LARGE_PX = 768
KEYS = (
    ("← → or K J", "previous, next"),
    ("Enter or Space", "mark as reviewed, next"),
    ("R", "mark or unmark"),
    ("A", "add a tag"),
    ("Delete", "set aside"),
    ("Ctrl Z", "undo"),
)


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


class ReviewPanel:
    """Components of the section."""

    def __init__(self, home: Home) -> None:
        self.home = home
        self.suggester = TagSuggester(home)
        with gr.Column(visible=False) as self.column:
            self.progress = html(elem_id="review-progress")
            self.picture = html(elem_id="review-picture")
            self.line = html(elem_id="review-line", classes="picture-line")
            with gr.Row(elem_classes="actions review-actions"):
                self.previous = gr.Button("Previous", elem_id="review-previous", min_width=80)
                self.mark = gr.Button("Reviewed", variant="primary", elem_id="review-mark", min_width=100)
                self.next = gr.Button("Next", elem_id="review-next", min_width=80)
            self.chips = html(js="caption_chips.js", elem_id="review-chips")
            self.add = html(add_field(), js="add_tag.js", elem_id="review-add")
            self.suggestions = html(js="tag_suggestions.js", elem_id="review-suggestions")
            self.hint = html(elem_id="review-hint")
            self.add_trigger = gr.Button(
                "Put the trigger word first", elem_id="review-trigger", visible=False, size="sm"
            )
            self.caption = gr.Textbox(
                label="Caption",
                info="Tag what you want to control in prompts; leave out what the trigger word should learn.",
                lines=2,
                max_lines=10,
                elem_id="review-caption",
            )
            self.saved = html(elem_id="review-saved")
            with gr.Row(elem_classes="actions review-actions"):
                self.save = gr.Button("Save", elem_id="review-save", min_width=70, size="sm")
                self.undo = gr.Button("Undo", elem_id="review-undo", min_width=70, size="sm", interactive=False)
                self.toggle = gr.Button("Mark", elem_id="review-toggle", min_width=70, size="sm")
                self.aside = gr.Button("Set aside", elem_id="review-aside", min_width=80, size="sm")
            self.facts = html(elem_id="review-facts")
            html(render("dataset/keys.html", keys=KEYS), js="review_keys.js", classes="review-keys")
            self.current = gr.Textbox(visible=False, elem_id="review-current")
            self.original = gr.Textbox(visible=False, elem_id="review-original")

    @property
    def inputs(self) -> set[Any]:
        """Components that handlers read to save the caption."""
        return {self.current, self.original, self.caption}

    @property
    def outputs(self) -> list[Any]:
        """Components that the section changes."""
        return [
            self.column,
            self.progress,
            self.picture,
            self.line,
            self.previous,
            self.mark,
            self.next,
            self.chips,
            self.aside,
            self.caption,
            self.hint,
            self.save,
            self.undo,
            self.toggle,
            self.add_trigger,
            self.saved,
            self.facts,
            self.current,
            self.original,
        ]

    def show_image(self, contents: Contents, item: ImageItem | None) -> Updates:
        """Show an image; without one, a placeholder."""
        has_image = item is not None
        updates: Updates = {
            button: gr.Button(interactive=has_image)
            for button in (self.previous, self.next, self.mark, self.aside, self.save, self.toggle)
        }
        if item is None:
            return updates | {
                self.picture: empty_card("One image at a time", "Read every caption yourself before you train."),
                self.progress: "",
                self.line: "",
                self.chips: "",
                self.current: "",
                self.original: "",
                self.caption: gr.Textbox(value="", interactive=False),
                self.saved: "",
                self.facts: "",
                self.hint: "",
                self.add_trigger: gr.Button(visible=False),
            }
        return updates | {
            self.picture: self._picture(item),
            self.current: item.id,
            self.saved: "",
            **self.status(contents, item),
            **self.caption_fields(contents, item),
        }

    def status(self, contents: Contents, item: ImageItem) -> Updates:
        """Show the image's name, size and issues, and the progress of the review."""
        size = f"{item.info.width} × {item.info.height} px" if item.info and item.info.readable else ""
        reviewed = "reviewed" if item.reviewed else ""
        position = f"{contents.index(item) + 1:,} of {len(contents.items):,}"
        line = " · ".join(part for part in (item.name, size, position, reviewed) if part)
        kept = [note("Marked as kept: the scan does not list it.")] if item.kept else []
        return {
            self.progress: review_bar(contents.reviewed, len(contents.items)),
            self.line: render("dataset/hint.html", text=line),
            self.toggle: gr.Button("Unmark" if item.reviewed else "Mark", interactive=True),
            self.undo: gr.Button(interactive=CaptionHistory.of(contents.project.dataset_dir).can_undo),
            self.facts: cards([*(note(text, tone=Tone.WARNING) for text in item.issues), *kept]),
        }

    def caption_fields(self, contents: Contents, item: ImageItem) -> Updates:
        """Show the caption on disk as chips and as text."""
        caption = item.caption or ""
        return {
            self.chips: tag_chips(caption, contents.trigger, self.suggester.confidences(item)),
            self.original: _original(item.id, caption),
            self.caption: gr.Textbox(value=caption, interactive=True),
            **self.caption_hints(contents.trigger, caption),
        }

    def caption_hints(self, trigger: str, caption: str) -> Updates:
        """Show the number of tokens, and whether the trigger word comes first."""
        return {
            self.hint: caption_hint(caption, trigger),
            self.add_trigger: gr.Button(visible=bool(trigger) and not has_trigger(caption, trigger)),
        }

    def save_caption(self, contents: Contents, data: Data) -> bool:
        """Write the caption in the text box if it was edited and its image still exists; return whether it was written.

        Raises CaptionChanged if the caption on disk changed since the edit began.
        """
        item = contents.by_id.get(data[self.current] or "")
        if item is None or not self.has_unsaved_caption(data):
            return False
        before = (data[self.original] or "").partition(":")[2]
        text, on_disk = one_line(data[self.caption]), one_line(item.caption)
        if on_disk not in (before, text):
            raise CaptionChanged(item)
        change_caption(contents, item, set_text(text, f"Edited {item.name}"))
        return True

    def has_unsaved_caption(self, data: Data) -> bool:
        """Return whether the caption in the text box was edited."""
        shown = data[self.current]
        return bool(shown) and _original(shown, data[self.caption]) != data[self.original]

    def is_showing(self, item: ImageItem, data: Data) -> bool:
        """Return whether the image and its caption are shown; to set the text again could undo a key press."""
        return bool(_original(item.id, item.caption or "") == data[self.original])

    def after_save(self, contents: Contents, data: Data) -> Updates:
        """Show a caption that `save_caption` has written."""
        caption = one_line(data[self.caption])
        item = contents.item(data[self.current])
        return {
            self.original: _original(item.id, caption),
            self.chips: tag_chips(caption, contents.trigger, self.suggester.confidences(item)),
            self.undo: gr.Button(interactive=True),
            self.saved: status_line("Saved."),
        }

    def accept_other_caption(self, changed: CaptionChanged) -> Updates:
        """Let the next save overwrite the caption on disk, as its text is shown in the error now."""
        return {self.original: _original(changed.identity, changed.on_disk)}

    def _picture(self, item: ImageItem) -> Markup:
        try:
            url = thumbnail_url(self.home, item.path, LARGE_PX, sha256=item.info.sha256 if item.info else None)
        except (InputError, OSError):
            url = ""
        return render("dataset/large_image.html", url=url, name=item.name)


def change_caption(contents: Contents, item: ImageItem, edit: Edit) -> bool:
    """Apply an edit to one caption as an entry of the undo history; return whether the caption changed.

    A reviewed image stays reviewed: its new caption is the user's own.
    """
    plan = plan_edit([item.path], edit)
    changed = bool(plan.changes) and bool(CaptionHistory.of(contents.project.dataset_dir).apply(plan).changed)
    if changed and item.reviewed and item.info:
        seen = [(item.info.sha256, caption) for caption in (item.caption, plan.changes[0].after)]
        contents.manifest.with_reviewed(seen).save_marks(contents.project.path)
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


def one_line(caption: str | None) -> str:
    """Return a caption as it is written to its file: without line breaks and repeated spaces."""
    return " ".join((caption or "").split())


def status_line(text: str) -> Markup:
    """Return a line about the last action, which screen readers announce."""
    return render("dataset/hint.html", text=text, role="status")


def review_bar(reviewed: int, total: int) -> Markup:
    """Return the number of reviewed captions with a bar."""
    return render(
        "dataset/review_bar.html",
        reviewed=f"{reviewed:,}",
        total=f"{total:,}",
        percent=100 * reviewed / total if total else 0.0,
    )


def _original(identity: str, caption: str | None) -> str:
    """Return the text before the edit together with its image's id, as the browser keeps it."""
    return f"{identity}:{one_line(caption)}"


def caption_hint(caption: str, trigger: str) -> Markup:
    """Return the number of tokens of the caption, and whether the trigger word comes first."""
    tokens = count_tokens(caption)
    too_long = tokens > MAX_TOKENS
    parts = [f"{tokens} of {MAX_TOKENS} tokens"]
    if too_long:
        parts[0] += ": the text struck through is not read; shorten the caption"
    if not trigger:
        parts.append("no trigger word is set in Plan")
    elif not caption.strip():
        parts.append(f"without a caption, the image is trained with {trigger} alone")
    else:
        parts.append(f"{trigger} {'comes' if has_trigger(caption, trigger) else 'does not come'} first")
    warn = too_long or (bool(trigger) and not has_trigger(caption, trigger))
    return render("dataset/hint.html", text=" · ".join(parts), warn=warn)


def neighbour(contents: Contents, identity: str, selection: Selection, step: int) -> ImageItem | None:
    """Return the previous (-1) or next (1) image that matches the filter, wrapping around at the ends.

    Returns the current image if no other one matches, and None if there are no images.
    """
    items = contents.items
    if not items:
        return None
    current = contents.images.indices.get(identity, 0 if step < 0 else -1)
    for distance in range(1, len(items) + 1):
        item = items[(current + step * distance) % len(items)]
        if item.matches(selection):
            return item
    return items[max(current, 0)]


def next_after_removal(
    contents: Contents, removed: ImageItem, left: Contents, selection: Selection
) -> ImageItem | None:
    """Return the image that followed the removed one and is `left`, preferably one that matches the filter."""
    index = contents.index(removed)
    following = [*contents.items[index + 1 :], *contents.items[:index]]
    existing = [left.by_id[item.id] for item in following if item.id in left.by_id]
    return next((item for item in existing if item.matches(selection)), existing[0] if existing else None)
