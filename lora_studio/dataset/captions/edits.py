"""Edits of captions, one image's or a whole folder's: what would change, and what each does to a caption's text.

An edit is a plan first, image by image before and after, to be looked at; `history` carries it out and takes it back.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import regex
from pydantic import BaseModel, ConfigDict

from lora_studio.dataset.captions.text import (
    caption_bytes,
    decode_text,
    join_tags,
    read_caption,
    split_tags,
    with_replaced,
    with_tags,
    without_tags,
)
from lora_studio.errors import InputError
from lora_studio.settings.choices import TagPosition

REGEX_SECONDS = 3.0  # for all captions of one edit: some patterns would take for ever


@dataclass(frozen=True)
class Edit:
    """What is to be done to captions: its name for people, and what makes of a caption's text another one.

    `rewrite` writes files anew whose text stays the same but whose bytes are not as the studio writes them.
    """

    what: str
    change: Callable[[str], str]
    rewrite: bool = False


class Change(BaseModel):
    """One image's caption before (None: it has no file) and after."""

    model_config = ConfigDict(frozen=True)

    image: Path
    before: str | None
    after: str


class EditPlan(BaseModel):
    """What an edit would change, in the images' order; `unchanged` counts the others."""

    what: str
    changes: list[Change]
    unchanged: int

    @property
    def digest(self) -> str:
        """Changes with the plan: who has seen this one may have it carried out."""
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()[:16]


def plan_edit(images: Iterable[Path], edit: Edit, cached: Mapping[Path, str] | None = None) -> EditPlan:
    """What `edit` would do to the captions of these images. Reads only; raises InputError for what cannot be read.

    Captions that are `cached` to be on disk are not read again.
    """
    changes, unchanged = [], 0
    for image in images:
        before = cached[image] if cached and image in cached else read_caption(image)
        text = before or ""
        after = edit.change(text)
        after = text if after == text else " ".join(after.split())
        if after != text or (edit.rewrite and not is_plain_utf8(caption_bytes(image) or b"")):
            changes.append(Change(image=image, before=before, after=after))
        else:
            unchanged += 1
    return EditPlan(what=edit.what, changes=changes, unchanged=unchanged)


def is_plain_utf8(data: bytes) -> bool:
    """Whether bytes are UTF-8 without a byte order mark."""
    try:
        return data.decode("utf-8") == decode_text(data)
    except UnicodeDecodeError:
        return False


def add(tags: str, position: TagPosition = TagPosition.BACK, trigger: str = "") -> Edit:
    """Add tags, separated by commas, to captions that lack them; raises InputError if there are none."""
    named = join_tags(_needed(tags, "tag to add"))
    return Edit(f"Added {named}", lambda caption: with_tags(caption, named, position, trigger))


def remove(tags: Iterable[str]) -> Edit:
    """Take whole tags out, whatever their letter case; raises InputError if none is given."""
    named = _needed(join_tags(tags), "tag to remove")
    shown = join_tags(named[:5]) + (f" and {len(named) - 5} more" if len(named) > 5 else "")
    return Edit(f"Removed {shown}", lambda caption: without_tags(caption, named))


def replace(old: str, new: str) -> Edit:
    """Put tags in the place of one whole tag; raises InputError if `old` is not one tag or there is nothing new."""
    wanted = _needed(old, "tag to replace")
    if len(wanted) > 1:
        raise InputError(
            f"{old!r} is more than one tag.", "Replace one after the other, or use a regular expression.", code="tags"
        )
    put = join_tags(_needed(new, "tag to put in its place"))
    return Edit(f"Replaced {wanted[0]} with {put}", lambda caption: with_replaced(caption, wanted[0], put))


def substitute(pattern: str, replacement: str) -> Edit:
    r"""Replace what a regular expression finds in whole captions; `\1` or `\g<name>` stand for its groups.

    Raises InputError for a pattern that is none, and when captions are changed if it takes too long.
    """
    if not pattern:
        raise InputError("No regular expression is given.", "Write what to look for.", code="regex")
    deadline = time.monotonic() + REGEX_SECONDS
    try:
        compiled = regex.compile(pattern)
        compiled.sub(replacement, "")
    except (regex.error, IndexError) as error:
        raise InputError(
            f"{pattern!r} with {replacement!r} is no regular expression: {error}.",
            "Put a backslash before a character that is meant as such.",
            code="regex",
        ) from error

    def change(caption: str) -> str:
        try:
            changed = compiled.sub(replacement, caption, timeout=max(deadline - time.monotonic(), 0.001))
        except TimeoutError as error:
            raise InputError(
                f"{pattern!r} takes too long.", "Avoid repetitions within repetitions, as in (a+)+.", code="regex"
            ) from error
        except (regex.error, IndexError) as error:
            raise InputError(
                f"The replacement {replacement!r} cannot be used: {error}.",
                "Refer only to groups of the pattern, such as \\1 for the first.",
                code="regex",
            ) from error
        return caption if changed == caption else join_tags(split_tags(changed))

    return Edit(f"Replaced {pattern} with {replacement or 'nothing'}", change)


def set_text(text: str, what: str) -> Edit:
    """Put another text in the place of the caption."""
    return Edit(what, lambda caption: text)


def _needed(tags: str, meaning: str) -> list[str]:
    found = split_tags(tags)
    if not found:
        raise InputError(f"No {meaning} is given.", "Write one, or several separated by commas.", code="tags")
    return found
