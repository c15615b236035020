"""Review: one image large, its caption beside it, and the keys to go through all of them.

What is edited travels with the id of its image and the text that was there, all three in the browser: a caption that
is saved late goes to the image it was written for, and never over one that changed on disk meanwhile.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import gradio as gr
from markupsafe import Markup

from lora_studio.dataset.captions import write_caption
from lora_studio.dataset.tokens import MAX_TOKENS, count_tokens
from lora_studio.errors import InputError
from lora_studio.project import Home
from lora_studio.ui.components import Tone, cards, empty_card, html, note
from lora_studio.ui.context import Updates
from lora_studio.ui.dataset_contents import Contents, Filter, Item, has_trigger
from lora_studio.ui.pictures import picture_url

LARGE_SIZE = 768  # px
KEYS_SCRIPT = """
if (!window.studioReviewKeys) {
  window.studioReviewKeys = true;
  const buttons = { ArrowLeft: 'review-previous', ArrowRight: 'review-next', Delete: 'review-aside' };
  document.addEventListener('keydown', (event) => {
    const typing = 'input, textarea, select, [contenteditable], [role="tab"], [role="listbox"]';
    if (event.ctrlKey || event.metaKey || event.altKey || event.target.closest(typing)) return;
    const button = document.getElementById(buttons[event.key]);
    if (button && button.offsetParent && !button.disabled) { event.preventDefault(); button.click(); }
  });
}
"""


class CaptionChanged(InputError):
    """The caption of image `identity` became `there` on disk while another text was being typed."""

    def __init__(self, item: Item) -> None:
        self.identity = item.id
        self.there = one_line(item.caption)
        super().__init__(
            f"The caption of {item.name} was changed elsewhere meanwhile; it says now: {self.there!r}.",
            "Yours is still in the box: Save puts it in its place.",
            code="caption_changed",
        )


class ReviewPanel:
    """The right side of Review."""

    def __init__(self, home: Home) -> None:
        self.home = home
        with gr.Column(visible=False) as self.column:
            self.picture = html(elem_id="review-picture")
            self.line = html(elem_id="review-line", classes="picture-line")
            with gr.Row(elem_classes="actions review-actions"):
                self.previous = gr.Button("Previous", elem_id="review-previous", min_width=80)
                self.next = gr.Button("Next", elem_id="review-next", min_width=80)
                self.aside = gr.Button("Set aside", elem_id="review-aside", min_width=80)
                self.save = gr.Button("Save", variant="primary", elem_id="review-save", min_width=80)
            self.caption = gr.Textbox(
                label="Caption",
                info="What you name stays changeable; what you leave out goes into the trigger word.",
                lines=3,
                max_lines=10,
                elem_id="review-caption",
            )
            self.hint = html(elem_id="review-hint")
            self.saved = html(elem_id="review-saved")
            self.add_trigger = gr.Button("Put the trigger word first", elem_id="review-trigger", visible=False)
            self.facts = html(elem_id="review-facts")
            gr.HTML(
                '<p class="hint">Saved when you leave the box. Keys: ← and → go through, Delete sets aside.</p>',
                js_on_load=KEYS_SCRIPT,
                apply_default_css=False,
                elem_classes=["studio-html", "review-keys"],
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
            self.picture,
            self.line,
            self.previous,
            self.next,
            self.aside,
            self.caption,
            self.hint,
            self.save,
            self.add_trigger,
            self.saved,
            self.facts,
            self.current,
            self.original,
        ]

    def open(self, contents: Contents, item: Item | None) -> Updates:
        """Show an image; without one, what will be here."""
        there = item is not None
        updates: Updates = {
            button: gr.Button(interactive=there) for button in (self.previous, self.next, self.aside, self.save)
        }
        if item is None:
            return updates | {
                self.picture: empty_card("One image at a time", "Read every caption yourself before you train."),
                self.line: "",
                self.current: "",
                self.original: "",
                self.caption: gr.Textbox(value="", interactive=False),
                self.saved: "",
                self.facts: "",
                self.hint: "",
                self.add_trigger: gr.Button(visible=False),
            }
        caption = item.caption or ""
        return updates | {
            self.picture: self._large(item),
            self.current: item.id,
            self.original: _original(item.id, caption),
            self.caption: gr.Textbox(value=caption, interactive=True),
            self.saved: "",
            **self.look(contents, item),
            **self.hints(contents.trigger, caption),
        }

    def look(self, contents: Contents, item: Item) -> Updates:
        """Which image it is, and what there is to look at in it."""
        place = contents.items.index(item) + 1
        size = f"{item.info.width} × {item.info.height} px" if item.info and item.info.readable else ""
        line = " · ".join(part for part in (item.name, size, f"{place} of {len(contents.items)}") if part)
        kept = [note("You decided to keep it all the same.")] if item.kept else []
        return {
            self.line: Markup('<p class="hint">{}</p>').format(line),
            self.facts: cards([*(note(text, tone=Tone.LOOK) for text in item.remarks), *kept]),
        }

    def hints(self, trigger: str, caption: str) -> Updates:
        """How long the caption is, and whether the trigger word is there."""
        return {
            self.hint: caption_hint(caption, trigger),
            self.add_trigger: gr.Button(visible=bool(trigger) and not has_trigger(caption, trigger)),
        }

    def store(self, contents: Contents, data: Mapping[Any, Any]) -> bool:
        """Write what is in the box, if it was edited and its image is there; tells whether it was.

        Raises CaptionChanged if another text is on disk by now than the one that was edited.
        """
        item = contents.by_id.get(data[self.current] or "")
        if item is None or not self.edited(data):
            return False
        before = (data[self.original] or "").partition(":")[2]
        text, there = one_line(data[self.caption]), one_line(item.caption)
        if there not in (before, text):
            raise CaptionChanged(item)
        write_caption(item.path, text)
        return True

    def edited(self, data: Mapping[Any, Any]) -> bool:
        """Whether the box holds another text than was put into it."""
        shown = data[self.current]
        return bool(shown) and _original(shown, data[self.caption]) != data[self.original]

    def stored(self, data: Mapping[Any, Any]) -> Updates:
        """What `store` wrote is what is there now."""
        return {
            self.original: _original(data[self.current], data[self.caption]),
            self.saved: Markup('<p class="hint" role="status">Saved.</p>'),
        }

    def seen(self, changed: CaptionChanged) -> Updates:
        """The user sees the other text: the next save may replace it."""
        return {self.original: _original(changed.identity, changed.there)}

    def _large(self, item: Item) -> Markup:
        try:
            url = picture_url(self.home, item.path, LARGE_SIZE, sha256=item.info.sha256 if item.info else None)
        except (InputError, OSError):
            return Markup('<div class="portrait"><p class="hint">It cannot be shown.</p></div>')
        return Markup('<div class="portrait"><img src="{}" alt="{}"></div>').format(url, item.name)


def one_line(caption: str | None) -> str:
    """A caption as it is written to its file."""
    return " ".join((caption or "").split())


def _original(identity: str, caption: str | None) -> str:
    """The text that was in the box of an image, with its id: a late answer about another image shows itself."""
    return f"{identity}:{one_line(caption)}"


def caption_hint(caption: str, trigger: str) -> Markup:
    """Tokens of 75, and where the trigger word is."""
    tokens = count_tokens(caption)
    long = tokens > MAX_TOKENS
    words = [f"{tokens} of {MAX_TOKENS} tokens"]
    if long:
        words[0] += ": the end is not read; shorten it"
    if not trigger:
        words.append("no trigger word is chosen in Plan")
    elif not caption.strip():
        words.append(f"an image without a caption is trained with {trigger} alone")
    else:
        words.append(f"{trigger} comes first" if has_trigger(caption, trigger) else f"{trigger} does not come first")
    warn = long or (bool(trigger) and not has_trigger(caption, trigger))
    return Markup('<p class="hint{}">{}</p>').format(" warn" if warn else "", " · ".join(words))


def neighbour(contents: Contents, identity: str, chosen: Filter, step: int) -> Item | None:
    """The next image that the filter shows, before (-1) or after (1) the current one, around the ends.

    The current one itself if the filter shows no other; None if there is no image.
    """
    items = contents.items
    if not items:
        return None
    here = next((place for place, item in enumerate(items) if item.id == identity), 0 if step < 0 else -1)
    for distance in range(1, len(items) + 1):
        item = items[(here + step * distance) % len(items)]
        if item.passes(chosen):
            return item
    return items[max(here, 0)]


def after_removal(contents: Contents, removed: Item, left: Contents, chosen: Filter) -> Item | None:
    """What to show once an image is gone: of what is `left`, the one that came after it, as the filter shows them."""
    following = contents.items[contents.items.index(removed) + 1 :] + contents.items[: contents.items.index(removed)]
    ids = [item.id for item in following if item.id in left.by_id]
    shown = [left.by_id[identity] for identity in ids if left.by_id[identity].passes(chosen)]
    return shown[0] if shown else left.by_id[ids[0]] if ids else None
