"""HTML of the caption editor: a caption's tags as chips, the field that adds one, and its suggestions."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

from markupsafe import Markup

from lora_studio.dataset.captions.text import join_tags, split_tags, word_pattern
from lora_studio.dataset.captions.token_count import truncation_point
from lora_studio.ui.dataset.suggestions import Suggestion
from lora_studio.ui.widgets.html import render

HIGH_CONFIDENCE, LOW_CONFIDENCE = 0.7, 0.4  # of a tagger, 0 to 1


class Chip(NamedTuple):
    """A tag of a caption; `truncated` is the part that the text encoders do not read."""

    tag: str
    kind: str
    title: str
    text: str
    truncated: str


def tag_chips(caption: str, trigger: str, confidences: Mapping[str, float]) -> Markup:
    """Return a caption's tags as chips. What the text encoders truncate is struck through.

    `confidences` are a tagger's (0 to 1) by tag, as it writes them into captions.
    """
    tags = split_tags(caption)
    end = truncation_point(join_tags(tags))
    trigger_words = [word_pattern(word) for word in split_tags(trigger)]
    by_tag = {tag.casefold(): value for tag, value in confidences.items()}
    chips, start = [], 0
    for tag in tags:
        is_trigger = any(word.search(tag) for word in trigger_words)
        length = max(min(end - start, len(tag)), 0)
        chips.append(_chip(tag, by_tag.get(tag.casefold()), is_trigger=is_trigger, read_length=length))
        start += len(tag) + 2  # ", "
    return render("dataset/chips.html", chips=chips, has_confidences=bool(confidences))


def _chip(tag: str, confidence: float | None, *, is_trigger: bool, read_length: int) -> Chip:
    kind = ""
    title = "Drag it, or press Alt with an arrow key, to move it; Delete removes it."
    if is_trigger:
        kind = "trigger"
        title = f"The trigger word. {title}"
    elif confidence is not None:
        kind = "high" if confidence >= HIGH_CONFIDENCE else "middle" if confidence >= LOW_CONFIDENCE else "low"
        title = f"The tagger's confidence is {confidence:.0%}. {title}"
    if read_length < len(tag):
        part = "the end of this tag" if read_length else "this tag"
        title = f"The caption is too long: the text encoders do not read {part}. {title}"
    return Chip(tag, kind, title, tag[:read_length], tag[read_length:])


def add_field() -> Markup:
    """Return the field in which a tag is typed."""
    return render("dataset/add_tag.html")


def suggestion_list(typed: str, suggestions: Iterable[Suggestion]) -> Markup:
    """Return tags that complete the text `typed`, to choose with the arrow keys or a click.

    The list names the text, so that the page uses no list of an earlier one.
    """
    return render("dataset/suggestions.html", typed=typed, suggestions=list(suggestions))
