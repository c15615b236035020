"""Review: one image large with its caption as chips and as text, a tick an image, and the keys to go through all.

A text that is edited travels with the id of its image and the text that was there, all three in the browser: a caption
that is saved late goes to the image it was written for, and never over one that changed on disk meanwhile. A chip's
button says what to do with which tag, and does it to what is on disk.
"""

from __future__ import annotations

from collections.abc import Mapping
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
from lora_studio.ui.dataset.chips import ADD_SCRIPT, CHIPS_SCRIPT, SUGGEST_SCRIPT, add_field, tag_chips
from lora_studio.ui.dataset.contents import Contents, ImageItem, Selection, has_trigger
from lora_studio.ui.dataset.suggestions import TagSuggester
from lora_studio.ui.widgets.events import Updates
from lora_studio.ui.widgets.html import Tone, cards, empty_card, html, note
from lora_studio.ui.widgets.thumbnails import picture_url
from lora_studio.workspace.project import Home

LARGE_PX = 768  # px
KEYS_SCRIPT = """
if (!window.studioReviewKeys) {
  window.studioReviewKeys = true;
  const buttons = {
    ArrowLeft: 'review-previous', k: 'review-previous', ArrowRight: 'review-next', j: 'review-next',
    Enter: 'review-mark', ' ': 'review-mark', r: 'review-toggle', Delete: 'review-aside',
  };
  const typing = 'input, textarea, select, [contenteditable], [role="tab"], [role="listbox"]';
  document.addEventListener('keydown', (event) => {
    if (event.altKey || event.target.closest(typing)) return;
    const press = (id) => {
      const button = document.getElementById(id);
      if (!button || !button.offsetParent || button.disabled) return;
      event.preventDefault();
      button.click();
    };
    if (event.ctrlKey || event.metaKey) {
      if (event.key.toLowerCase() === 'z' && !event.shiftKey) press('review-undo');
      return;
    }
    const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
    if (key === 'a') {
      const field = document.querySelector('#review-add input');
      if (field && field.offsetParent) { event.preventDefault(); field.focus(); }
      return;
    }
    if (!buttons[key]) return;
    if ((key === 'Enter' || key === ' ') && event.target.closest('button, a, summary, [tabindex]')) return;
    if (key === 'Delete' && event.target.closest('.chip')) return;
    press(buttons[key]);
  });
}
"""
LEGEND = (
    ("← → or K J", "go through"),
    ("Enter or Space", "reviewed, and on"),
    ("R", "tick or untick"),
    ("A", "add a tag"),
    ("Delete", "set aside"),
    ("Ctrl Z", "undo"),
)


class Chip(StrEnum):
    """What a chip's button asks for; what follows the colon is a tag, for MOVE after the place that it gets."""

    DROP = "drop"
    ADD = "add"
    MOVE = "move"


class CaptionChanged(InputError):
    """The caption of image `identity` became `there` on disk while another text was being typed."""

    def __init__(self, item: ImageItem) -> None:
        self.identity = item.id
        self.on_disk = one_line(item.caption)
        super().__init__(
            f"The caption of {item.name} was changed elsewhere meanwhile; it says now: {self.on_disk!r}.",
            "Yours is still in the box: Save puts it in its place.",
            code="caption_changed",
        )


