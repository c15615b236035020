"""A project's dataset as the page shows it: each image with its caption, what the last scan said, and what to do."""

from __future__ import annotations

import hashlib
import os
from bisect import insort
from collections import Counter
from collections.abc import Iterable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cached_property, lru_cache
from pathlib import Path

from lora_studio import guide
from lora_studio.dataset.buckets import Bucket, bucket_plan
from lora_studio.dataset.captions.lint import Caption, Finding, lint_captions
from lora_studio.dataset.captions.statistics import SplitSuggestion, TagTable, suggest_split
from lora_studio.dataset.captions.text import CAPTION_SUFFIXES, deduplicated, read_caption, split_tags, with_trigger
from lora_studio.dataset.duplicates.find import DuplicateGroup, DuplicateKind
from lora_studio.dataset.images.decode import ImageInfo, is_training_image
from lora_studio.dataset.images.sets import project_images
from lora_studio.dataset.manifest import Manifest
from lora_studio.errors import InputError
from lora_studio.settings.recipe import Recipe
from lora_studio.ui.dataset.stat_cache import ProjectCache, own_files
from lora_studio.ui.gc_freeze import gc_frozen
from lora_studio.workspace.project import DEFAULT_REPEATS, SET_FOLDER, Project

MAX_PARTIAL_UPDATE = 1_000  # changed images; beyond that the project is loaded again
FROM_CAPTIONS = ["tag_table", "findings", "without_trigger"]  # what contents remember that captions and names decide
FROM_IMAGES = ["indices", "sizes", "unscanned", "split_suggestion"]  # what images alone decide


class Filter(StrEnum):
    """Which images the grid shows."""

    ALL = "All"
    NO_CAPTION = "No caption"
    NO_TRIGGER = "No trigger word"
    UNREVIEWED = "Unreviewed"
    FLAGGED = "To look at"


@dataclass(frozen=True)
class Selection:
    """Which images are to be seen: those of a filter that have a tag too, or lack it, and are among `only` if given."""

    filter: Filter = Filter.ALL
    tag: str = ""
    without_tag: bool = False
    only: frozenset[Path] | None = None


@dataclass(frozen=True)
class ImageItem:
    """One image. `info` is None until it was scanned; `proposal` says why the scan would set it aside, if it would."""

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
        """The file's name as text that any page can show."""
        return display_name(self.path)

    @cached_property
    def has_trigger(self) -> bool:
        """Whether the caption begins with the trigger word."""
        return has_trigger(self.caption or "", self.trigger)

    @cached_property
    def tags_once(self) -> list[str]:
        """The caption's tags as they are written, each once."""
        return deduplicated(split_tags(self.caption or ""))

    @cached_property
    def tags(self) -> frozenset[str]:
        """The caption's tags in lower case."""
        return frozenset(tag.casefold() for tag in self.tags_once)

    @cached_property
    def lint_input(self) -> Caption:
        """The caption as the lint reads it; raises InputError if it cannot be read."""
        return Caption.of(self.path)

    @cached_property
    def issues(self) -> list[str]:
        """What there is to look at, in words: what the scan found, unless the image is marked to be kept."""
        if self.kept:
            return []
        copy = [self.proposal] if self.proposal else []
        issues = [issue.message for issue in self.info.issues] if self.info else []
        return [*copy, *(message for message in issues if message not in copy)]

    def matches(self, selection: Selection) -> bool:
        """Whether it is to be seen."""
        if selection.tag and (selection.tag.casefold() in self.tags) == selection.without_tag:
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


