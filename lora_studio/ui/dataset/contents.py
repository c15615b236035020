"""The contents of a project's dataset: its images, groups of duplicates, and statistics, cached until files change."""

from __future__ import annotations

import os
from bisect import insort
from collections.abc import Iterable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from lora_studio.dataset.captions.extension import suffixes_in
from lora_studio.dataset.captions.text import read_caption
from lora_studio.dataset.duplicates.find import DuplicateGroup, DuplicateKind
from lora_studio.dataset.images.decode import is_training_image
from lora_studio.dataset.images.sets import project_images
from lora_studio.dataset.manifest import Manifest
from lora_studio.errors import InputError
from lora_studio.ui.dataset.derived import BucketStatistics, CaptionStatistics, ImageStatistics
from lora_studio.ui.dataset.image_item import ImageItem, image_id
from lora_studio.ui.dataset.stat_cache import ProjectCache, own_files
from lora_studio.ui.gc_freeze import gc_frozen
from lora_studio.workspace.project import Project

MAX_PARTIAL_UPDATE = 1_000  # changed images; beyond that the project is loaded again


@dataclass(frozen=True)
class Contents:
    """The images of a project in order, and the groups of duplicates of which the scan proposes to set some aside.

    Contents are immutable. After a change of files a new object is made that shares the items and statistics that the
    change does not affect.
    """

    project: Project
    trigger: str
    items: list[ImageItem]
    groups: list[DuplicateGroup]
    manifest: Manifest = field(repr=False)
    images: ImageStatistics = field(repr=False, compare=False)
    captions: CaptionStatistics = field(repr=False, compare=False)
    bucketing: BucketStatistics = field(repr=False, compare=False)
    caption_suffixes: tuple[str, ...]

    @classmethod
    def of(cls, project: Project) -> Contents:
        """Return the contents of a project's dataset on disk. Images are not read, unchanged files neither."""
        return _cache.get(project)

    @classmethod
    def load(cls, project: Project) -> Contents:
        """Read the contents of a project's dataset from disk."""
        paths = project_images(project)
        with gc_frozen() if len(paths) > MAX_PARTIAL_UPDATE else nullcontext():
            manifest = load_manifest(project)
            trigger = project.info().trigger_word
            proposed = {item.path: item.reason for item in manifest.proposals()}
            suffixes = suffixes_in(project.dataset_dir)
            items = [_item(project, path, trigger, suffixes, manifest, proposed) for path in paths]
            images = ImageStatistics(items, manifest)
            return cls(
                project,
                trigger,
                items,
                _groups(manifest, {item.path for item in items}, proposed),
                manifest,
                images,
                CaptionStatistics(items, trigger),
                BucketStatistics(images, project),
                suffixes,
            )

    def updated(self, changed: set[str]) -> Contents | None:
        """Return the contents after some files changed (images, captions, marks); None if everything must be read.

        Items that are unaffected stay the same objects, with the values that they cached.
        """
        paths = [Path(path) for path in changed - {*own_files(self.project)}]
        images = {path for path in paths if is_training_image(path.name)}
        settings_changed = str(self.project.path / "project.json") in changed
        if len(images) > MAX_PARTIAL_UPDATE or (settings_changed and self._reads_captions_differently()):
            return None
        manifest = self.manifest.refreshed(self.project.path, images)
        if manifest is None:
            return None
        old_proposed = {item.path: item.proposal for item in self.proposed}
        proposals_changed = bool(images) or manifest.marks.kept != self.manifest.marks.kept
        proposed = {item.path: item.reason for item in manifest.proposals()} if proposals_changed else old_proposed
        suffixes = self.caption_suffixes
        stems = {str(path)[: -len(suffix)] for path in paths for suffix in suffixes if path.name.endswith(suffix)}
        affected = images | {path for path, _ in proposed.items() ^ old_proposed.items()}
        affected |= self._with_stems(stems) | self._with_changed_marks(manifest)
        items = self._replaced(affected, manifest, proposed)
        groups = _groups(manifest, {item.path for item in items}, proposed) if proposals_changed else self.groups
        captions_changed = bool(images or stems)
        placed_anew = bool(images) or manifest.marks.focus != self.manifest.marks.focus
        statistics = ImageStatistics(items, manifest) if placed_anew else self.images
        return Contents(
            self.project,
            self.trigger,
            items,
            groups,
            manifest,
            statistics,
            CaptionStatistics(items, self.trigger) if captions_changed else self.captions,
            BucketStatistics(statistics, self.project) if placed_anew or settings_changed else self.bucketing,
            suffixes,
        )

    def _reads_captions_differently(self) -> bool:
        """Return whether the trigger word or the extension of captions has changed."""
        is_same_word = self.project.info().trigger_word == self.trigger
        return not is_same_word or suffixes_in(self.project.dataset_dir) != self.caption_suffixes

    def _with_stems(self, stems: set[str]) -> set[Path]:
        """Return the images of captions with these paths without suffix."""
        return {item.path for item in self.items if _stem(item.path) in stems} if stems else set()

    def _with_changed_marks(self, manifest: Manifest) -> set[Path]:
        """Return the images whose marks differ in another manifest."""
        marks, old = manifest.marks, self.manifest.marks
        hashes = (marks.kept ^ old.kept) | (marks.reviewed ^ old.reviewed)
        hashes |= {sha256 for sha256, _ in marks.reviewed_captions.items() ^ old.reviewed_captions.items()}
        return {path for path, info in manifest.infos.items() if info.sha256 in hashes} if hashes else set()

    def _replaced(self, affected: set[Path], manifest: Manifest, proposed: Mapping[Path, str]) -> list[ImageItem]:
        """Return the items with those of the affected paths read again, added or removed."""
        new = {
            path: _item(self.project, path, self.trigger, self.caption_suffixes, manifest, proposed)
            for path in affected
            if path.is_file()
        }
        items = list(self.items)
        existing = [self.by_path[path] for path in affected & self.by_path.keys()]
        for item in sorted(existing, key=self.index, reverse=True):
            index = self.index(item)
            items[index : index + 1] = [new.pop(item.path)] if item.path in new else []
        for item in new.values():
            insort(items, item, key=lambda item: (item.path.parent, item.path))
        return items

    def after_change(self, images: Iterable[Path] = ()) -> Contents:
        """Return the contents after the studio itself changed marks, or these images or their captions.

        Only their files are checked. Changes by other programs are found by the next `of`.
        """
        images = list(images)
        in_dataset = all(image.is_relative_to(self.project.dataset_dir) for image in images)
        if len(images) > MAX_PARTIAL_UPDATE or not in_dataset:
            return _cache.get(self.project)
        suffixes = self.caption_suffixes
        files = [os.fspath(path) for image in images for path in (image, *map(image.with_suffix, suffixes))]
        return _cache.get(self.project, files)

    def index(self, item: ImageItem) -> int:
        """Return the position of an image, from 0."""
        return self.images.indices[item.id]

    def item(self, identity: object) -> ImageItem:
        """Return the image with an id from the browser; raise InputError if it no longer exists."""
        found = self.by_id.get(identity) if isinstance(identity, str) else None
        if found is None:
            raise InputError("That image is no longer in the dataset.", "Choose another one.", code="no_image")
        return found

    @cached_property
    def by_id(self) -> dict[str, ImageItem]:
        """The images by id."""
        return {item.id: item for item in self.items}

    @cached_property
    def by_path(self) -> dict[Path, ImageItem]:
        """The images by path."""
        return {item.path: item for item in self.items}

    @cached_property
    def captioned(self) -> int:
        """The number of images with a caption."""
        return sum(bool(item.caption) for item in self.items)

    @cached_property
    def reviewed(self) -> int:
        """The number of images marked as reviewed."""
        return sum(item.reviewed for item in self.items)

    @cached_property
    def proposed(self) -> list[ImageItem]:
        """The images that the scan proposes to set aside: duplicates and unreadable ones."""
        return [item for item in self.items if item.proposal]

    @cached_property
    def duplicates(self) -> set[Path]:
        """The images that are duplicates of an image to keep."""
        return {path for group in self.groups for path in group.reject}

    @cached_property
    def similar_groups(self) -> list[DuplicateGroup]:
        """The groups of similar images, without those marked as kept."""
        unkept = {item.path for item in self.items if not item.kept}
        groups = [group for group in self.manifest.groups if group.kind is DuplicateKind.SIMILAR]
        return [left for group in groups if group.keep in self.by_path and (left := _restricted(group, unkept))]

    @cached_property
    def flagged(self) -> list[ImageItem]:
        """The images with issues that are not duplicates."""
        return [item for item in self.items if item.issues and item.path not in self.duplicates]


