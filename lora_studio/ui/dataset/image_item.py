"""An image of the dataset with its caption, what the last scan found, and the filters of the grid."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property, lru_cache
from pathlib import Path

from lora_studio.dataset.captions.lint import Caption
from lora_studio.dataset.captions.text import deduplicated, split_tags, with_trigger
from lora_studio.dataset.images.decode import ImageInfo
from lora_studio.workspace.project import Project


class Filter(StrEnum):
    """Filters of the grid."""

    ALL = "All"
    NO_CAPTION = "No caption"
    NO_TRIGGER = "No trigger word"
    UNREVIEWED = "Unreviewed"
    FLAGGED = "To check"


@dataclass(frozen=True)
class Selection:
    """Conditions that an image of the grid meets: a filter, a tag (or its absence), membership in `only` if given."""

    filter: Filter = Filter.ALL
    tag: str = ""
    without_tag: bool = False
    only: frozenset[Path] | None = None


@dataclass(frozen=True)
class ImageItem:
    """An image of the dataset.

    `info` is None until the image is scanned. `proposal` is the reason why the scan proposes to set it aside, if it
    does. `kept` images are kept whatever the scan finds.
    """

    id: str
    path: Path
    caption: str | None
    info: ImageInfo | None
    proposal: str
    kept: bool
    trigger: str
    reviewed: bool = False

    @property
    def name(self) -> str:
        """The file's name as printable text."""
        return display_name(self.path)

    @cached_property
    def has_trigger(self) -> bool:
        """Return whether the caption begins with the trigger word."""
        return has_trigger(self.caption or "", self.trigger)

    @cached_property
    def tags(self) -> list[str]:
        """The caption's tags as they are written, each once."""
        return deduplicated(split_tags(self.caption or ""))

    @cached_property
    def folded_tags(self) -> frozenset[str]:
        """The caption's tags in lower case."""
        return frozenset(tag.casefold() for tag in self.tags)

    @cached_property
    def lint_input(self) -> Caption:
        """The caption as the caption checks read it; raises InputError if it cannot be read."""
        return Caption.of(self.path)

    @cached_property
    def issues(self) -> list[str]:
        """Messages about what the scan found; none if the image is marked as kept."""
        if self.kept:
            return []
        proposal = [self.proposal] if self.proposal else []
        issues = [issue.message for issue in self.info.issues] if self.info else []
        return [*proposal, *(message for message in issues if message not in proposal)]

    def matches(self, selection: Selection) -> bool:
        """Return whether the image meets all conditions of a selection."""
        if selection.tag and (selection.tag.casefold() in self.folded_tags) == selection.without_tag:
            return False
        if selection.only is not None and self.path not in selection.only:
            return False
        match selection.filter:
            case Filter.NO_CAPTION:
                return not self.caption
            case Filter.NO_TRIGGER:
                return bool(self.caption) and not self.has_trigger
            case Filter.UNREVIEWED:
                return not self.reviewed
            case Filter.FLAGGED:
                return bool(self.issues)
        return True


def image_id(project: Project, path: Path) -> str:
    """Return a short id of a project's file for the browser. It reveals no path; the handler looks it up."""
    within = os.fspath(path).removeprefix(os.fspath(project.path))
    return hashlib.sha256(os.fsencode(within)).hexdigest()[:16]


def display_name(path: Path) -> str:
    """Return a file's name as text; bytes that are not valid UTF-8 become question marks."""
    return os.fsencode(path.name).decode("utf-8", errors="replace")


def has_trigger(caption: str, trigger: str) -> bool:
    """Return whether a caption begins with the trigger word; true for every caption if there is no trigger word."""
    trigger_tags = _folded_tags(trigger)
    if _leading_text(caption, len(trigger_tags)) == trigger_tags:
        return True
    expected, actual = (
        split_tags(text.casefold())[: len(trigger_tags)] for text in (with_trigger(caption, trigger), caption)
    )
    return expected == actual


@lru_cache(maxsize=16)
def _folded_tags(trigger: str) -> list[str]:
    return split_tags(trigger.casefold())


def _leading_text(caption: str, count: int) -> list[str]:
    """Return the first `count` comma-separated parts in lower case, a fast approximation of `split_tags`."""
    return [" ".join(tag.split()) for tag in caption.casefold().split(",", count)[:count]]
