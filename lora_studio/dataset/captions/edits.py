"""Edits of captions, of one image or of a whole folder.

`plan_edit` computes the captions before and after as a plan, for a preview; `edit_history` applies and undoes it.
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

REGEX_SECONDS = 3.0  # time limit for all captions of one edit: some patterns backtrack exponentially


@dataclass(frozen=True)
class Edit:
    """An edit: its description, and a function from the text of a caption to the new text.

    With `rewrite`, files whose text does not change are written again if they are not plain UTF-8. With `by_line`, each
    line of a caption with several, which the setting enable_wildcard trains on in turn, is changed by itself.
    """

    what: str
    change: Callable[[str], str]
    rewrite: bool = False
    by_line: bool = False

    def changed(self, text: str) -> str:
        """Return the new text of a caption: as it was, or with spaces that are needless removed."""
        if self.by_line and len(lines := text.splitlines()) > 1:
            after = [self.changed(line) if line.strip() else line for line in lines]
            return text if after == lines else "\n".join(line for line in after if line.strip())
        after_change = self.change(text)
        return text if after_change == text else " ".join(after_change.split())


class Change(BaseModel):
    """The caption of one image before (None: no file) and after an edit."""

    model_config = ConfigDict(frozen=True)

    image: Path
    before: str | None
    after: str


class EditPlan(BaseModel):
    """The captions that an edit would change, in the order of the images, and the number of those it would not."""

    what: str
    changes: list[Change]
    unchanged: int

    @property
    def digest(self) -> str:
        """A hash of the plan, to check that the plan applied is the one that was previewed."""
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()[:16]


def plan_edit(images: Iterable[Path], edit: Edit, cached: Mapping[Path, str] | None = None) -> EditPlan:
    """Return the changes that `edit` would make to the captions of these images, without making them.

    Captions in `cached` are not read from disk. Raises InputError for a caption that cannot be read.
    """
    changes, unchanged = [], 0
    for image in images:
        before = cached[image] if cached and image in cached else read_caption(image)
        text = before or ""
        after = edit.changed(text)
        if after != text or (edit.rewrite and not is_plain_utf8(caption_bytes(image) or b"")):
            changes.append(Change(image=image, before=before, after=after))
        else:
            unchanged += 1
    return EditPlan(what=edit.what, changes=changes, unchanged=unchanged)


def is_plain_utf8(data: bytes) -> bool:
    """Return whether bytes are UTF-8 without a byte order mark."""
    try:
        return data.decode("utf-8") == decode_text(data)
    except UnicodeDecodeError:
        return False


def add(tags: str, position: TagPosition = TagPosition.BACK, trigger: str = "") -> Edit:
    """Return an edit that adds tags, separated by commas, where they are missing; raises InputError without a tag."""
    named = join_tags(_needed(tags, "tag to add"))
    return Edit(f"Added {named}", lambda caption: with_tags(caption, named, position, trigger), by_line=True)


def remove(tags: Iterable[str]) -> Edit:
    """Return an edit that removes whole tags, ignoring case; raises InputError without a tag."""
    named = _needed(join_tags(tags), "tag to remove")
    shown = join_tags(named[:5]) + (f" and {len(named) - 5} more" if len(named) > 5 else "")
    return Edit(f"Removed {shown}", lambda caption: without_tags(caption, named), by_line=True)


def replace(old: str, new: str) -> Edit:
    """Return an edit that replaces one whole tag by one or more; raises InputError unless `old` is exactly one tag."""
    wanted = _needed(old, "tag to replace")
    if len(wanted) > 1:
        raise InputError(
            f"{old!r} is more than one tag.", "Replace one at a time, or use a regular expression.", code="tags"
        )
    put = join_tags(_needed(new, "replacement tag"))
    return Edit(
        f"Replaced {wanted[0]} with {put}", lambda caption: with_replaced(caption, wanted[0], put), by_line=True
    )


def substitute(pattern: str, replacement: str) -> Edit:
    r"""Return an edit that replaces matches of a regular expression in whole captions; `\1` or `\g<name>` are groups.

    Raises InputError for an invalid pattern; the edit raises it if matching takes longer than `REGEX_SECONDS`.
    """
    if not pattern:
        raise InputError("The regular expression is empty.", "Give a pattern, for example smil(e|ing).", code="regex")
    deadline = time.monotonic() + REGEX_SECONDS
    try:
        compiled = regex.compile(pattern)
        compiled.sub(replacement, "")
    except (regex.error, IndexError) as error:
        raise InputError(
            f"The pattern {pattern!r} or its replacement {replacement!r} is not valid: {error}.",
            "Put a backslash before special characters that are meant literally.",
            code="regex",
        ) from error

    def change(caption: str) -> str:
        try:
            changed = compiled.sub(replacement, caption, timeout=max(deadline - time.monotonic(), 0.001))
        except TimeoutError as error:
            raise InputError(
                f"The pattern {pattern!r} takes longer than {REGEX_SECONDS:g} s.",
                "Avoid nested repetitions such as (a+)+.",
                code="regex",
            ) from error
        except (regex.error, IndexError) as error:
            raise InputError(
                f"The replacement {replacement!r} cannot be used: {error}.",
                "Refer only to groups of the pattern, such as \\1 for the first.",
                code="regex",
            ) from error
        return caption if changed == caption else join_tags(split_tags(changed))

    return Edit(f"Replaced {pattern} with {replacement or 'nothing'}", change, by_line=True)


def set_text(text: str, what: str) -> Edit:
    """Return an edit that replaces the whole caption by `text`."""
    return Edit(what, lambda caption: text)


def _needed(tags: str, meaning: str) -> list[str]:
    """Split tags; raise InputError if there are none, naming what they are for."""
    found = split_tags(tags)
    if not found:
        raise InputError(f"No {meaning} is given.", "Write one, or several separated by commas.", code="tags")
    return found