@dataclass(frozen=True)
class Contents:
    """All images of a project in order, the groups of copies, and what the scan proposes."""

    project: Project
    trigger: str
    items: list[ImageItem]
    groups: list[DuplicateGroup]
    manifest: Manifest = field(repr=False)

    @classmethod
    def of(cls, project: Project) -> Contents:
        """Look at a project's dataset as it is on disk now; reads no image. Remembered while nothing changes there."""
        return _cache.get(project)

    @classmethod
    def load(cls, project: Project) -> Contents:
        """Look at a project's dataset on disk."""
        paths = project_images(project)
        with gc_frozen() if len(paths) > MAX_PARTIAL_UPDATE else nullcontext():
            manifest = load_manifest(project)
            trigger = project.info().trigger_word
            proposed = {item.path: item.reason for item in manifest.proposals()}
            items = [_item(project, path, trigger, manifest, proposed) for path in paths]
            return cls(project, trigger, items, _groups(manifest, {item.path for item in items}, proposed), manifest)

    def updated(self, changed: set[str]) -> Contents | None:
        """The contents after some files (images, captions, the marks) changed; None if there is more to look at.

        What did not change stays the same object, with what is remembered of it.
        """
        paths = [Path(path) for path in changed - {*own_files(self.project)}]
        images = {path for path in paths if is_training_image(path.name)}
        settings = str(self.project.path / "project.json") in changed
        if len(images) > MAX_PARTIAL_UPDATE or (settings and self.project.info().trigger_word != self.trigger):
            return None
        old, manifest = self.manifest, self.manifest.refreshed(self.project.path, images)
        if manifest is None:
            return None
        before = {item.path: item.proposal for item in self.proposed}
        same = not images and manifest.marks.kept == old.marks.kept
        proposed = before if same else {item.path: item.reason for item in manifest.proposals()}
        stems = {_stem(path) for path in paths if path.suffix in CAPTION_SUFFIXES}
        marks, before_marks = manifest.marks, old.marks
        marked = (marks.kept ^ before_marks.kept) | (marks.reviewed ^ before_marks.reviewed)
        touched = images | {path for path, _ in proposed.items() ^ before.items()}
        if stems:
            touched |= {item.path for item in self.items if _stem(item.path) in stems}
        if marked:
            touched |= {path for path, info in manifest.infos.items() if info.sha256 in marked}
        new = {path: _item(self.project, path, self.trigger, manifest, proposed) for path in touched if path.is_file()}
        items = list(self.items)
        for path in sorted(touched & self.by_path.keys(), key=lambda path: -self.index(self.by_path[path])):
            index = self.index(self.by_path[path])
            items[index : index + 1] = [new.pop(path)] if path in new else []
        for item in new.values():
            insort(items, item, key=lambda item: (item.path.parent, item.path))
        groups = self.groups if same else _groups(manifest, {item.path for item in items}, proposed)
        contents = Contents(self.project, self.trigger, items, groups, manifest)
        kept = ([] if images else FROM_IMAGES) + ([] if images or stems else FROM_CAPTIONS)
        kept += [] if images or settings else ["buckets"]
        contents.__dict__.update({name: self.__dict__[name] for name in kept if name in self.__dict__})
        return contents

    def after_change(self, images: Iterable[Path] = ()) -> Contents:
        """The contents after the studio itself changed marks, or these images or their captions.

        What others changed is seen when the contents are asked for the next time.
        """
        images = list(images)
        if len(images) > MAX_PARTIAL_UPDATE or not all(
            image.is_relative_to(self.project.dataset_dir) for image in images
        ):
            return _cache.get(self.project)
        beside = [os.fspath(path) for image in images for path in (image, *map(image.with_suffix, CAPTION_SUFFIXES))]
        return _cache.get(self.project, beside)

    def index(self, item: ImageItem) -> int:
        """Which of the images it is, from 0."""
        return self.indices[item.id]

    @cached_property
    def indices(self) -> dict[str, int]:
        """Which of the images each one is, from 0, by their ids."""
        return {item.id: index for index, item in enumerate(self.items)}

    @cached_property
    def sizes(self) -> Counter[tuple[int, int]]:
        """How many images have each size in pixels."""
        return Counter((item.info.width, item.info.height) for item in self.items if item.info and item.info.readable)

    @cached_property
    def captioned(self) -> list[ImageItem]:
        """Images that have a caption."""
        return [item for item in self.items if item.caption]

    @cached_property
    def without_trigger(self) -> int:
        """How many captions do not begin with the trigger word."""
        return sum(not item.has_trigger for item in self.captioned)

    @cached_property
    def by_id(self) -> dict[str, ImageItem]:
        """The images by their ids."""
        return {item.id: item for item in self.items}

    @cached_property
    def by_path(self) -> dict[Path, ImageItem]:
        """The images by their paths."""
        return {item.path: item for item in self.items}

    @cached_property
    def unscanned(self) -> int:
        """How many images were not scanned as they are now."""
        return sum(item.info is None for item in self.items)

    @cached_property
    def proposed(self) -> list[ImageItem]:
        """What the scan would set aside: copies and what cannot be read."""
        return [item for item in self.items if item.proposal]

    @cached_property
    def duplicates(self) -> set[Path]:
        """The images that are copies of another one."""
        return {path for group in self.groups for path in group.reject}

    @cached_property
    def similar_groups(self) -> list[DuplicateGroup]:
        """Groups of similar images to look at, without those that were marked to be kept."""
        open_to_doubt = {item.path for item in self.items if not item.kept}
        groups = [group for group in self.manifest.groups if group.kind is DuplicateKind.SIMILAR]
        return [left for group in groups if group.keep in self.by_path and (left := _proposed(group, open_to_doubt))]

    @cached_property
    def flagged(self) -> list[ImageItem]:
        """Images with something to look at that are no copies."""
        return [item for item in self.items if item.issues and item.path not in self.duplicates]

    def item(self, identity: object) -> ImageItem:
        """The image of an id from the browser; raises InputError if it is gone."""
        found = self.by_id.get(identity) if isinstance(identity, str) else None
        if found is None:
            raise InputError("That image is no longer in the dataset.", "Choose another one.", code="no_image")
        return found

    @cached_property
    def tag_table(self) -> TagTable:
        """The captions' tags, to be counted."""
        return TagTable({item.path: item.tags_once for item in self.items if item.tags_once})

    @cached_property
    def findings(self) -> list[Finding]:
        """What the lint says of the captions."""
        return lint_captions([item.lint_input for item in self.items], self.trigger)

    @cached_property
    def recipe(self) -> Recipe:
        """The project's recipe; before there is one, the guide's at the base's own resolution."""
        info = self.project.info()
        base = guide.find_base(info.base)
        return info.recipe or Recipe.parse({"resolution": base.resolution} if base else {})

    @cached_property
    def buckets(self) -> list[Bucket]:
        """Which images fall into which bucket with the project's recipe."""
        return bucket_plan(
            (
                (item.path, (item.info.width, item.info.height), _repeats(str(item.path).rpartition(os.sep)[0]))
                for item in self.items
                if item.info and item.info.readable
            ),
            self.recipe,
        )

    @cached_property
    def split_suggestion(self) -> SplitSuggestion:
        """What the guide would hold out of training."""
        hashed = [(item.path, self.manifest.sha256_of(item.path)) for item in self.items]
        return suggest_split(hashed, self.manifest.duplicates, seed=Recipe().seed)

    @cached_property
    def reviewed(self) -> int:
        """How many captions were read."""
        return sum(item.reviewed for item in self.items)

    def matching(self, selection: Selection) -> list[ImageItem]:
        """What the grid shows."""
        return self.items if selection == Selection() else [item for item in self.items if item.matches(selection)]