def load_manifest(project: Project) -> Manifest:
    """Load the last scan and the marks of a project."""
    return Manifest.load(project.path, project.dataset_dir)


_cache = ProjectCache(Contents.load, Contents.updated)


def _item(
    project: Project,
    path: Path,
    trigger: str,
    suffixes: tuple[str, ...],
    manifest: Manifest,
    proposed: Mapping[Path, str],
) -> ImageItem:
    info, caption = manifest.infos.get(path), _caption(path, suffixes)
    return ImageItem(
        id=image_id(project, path),
        path=path,
        caption=caption,
        info=info,
        proposal=proposed.get(path, ""),
        kept=info is not None and info.sha256 in manifest.marks.kept,
        trigger=trigger,
        reviewed=info is not None and manifest.marks.is_reviewed(info.sha256, caption),
    )


def _groups(manifest: Manifest, paths: set[Path], proposed: Mapping[Path, str]) -> list[DuplicateGroup]:
    """Return the groups of duplicates with those of their images that exist and are proposed to be set aside."""
    left = paths & proposed.keys()
    return [found for group in manifest.groups if group.keep in paths and (found := _restricted(group, left))]


def _restricted(group: DuplicateGroup, paths: set[Path]) -> DuplicateGroup | None:
    """Return a group with those of its duplicates that are among `paths`; None if there are none."""
    left = [(path, reason) for path, reason in zip(group.reject, group.reasons, strict=True) if path in paths]
    if not left:
        return None
    return group.model_copy(update={"reject": [path for path, _ in left], "reasons": [reason for _, reason in left]})


def _stem(path: Path) -> str:
    """Return a path without its suffix, as an image and its captions share it."""
    return str(path).rpartition(".")[0]


def _caption(path: Path, suffixes: tuple[str, ...]) -> str | None:
    try:
        return read_caption(path, suffixes)
    except InputError:
        return None
