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
from lora_studio.workspace.project import SET_FOLDER, Project


class Filter(StrEnum):
    """Filters of the grid, of which any number can be chosen; SET_ASIDE shows the images outside of the dataset."""

    NO_CAPTION = "No caption"
    NO_TRIGGER = "No trigger word"
    UNREVIEWED = "Unreviewed"
    FLAGGED = "To check"
    HIGH_LOSS = "High loss"
    SET_ASIDE = "Set aside"


class Sort(StrEnum):
    """Orders of the grid."""

    NAME = "By name"
    LARGEST = "Largest first"
    SMALLEST = "Smallest first"
    QUALITY = "Most issues first"
    SIMILARITY = "Most similar first"
    LOSS = "Highest loss first"


@dataclass(frozen=True)
class Selection:
    """Conditions that an image of the grid meets: filters, a tag (or its absence), a set, membership in `only`."""

    filters: frozenset[Filter] = frozenset()
    tag: str = ""
    without_tag: bool = False
    only: frozenset[Path] | None = None
    set_name: str = ""


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
    def set_name(self) -> str:
        """The name of its set folder, such as 10_saria; empty if it is in none."""
        folder = self.path.parent.name
        return folder if SET_FOLDER.match(folder) else ""

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

    @cached_property
    def flags(self) -> frozenset[Filter]:
        """The filters that show it, except those that depend on a run."""
        flags = {
            Filter.NO_CAPTION: not self.caption,
            Filter.NO_TRIGGER: bool(self.caption) and not self.has_trigger,
            Filter.UNREVIEWED: not self.reviewed,
            Filter.FLAGGED: bool(self.issues),
        }
        return frozenset(name for name, is_set in flags.items() if is_set)

    def meets(self, selection: Selection, *, any_set: bool = False) -> bool:
        """Return whether the image meets a selection apart from its filters; with `any_set`, whatever its set."""
        if selection.tag and (selection.tag.casefold() in self.folded_tags) == selection.without_tag:
            return False
        if selection.set_name and not any_set and self.set_name != selection.set_name:
            return False
        return selection.only is None or self.path in selection.only


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
