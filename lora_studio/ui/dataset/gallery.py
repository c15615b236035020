"""The images that the grid shows: filtered, sorted and counted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np

from lora_studio.dataset.duplicates.similarity import nearest_similarities
from lora_studio.dataset.tagging.cache import cached_features
from lora_studio.files import cached_by_stamp
from lora_studio.training.reporting.loss_by_image import MIN_SAMPLES, ImageLoss, read_image_losses
from lora_studio.ui.dataset.contents import Contents
from lora_studio.ui.dataset.image_item import Filter, ImageItem, Selection, Sort
from lora_studio.workspace.job_folder import IMAGE_LOSSES_FILE
from lora_studio.workspace.project import Home, Project, image_sets

Similarities = Mapping[str, float]  # of an image to the one that is most similar to it, by SHA-256


class SetCount(NamedTuple):
    """A set of the dataset, as in kohya's `10_name`: the name of its folder, its repeats, and its images."""

    name: str
    repeats: int
    images: int


@dataclass(frozen=True)
class Gallery:
    """A project's images with a selection and an order.

    `losses` are those of the latest run that has them. `similarities` is called for their order only.
    """

    contents: Contents
    selection: Selection = field(default_factory=Selection)
    sort: Sort = Sort.NAME
    losses: Mapping[Path, ImageLoss] = field(default_factory=dict, repr=False)
    similarities: Callable[[], Similarities] = field(default=dict, repr=False)

    @cached_property
    def items(self) -> list[ImageItem]:
        """All images in the order of the grid; those without a value for it come last."""
        items = self.contents.items
        if self.sort is Sort.NAME:
            return items
        ranks = self._ranks
        return sorted(items, key=lambda item: -ranks[item.id] if item.id in ranks else float("inf"))

    @cached_property
    def matching(self) -> list[ImageItem]:
        """The images that meet the selection, in the order of the grid."""
        return self.items if self.selection == Selection() else [item for item in self.items if self.matches(item)]

    @cached_property
    def counts(self) -> Counter[Filter]:
        """The number of images that each filter would show together with what is selected."""
        counts: Counter[Filter] = Counter()
        for item in self.contents.items:
            if item.meets(self.selection):
                flags = self.flags(item)
                if self.selection.filters <= flags:
                    counts.update(flags)
        return counts

    @cached_property
    def sets(self) -> list[SetCount]:
        """The sets of the dataset, with the images of each that meet the rest of the selection."""
        folders = Counter(item.set_name for item in self.contents.items if self.matches(item, any_set=True))
        found = image_sets(self.contents.project.dataset_dir)
        return [SetCount(known.path.name, known.repeats, folders[known.path.name]) for known in found]

    def flags(self, item: ImageItem) -> frozenset[Filter]:
        """Return all filters that show an image."""
        loss = self.losses.get(item.path)
        return item.flags | {Filter.HIGH_LOSS} if loss is not None and loss.significant else item.flags

    def matches(self, item: ImageItem, *, any_set: bool = False) -> bool:
        """Return whether an image meets the selection; with `any_set`, whatever its set."""
        return item.meets(self.selection, any_set=any_set) and self.selection.filters <= self.flags(item)

    def detail(self, item: ImageItem) -> str:
        """Return the value by which an image is sorted, as text; empty for names and images without one."""
        if self.sort is Sort.NAME or item.id not in self._ranks:
            return ""
        rank = self._ranks[item.id]
        match self.sort:
            case Sort.QUALITY:
                return f"{rank:.0f}"
            case Sort.SIMILARITY:
                return f"{rank:.0%}"
            case Sort.LOSS:
                return f"{rank - 1:+.0%}"
        return f"{item.info.width} × {item.info.height}" if item.info else ""

    def neighbour(self, identity: str, step: int) -> ImageItem | None:
        """Return the previous (-1) or next (1) image that matches, wrapping around at the ends.

        Returns the current image if no other one matches, and None if there are no images.
        """
        items = self.items
        if not items:
            return None
        position = next((index for index, item in enumerate(items) if item.id == identity), None)
        current = position if position is not None else (0 if step < 0 else -1)
        for distance in range(1, len(items) + 1):
            item = items[(current + step * distance) % len(items)]
            if self.matches(item):
                return item
        return items[max(current, 0)]

    def after_removal(self, removed: ImageItem, left: Contents) -> ImageItem | None:
        """Return the image that followed the removed one and is `left`, preferably one that matches the selection."""
        index = self.items.index(removed)
        following = [*self.items[index + 1 :], *self.items[:index]]
        existing = [left.by_id[item.id] for item in following if item.id in left.by_id]
        return next((item for item in existing if self.matches(item)), existing[0] if existing else None)

    @cached_property
    def _ranks(self) -> dict[str, float]:
        """The value by which an image comes early, by its id, of the images that have one."""
        match self.sort:
            case Sort.LARGEST | Sort.SMALLEST:
                sign = 1 if self.sort is Sort.LARGEST else -1
                known = [(item, item.info) for item in self.contents.items if item.info and item.info.readable]
                return {item.id: sign * info.width * info.height for item, info in known}
            case Sort.QUALITY:
                return {item.id: len(item.issues) for item in self.contents.items if item.issues}
            case Sort.SIMILARITY:
                found = self.similarities()
                scanned = [(item, item.info.sha256) for item in self.contents.items if item.info]
                return {item.id: found[sha256] for item, sha256 in scanned if sha256 in found}
            case Sort.LOSS:
                losses = self.losses
                return {item.id: losses[item.path].ratio for item in self.contents.items if item.path in losses}
        return {}


def latest_image_losses(project: Project) -> dict[Path, ImageLoss]:
    """Return the loss of each image in the latest run that has them; images without enough draws are left out."""
    for run in reversed(project.runs()):
        file = run.path / IMAGE_LOSSES_FILE
        if file.is_file() and (known := _read_losses(file)):
            return {project.dataset_dir / folder / name: loss for (folder, name), loss in known.items()}
    return {}


@cached_by_stamp(maxsize=8)
def _read_losses(file: Path) -> dict[tuple[str, str], ImageLoss]:
    """Return the losses of a run by the set and the name of the image: a project can be moved."""
    entries = [(Path(entry.image), entry) for entry in read_image_losses(file.parent) if entry.samples >= MIN_SAMPLES]
    return {(path.parent.name, path.name): entry for path, entry in entries}


def similarities_of(home: Home, contents: Contents) -> Similarities:
    """Return the similarity of each image to the nearest other one, by a tagger's features; empty before tagging."""
    hashes = tuple(sorted({item.info.sha256 for item in contents.items if item.info}))
    return _similarities(home, hashes, len(cached_features(home, hashes)))


@lru_cache(maxsize=2)
def _similarities(home: Home, hashes: tuple[str, ...], known: int) -> Similarities:
    """Return the similarities; cached until another number of images is known to the tagger."""
    features = cached_features(home, hashes)
    if known < 2:
        return {}
    nearest = nearest_similarities(np.stack(list(features.values())))
    return dict(zip(features, nearest.tolist(), strict=True))