class ReviewPanel:
    """The right side of Review."""

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
            self.chips = gr.HTML(
                "",
                js_on_load=CHIPS_SCRIPT,
                apply_default_css=False,
                elem_id="review-chips",
                elem_classes=["studio-html"],
            )
            self.add = gr.HTML(
                add_field(),
                js_on_load=ADD_SCRIPT,
                apply_default_css=False,
                elem_id="review-add",
                elem_classes=["studio-html"],
            )
            self.suggestions = gr.HTML(
                "",
                js_on_load=SUGGEST_SCRIPT,
                apply_default_css=False,
                elem_id="review-suggestions",
                elem_classes=["studio-html"],
            )
            self.hint = html(elem_id="review-hint")
            self.add_trigger = gr.Button(
                "Put the trigger word first", elem_id="review-trigger", visible=False, size="sm"
            )
            self.caption = gr.Textbox(
                label="Caption as text",
                info="What you name stays changeable; what you leave out goes into the trigger word.",
                lines=2,
                max_lines=10,
                elem_id="review-caption",
            )
            self.saved = html(elem_id="review-saved")
            with gr.Row(elem_classes="actions review-actions"):
                self.save = gr.Button("Save", elem_id="review-save", min_width=70, size="sm")
                self.undo = gr.Button("Undo", elem_id="review-undo", min_width=70, size="sm", interactive=False)
                self.toggle = gr.Button("Tick", elem_id="review-toggle", min_width=70, size="sm")
                self.aside = gr.Button("Set aside", elem_id="review-aside", min_width=80, size="sm")
            self.facts = html(elem_id="review-facts")
            gr.HTML(
                legend(), js_on_load=KEYS_SCRIPT, apply_default_css=False, elem_classes=["studio-html", "review-keys"]
            )
            self.current = gr.Textbox(visible=False, elem_id="review-current")
            self.original = gr.Textbox(visible=False, elem_id="review-original")

    @property
    def inputs(self) -> set[Any]:
        """What a handler needs to save what is in the box."""
        return {self.current, self.original, self.caption}

    @property
    def outputs(self) -> list[Any]:
        """Everything that this panel changes."""
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
        """Show an image; without one, what will be here."""
        there = item is not None
        updates: Updates = {
            button: gr.Button(interactive=there)
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
        """Which image it is, how far the review is, and what there is to look at in it."""
        index = contents.index(item) + 1
        size = f"{item.info.width} × {item.info.height} px" if item.info and item.info.readable else ""
        reviewed = "reviewed" if item.reviewed else ""
        line = " · ".join(part for part in (item.name, size, f"{index:,} of {len(contents.items):,}", reviewed) if part)
        kept = [note("You decided to keep it all the same.")] if item.kept else []
        return {
            self.progress: review_bar(contents.reviewed, len(contents.items)),
            self.line: Markup('<p class="hint">{}</p>').format(line),
            self.toggle: gr.Button("Untick" if item.reviewed else "Tick", interactive=True),
            self.undo: gr.Button(interactive=CaptionHistory.of(contents.project.dataset_dir).can_undo),
            self.facts: cards([*(note(text, tone=Tone.WARNING) for text in item.issues), *kept]),
        }

    def caption_fields(self, contents: Contents, item: ImageItem) -> Updates:
        """The caption as it is on disk, as chips and as text."""
        caption = item.caption or ""
        return {
            self.chips: tag_chips(caption, contents.trigger, self.suggester.confidences(item)),
            self.original: _original(item.id, caption),
            self.caption: gr.Textbox(value=caption, interactive=True),
            **self.caption_hints(contents.trigger, caption),
        }

    def caption_hints(self, trigger: str, caption: str) -> Updates:
        """How long the caption is, and whether the trigger word is there."""
        return {
            self.hint: caption_hint(caption, trigger),
            self.add_trigger: gr.Button(visible=bool(trigger) and not has_trigger(caption, trigger)),
        }

    def save_caption(self, contents: Contents, data: Mapping[Any, Any]) -> bool:
        """Write what is in the box, if it was edited and its image is there; tells whether it was.

        Raises CaptionChanged if another text is on disk by now than the one that was edited.
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

    def has_unsaved_caption(self, data: Mapping[Any, Any]) -> bool:
        """Whether the box holds another text than was put into it."""
        shown = data[self.current]
        return bool(shown) and _original(shown, data[self.caption]) != data[self.original]

    def is_showing(self, item: ImageItem, data: Mapping[Any, Any]) -> bool:
        """Whether the panel has this image and its caption as on disk: to fill the box again could undo a key press."""
        return bool(_original(item.id, item.caption or "") == data[self.original])

    def after_save(self, contents: Contents, data: Mapping[Any, Any]) -> Updates:
        """What `store` wrote is what is there now."""
        caption = one_line(data[self.caption])
        item = contents.item(data[self.current])
        return {
            self.original: _original(item.id, caption),
            self.chips: tag_chips(caption, contents.trigger, self.suggester.confidences(item)),
            self.undo: gr.Button(interactive=True),
            self.saved: status_line("Saved."),
        }

    def accept_other_caption(self, changed: CaptionChanged) -> Updates:
        """The user sees the other text: the next save may replace it."""
        return {self.original: _original(changed.identity, changed.on_disk)}

    def _picture(self, item: ImageItem) -> Markup:
        try:
            url = picture_url(self.home, item.path, LARGE_PX, sha256=item.info.sha256 if item.info else None)
        except (InputError, OSError):
            return Markup('<div class="portrait"><p class="hint">It cannot be shown.</p></div>')
        return Markup('<div class="portrait"><img src="{}" alt="{}"></div>').format(url, item.name)


def change_caption(contents: Contents, item: ImageItem, edit: Edit) -> bool:
    """Do an edit to one image's caption, in a way that can be undone; tells whether it changed anything."""
    plan = plan_edit([item.path], edit)
    return bool(plan.changes) and bool(CaptionHistory.of(contents.project.dataset_dir).apply(plan).changed)


def chip_edit(asked: str, trigger: str) -> Edit:
    """What a chip's button asks for, as an edit; raises InputError for what no chip asks."""
    verb, _, subject = asked.partition(":")
    place, _, moved = subject.partition(":")
    match verb:
        case Chip.DROP if subject:
            return Edit(f"Removed {subject}", lambda caption: without_tags(caption, [subject]))
        case Chip.ADD if split_tags(subject):
            named = join_tags(split_tags(subject))
            return Edit(f"Added {named}", lambda caption: with_tags(caption, named, TagPosition.BACK, trigger))
        case Chip.MOVE if place.isdecimal() and len(place) < 6 and moved:
            return Edit(f"Moved {moved}", lambda caption: move_tag(caption, moved, int(place)))
    raise InputError("That button is not known.", "Reload the page.", code="pick")


def move_tag(caption: str, tag: str, place: int) -> str:
    """The caption with one of its tags at another place; the same text if it has no such tag."""
    tags = split_tags(caption)
    if tag not in tags:
        return caption
    tags.remove(tag)
    tags.insert(place, tag)
    return join_tags(tags)


def one_line(caption: str | None) -> str:
    """A caption as it is written to its file."""
    return " ".join((caption or "").split())


def status_line(text: str) -> Markup:
    """What was just done."""
    return Markup('<p class="hint" role="status">{}</p>').format(text)


def legend() -> Markup:
    """The keys."""
    keys = Markup("").join(Markup("<span><kbd>{}</kbd> {}</span>").format(*line) for line in LEGEND)
    return Markup('<p class="hint keys">{}</p><p class="hint">A text is saved when you leave its box.</p>').format(keys)


def review_bar(reviewed: int, total: int) -> Markup:
    """How many captions were read, with a bar."""
    return Markup(
        '<div class="review-bar"><span>{} of {} reviewed</span>'
        '<div class="bar"><div style="width: {:.1f}%"></div></div></div>'
    ).format(f"{reviewed:,}", f"{total:,}", 100 * reviewed / total if total else 0)


def _original(identity: str, caption: str | None) -> str:
    """The text that was in the box of an image, with its id: a late answer about another image shows itself."""
    return f"{identity}:{one_line(caption)}"


def caption_hint(caption: str, trigger: str) -> Markup:
    """Tokens of 75, and where the trigger word is."""
    tokens = count_tokens(caption)
    long = tokens > MAX_TOKENS
    words = [f"{tokens} of {MAX_TOKENS} tokens"]
    if long:
        words[0] += ": what is struck out is not read; shorten it"
    if not trigger:
        words.append("no trigger word is chosen in Plan")
    elif not caption.strip():
        words.append(f"an image without a caption is trained with {trigger} alone")
    else:
        words.append(f"{trigger} comes first" if has_trigger(caption, trigger) else f"{trigger} does not come first")
    warn = long or (bool(trigger) and not has_trigger(caption, trigger))
    return Markup('<p class="hint{}">{}</p>').format(" warn" if warn else "", " · ".join(words))


def neighbour(contents: Contents, identity: str, selection: Selection, step: int) -> ImageItem | None:
    """The next image that the filter shows, before (-1) or after (1) the current one, around the ends.

    The current one itself if the filter shows no other; None if there is no image.
    """
    items = contents.items
    if not items:
        return None
    current = contents.indices.get(identity, 0 if step < 0 else -1)
    for distance in range(1, len(items) + 1):
        item = items[(current + step * distance) % len(items)]
        if item.matches(selection):
            return item
    return items[max(current, 0)]


def next_after_removal(
    contents: Contents, removed: ImageItem, left: Contents, selection: Selection
) -> ImageItem | None:
    """What to show once an image is gone: of what is `left`, the one that came after it, as the filter shows them."""
    index = contents.index(removed)
    following = [*contents.items[index + 1 :], *contents.items[:index]]
    there = [left.by_id[item.id] for item in following if item.id in left.by_id]
    return next((item for item in there if item.matches(selection)), there[0] if there else None)