def load_manifest(project: Project) -> Manifest:
    """What the last scan of a project found."""
    return Manifest.load(project.path, project.dataset_dir)


_cache = ProjectCache(Contents.load, Contents.updated)


def image_id(project: Project, path: Path) -> str:
    """A short name for a file of the project, for the browser: it says nothing, and is looked up."""
    within = os.fspath(path).removeprefix(os.fspath(project.path))
    return hashlib.sha256(os.fsencode(within)).hexdigest()[:16]


def display_name(path: Path) -> str:
    """A file's name as text; bytes that are no text become question marks."""
    return os.fsencode(path.name).decode("utf-8", errors="replace")


def has_trigger(caption: str, trigger: str) -> bool:
    """Whether a caption begins with the trigger word; without one, any caption will do."""
    first = _first_tags(trigger)
    if _start(caption, first) == first:
        return True
    wanted, given = (split_tags(text.casefold())[: len(first)] for text in (with_trigger(caption, trigger), caption))
    return wanted == given


@lru_cache(maxsize=16)
def _first_tags(trigger: str) -> list[str]:
    return split_tags(trigger.casefold())


def _start(caption: str, tags: list[str]) -> list[str]:
    """What stands in the places of these tags, in lower case; the rest of the caption is not looked at."""
    return [" ".join(tag.split()) for tag in caption.casefold().split(",", len(tags))[: len(tags)]]


def _item(project: Project, path: Path, trigger: str, manifest: Manifest, proposed: Mapping[Path, str]) -> ImageItem:
    info = manifest.infos.get(path)
    return ImageItem(
        id=image_id(project, path),
        path=path,
        caption=_caption(path),
        info=info,
        proposal=proposed.get(path, ""),
        kept=info is not None and info.sha256 in manifest.marks.kept,
        trigger=trigger,
        reviewed=info is not None and info.sha256 in manifest.marks.reviewed,
    )


def _groups(manifest: Manifest, there: set[Path], proposed: Mapping[Path, str]) -> list[DuplicateGroup]:
    """The groups of copies that are there and proposed to be set aside."""
    left = there & proposed.keys()
    return [found for group in manifest.groups if group.keep in there and (found := _proposed(group, left))]


@lru_cache(maxsize=256)
def _repeats(folder: str) -> int:
    found = SET_FOLDER.match(Path(folder).name)
    return int(found[1]) if found else DEFAULT_REPEATS


def _stem(path: Path) -> str:
    """What an image and its captions have in common."""
    return str(path).rpartition(".")[0]


def _caption(path: Path) -> str | None:
    try:
        return read_caption(path)
    except InputError:
        return None


def _proposed(group: DuplicateGroup, proposed: set[Path]) -> DuplicateGroup | None:
    """The group with those copies that are still proposed; None if there are none."""
    copies = [(path, why) for path, why in zip(group.reject, group.reasons, strict=True) if path in proposed]
    if not copies:
        return None
    return group.model_copy(update={"reject": [path for path, _ in copies], "reasons": [why for _, why in copies]})
