"""Captions with wildcards, and with marks between the tags that stay and those that are shuffled.

As in sd-scripts: `{red|blue} dress` is one of two dresses, `{{` and `}}` are braces, and each line of a caption file is
a caption of its own, of which each sample gets one.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import NamedTuple

from lora_studio.dataset.captions.text import join_tags, split_tags

_WILDCARD = re.compile(r"\{\{|\}\}|\{([^{}]+)\}")


class CaptionParts(NamedTuple):
    """The parts of a caption with separators: only `free` is shuffled and dropped."""

    first: str
    free: str
    last: str


def caption_template(text: str, *, prefix: str = "", suffix: str = "", wildcards: bool = False) -> str:
    """Return a caption file's text, with prefix and suffix, as one line; with `wildcards` as one for each of its lines.

    Runs of whitespace become one space.
    """
    lines = text.splitlines() if wildcards else [text]
    normalised = [" ".join(line.split()) for line in lines]
    found = [line for line in normalised if line] or [""]
    joint = "" if suffix.startswith(",") else " "
    return "\n".join(joint.join(filter(None, (f"{prefix} {line}".strip(), suffix))) for line in found)


def draw_caption(template: str, choose: Callable[[int], int]) -> str:
    """Return one of a template's lines, with one alternative of each wildcard; `choose(n)` returns a number below n."""
    lines = template.split("\n")
    line = lines[choose(len(lines))] if len(lines) > 1 else lines[0]

    def replace(match: re.Match[str]) -> str:
        if match[1] is None:
            return match[0][0]  # {{ and }} are one brace
        options = match[1].split("|")
        return options[choose(len(options))] if len(options) > 1 else options[0]

    return _WILDCARD.sub(replace, line)


def split_caption(caption: str, separator: str) -> CaptionParts:
    """Return the parts of a caption before, between and after the first two separators.

    Without a separator all is `free`; with one, what is behind it.
    """
    if not separator or separator not in caption:
        return CaptionParts("", caption, "")
    first, _, rest = caption.partition(separator)
    free, _, last = rest.partition(separator)
    return CaptionParts(first, free, last)


def without_separator(caption: str, separator: str) -> str:
    """Return a caption with a comma in the place of each of the first two separators."""
    if not separator or separator not in caption:
        return caption
    return join_tags(tag for part in split_caption(caption, separator) for tag in split_tags(part))


def plain_caption(template: str, *, wildcards: bool = False, separator: str = "") -> str:
    """Return a template's caption without chance: its first line, with the first alternative of each wildcard."""
    caption = draw_caption(template, lambda count: 0) if wildcards else template
    return without_separator(caption, separator)
