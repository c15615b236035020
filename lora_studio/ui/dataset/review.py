"""Renders the Review section: one image with its caption as chips and as text, and the mark that it was reviewed."""

from __future__ import annotations

import gradio as gr
from markupsafe import Markup

from lora_studio.dataset.captions.edit_history import CaptionHistory
from lora_studio.dataset.captions.token_count import MAX_TOKENS, count_tokens
from lora_studio.errors import InputError
from lora_studio.ui.dataset.caption_panels import ReviewPanel
from lora_studio.ui.dataset.chips import tag_chips
from lora_studio.ui.dataset.crop_frame import Frame, crop_text
from lora_studio.ui.dataset.image_item import ImageItem, has_trigger
from lora_studio.ui.dataset.state import DatasetState, Draft
from lora_studio.ui.dataset.suggestions import TagSuggester
from lora_studio.ui.widgets.events import Updates
from lora_studio.ui.widgets.html import Tone, cards, empty_card, note, render
from lora_studio.ui.widgets.thumbnails import thumbnail_url
from lora_studio.workspace.project import Home

LARGE_PX = 768


def render_review(panel: ReviewPanel, state: DatasetState, suggester: TagSuggester) -> Updates:
    """Show the image and its caption. What the user is typing stays, unless the state has another caption."""
    item, draft = state.current, state.place.draft
    shown = state.shown.draft if state.shown else None
    if item is None:
        return _without_image(panel)
    return {
        **_status(panel, state, item),
        panel.chips: tag_chips(item.caption or "", state.contents.trigger, suggester.confidences(item)),
        panel.picture: _picture(suggester.home, state, item),
        **(_opened(panel, item) if shown is None or shown.image != draft.image else {}),
        **(_draft(panel, state.contents.trigger, draft, shown) if draft != shown else {}),
        **({} if state.saved is None else {panel.saved: status_line(state.saved)}),
    }


def _without_image(panel: ReviewPanel) -> Updates:
    """Show a placeholder."""
    return {
        **_buttons(panel, has_image=False),
        panel.picture: empty_card("One image at a time", "Read every caption yourself before you train."),
        panel.progress: "",
        panel.line: "",
        panel.chips: "",
        panel.current: "",
        panel.original: "",
        panel.caption: gr.Textbox(value="", interactive=False),
        panel.saved: "",
        panel.facts: "",
        panel.hint: "",
        panel.add_trigger: gr.Button(visible=False),
    }


def _buttons(panel: ReviewPanel, *, has_image: bool) -> Updates:
    buttons = (panel.previous, panel.next, panel.mark, panel.aside, panel.save, panel.toggle)
    return {button: gr.Button(interactive=has_image) for button in buttons}


def _status(panel: ReviewPanel, state: DatasetState, item: ImageItem) -> Updates:
    """Show the image's name, size and issues, and the progress of the review."""
    contents = state.contents
    size = f"{item.info.width} × {item.info.height} px" if item.info and item.info.readable else ""
    reviewed = "reviewed" if item.reviewed else ""
    position = f"{contents.index(item) + 1:,} of {len(contents.items):,}"
    parts = (item.name, item.set_name, size, position, reviewed)
    line = " · ".join(part for part in parts if part)
    kept = [note("Marked as kept: the scan does not list it.")] if item.kept else []
    return {
        panel.progress: review_bar(contents.reviewed, len(contents.items)),
        panel.line: render("dataset/hint.html", text=line),
        panel.toggle: gr.Button("Unmark" if item.reviewed else "Mark", interactive=True),
        panel.undo: gr.Button(interactive=CaptionHistory.of(contents.project.dataset_dir).can_undo),
        panel.facts: cards([*(note(text, tone=Tone.WARNING) for text in item.issues), *kept]),
    }


def _picture(home: Home, state: DatasetState, item: ImageItem) -> Markup:
    """Return the image with the frame of what training sees; a click opens it large."""
    try:
        url = thumbnail_url(home, item.path, LARGE_PX, sha256=item.info.sha256 if item.info else None)
    except (InputError, OSError):
        url = ""
    bucketing = state.contents.bucketing
    crop = bucketing.crop_of(item.path)
    return render(
        "dataset/large_image.html",
        url=url,
        name=item.name,
        frame=Frame.of(crop) if crop else None,
        text=crop_text(crop, is_random=bucketing.recipe.random_crop),
    )


def _opened(panel: ReviewPanel, item: ImageItem) -> Updates:
    return {**_buttons(panel, has_image=True), panel.current: item.id, panel.saved: ""}


def _draft(panel: ReviewPanel, trigger: str, draft: Draft, shown: Draft | None) -> Updates:
    """Show another caption, or another caption before the edit. The text box is set only if its text changes."""
    updates: Updates = {panel.original: draft.original, **caption_hints(panel, trigger, draft.text)}
    if shown is None or (draft.image, draft.text) != (shown.image, shown.text):
        updates[panel.caption] = gr.Textbox(value=draft.text, interactive=True)
    return updates


def caption_hints(panel: ReviewPanel, trigger: str, caption: str) -> Updates:
    """Show the number of tokens, and whether the trigger word comes first."""
    return {
        panel.hint: caption_hint(caption, trigger),
        panel.add_trigger: gr.Button(visible=bool(trigger) and not has_trigger(caption, trigger)),
    }


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
