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
from lora_studio.project import Home, Project
from lora_studio.ui.components import Tone, empty_card, html, note
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


class ReviewPanel:
    """The right side of Review."""

    def __init__(self, home: Home) -> None:
        self.home = home
        with gr.Column(visible=False) as self.column:
            self.picture = html(elem_id="review-picture")
            with gr.Row(elem_classes="actions review-actions"):
                self.previous = gr.Button("Previous", elem_id="review-previous", min_width=90)
                self.next = gr.Button("Next", elem_id="review-next", min_width=90)
                self.aside = gr.Button("Set aside", elem_id="review-aside", min_width=90)
            self.caption = gr.Textbox(
                label="Caption",
                info="Saved when you leave the box. Tags are separated by commas; what you name stays changeable.",
                lines=3,
                max_lines=10,
                elem_id="review-caption",
            )
            self.hint = html(elem_id="review-hint")
            with gr.Row(elem_classes="actions"):
                self.save = gr.Button("Save", variant="primary", elem_id="review-save", min_width=90)
                self.add_trigger = gr.Button(
                    "Put the trigger word first", elem_id="review-trigger", min_width=170, visible=False
                )
            self.saved = html(elem_id="review-saved")
            self.facts = html(elem_id="review-facts")
            gr.HTML(
                '<p class="hint">Keys: ← and → go through the images, Delete sets one aside.</p>',
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
            self.picture: self._large(contents, item),
            self.current: item.id,
            self.original: caption,
            self.caption: gr.Textbox(value=caption, interactive=True),
            self.saved: "",
            **self.look(contents, item),
            **self.hints(contents.trigger, caption),
        }

    def look(self, contents: Contents, item: Item) -> Updates:
        """What there is to look at in an image."""
        remarks = item.remarks
        kept = [note("You decided to keep it all the same.")] if item.kept else []
        shown = [*(note(text, tone=Tone.LOOK) for text in remarks), *kept]
        return {self.facts: Markup('<div class="cards">{}</div>').format(Markup("").join(shown)) if shown else ""}

    def hints(self, trigger: str, caption: str) -> Updates:
        """How long the caption is, and whether the trigger word is there."""
        return {
            self.hint: caption_hint(caption, trigger),
            self.add_trigger: gr.Button(visible=bool(trigger) and not has_trigger(caption, trigger)),
        }

    def store(self, contents: Contents, data: Mapping[Any, Any]) -> bool:
        """Write what is in the box, if it was edited; tells whether it was.

        Raises InputError if the caption changed on disk meanwhile, or its image is gone.
        """
        identity, text = data[self.current], " ".join((data[self.caption] or "").split())
        before = " ".join((data[self.original] or "").split())
        if not identity or text == before:
            return False
        item = contents.item(identity)
        there = " ".join((item.caption or "").split())
        if there not in (before, text):
            raise InputError(
                f"The caption of {item.name} was changed elsewhere meanwhile; it says now: {there!r}.",
                "Copy your text, go to another image and back, and put in what you want to keep.",
                code="caption_changed",
            )
        write_caption(item.path, text)
        return True

    def _large(self, contents: Contents, item: Item) -> Markup:
        place = contents.items.index(item) + 1
        size = f"{item.info.width} × {item.info.height} px" if item.info and item.info.readable else ""
        line = " · ".join(part for part in (item.name, size, f"{place} of {len(contents.items)}") if part)
        try:
            url = picture_url(self.home, item.path, LARGE_SIZE, sha256=item.info.sha256 if item.info else None)
            shown = Markup('<img src="{}" alt="{}">').format(url, item.name)
        except (InputError, OSError):
            shown = Markup("<div>cannot be shown</div>")
        return Markup('<figure class="large">{}<figcaption>{}</figcaption></figure>').format(shown, line)


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


def after_removal(contents: Contents, removed: Item, project: Project, chosen: Filter) -> Item | None:
    """What to show once an image is gone: the one that came after it, as the filter shows them."""
    left = Contents.of(project)
    following = contents.items[contents.items.index(removed) + 1 :] + contents.items[: contents.items.index(removed)]
    ids = [item.id for item in following if item.id in left.by_id]
    shown = [left.by_id[identity] for identity in ids if left.by_id[identity].passes(chosen)]
    return shown[0] if shown else left.by_id[ids[0]] if ids else None
