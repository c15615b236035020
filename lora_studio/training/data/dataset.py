"""The training dataset: images with captions, buckets and repeats, and the batches of an epoch."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeVar

import torch

from lora_studio.dataset.buckets import Placement, Size, place_for
from lora_studio.dataset.captions.text import read_caption
from lora_studio.dataset.images.decode import ImageInfo, image_info, images_in
from lora_studio.dataset.images.masks import MaskSource, mask_source
from lora_studio.dataset.images.sets import loose_images
from lora_studio.dataset.manifest import Manifest
from lora_studio.dataset.validation_split import choose_validation_images
from lora_studio.errors import InputError
from lora_studio.planning.steps import StepCount, balanced_repeats, count_steps
from lora_studio.settings.recipe import Recipe
from lora_studio.training.data.rng import generator
from lora_studio.workspace.project import ImageSet, image_sets

Batch = list["TrainItem"]
T = TypeVar("T")


@dataclass(frozen=True)
class TrainItem:
    """One image with its caption, bucket and repeats.

    `size` is (width, height) in px after EXIF rotation and before scaling. `has_caption` is False if `caption` is a
    substitute. `flipped` mirrors the image after cropping; `prior` marks regularisation images.
    """

    path: Path
    sha256: str
    size: Size
    placement: Placement
    caption: str
    has_caption: bool
    repeats: int
    folder: str
    mask: MaskSource | None = None
    prior: bool = False
    flipped: bool = False

    @property
    def time_ids(self) -> tuple[int, ...]:
        """SDXL's size conditioning: (original height, width, crop top, left, target height, width).

        See Podell et al. 2023 (arXiv:2307.01952), section 2.2; the original size is that before scaling. For a flipped
        image, crop left is what the crop removes at the right of the unflipped one.
        """
        (width, height), (left, top), (target_width, target_height) = (
            self.size,
            self.placement.crop,
            self.placement.bucket,
        )
        if self.flipped:
            left = self.placement.scaled[0] - target_width - left
        return height, width, top, left, target_height, target_width


@dataclass(frozen=True)
class Dataset:
    """The readable images of a folder: `items` for training, `validation_items` for the validation loss only.

    `regularization` are images of another folder, with repeats that balance them against `items`. `unreadable` has one
    message per file that could not be read, `outside_sets` are images outside the N_name folders.
    """

    items: list[TrainItem]
    unreadable: list[str]
    outside_sets: list[Path] = field(default_factory=list)
    regularization: list[TrainItem] = field(default_factory=list)
    validation_items: list[TrainItem] = field(default_factory=list)

    @property
    def epoch_items(self) -> list[TrainItem]:
        """All items that an epoch trains on, without repeats: the training set, then the regularisation set."""
        return [*self.items, *self.regularization]

    def step_count(self, recipe: Recipe) -> StepCount:
        """Return the steps of a run, counted as the plan counts them. Raises InputError if there are no images."""
        samples: Counter[Size] = Counter()
        for item in self.epoch_items:
            samples[item.placement.bucket] += item.repeats
        return count_steps(
            samples,
            batch_size=recipe.batch_size,
            epochs=recipe.epochs,
            gradient_accumulation_steps=recipe.gradient_accumulation_steps,
            max_train_steps=recipe.max_train_steps,
        )

    @property
    def fingerprint(self) -> str:
        """A hash of everything that determines the order and content of samples; file and folder names do not."""
        lines = [_fingerprint_line(item) for item in self.items]
        lines += [f"prior {_fingerprint_line(item)}" for item in self.regularization]
        lines += [f"held out {_fingerprint_line(item)}" for item in self.validation_items]
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def _fingerprint_line(item: TrainItem) -> str:
    mask = f" {item.mask.sha256}" if item.mask else ""
    return f"{item.sha256} {item.placement} {item.repeats} {item.caption}{mask}"


def read_dataset(
    folder: Path,
    recipe: Recipe,
    trigger_word: str = "",
    *,
    regularization: Path | None = None,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> Dataset:
    """Read sizes, hashes, masks and captions of the images in `folder` and its N_name subfolders, in order of name.

    An image without a caption gets the trigger word as its caption, or the name of its folder if there is no trigger
    word. The recipe's repeats, if set, override those of the folders. Images of the folder `regularization` without a
    caption get the name of their folder, never the trigger word.
    """
    found = _find_images(folder, prior=False)
    found += _find_images(regularization, prior=True) if regularization is not None else []
    items, unreadable = [], []
    for done, (group, path, prior) in enumerate(found):
        on_progress(done, len(found))
        info, _ = image_info(path, min_side=64)
        if not info.readable:
            unreadable += [issue.message for issue in info.issues]
            continue
        try:
            items.append(_read_item(group, info, recipe, "" if prior else trigger_word, prior=prior))
        except InputError as error:
            unreadable.append(str(error))
    own = [item for item in items if not item.prior]
    validation = _validation_paths(folder, own, recipe)
    trained = [item for item in own if item.path not in validation]
    return Dataset(
        trained,
        unreadable,
        outside_sets=loose_images(folder),
        regularization=_balance([item for item in items if item.prior], sum(item.repeats for item in trained)),
        validation_items=[item for item in own if item.path in validation],
    )


def _find_images(folder: Path, *, prior: bool) -> list[tuple[ImageSet, Path, bool]]:
    return [(group, path, prior) for group in image_sets(folder) for path in images_in(group.path)]


def _read_item(group: ImageSet, info: ImageInfo, recipe: Recipe, trigger_word: str, *, prior: bool) -> TrainItem:
    caption = read_caption(info.path)
    size = info.width, info.height
    return TrainItem(
        path=info.path,
        sha256=info.sha256,
        size=size,
        placement=place_for(recipe, *size),
        caption=" ".join(caption.split()) if caption else trigger_word or group.concept,
        has_caption=bool(caption),
        repeats=group.repeats if prior else recipe.repeats or group.repeats,
        folder=group.path.name,
        mask=mask_source(info, recipe.masked_loss),
        prior=prior,
    )


def _validation_paths(folder: Path, items: list[TrainItem], recipe: Recipe) -> frozenset[Path]:
    if not recipe.validation_split:
        return frozenset()
    images = [(item.path, item.sha256) for item in items]
    return choose_validation_images(
        images, Manifest.of(folder).duplicates, share=recipe.validation_split, seed=recipe.seed
    )


def _balance(items: list[TrainItem], samples: int) -> list[TrainItem]:
    """Return regularisation items with repeats that balance `samples` training samples, without superfluous items."""
    repeats = balanced_repeats([item.repeats for item in items], samples)
    return [replace(item, repeats=count) for item, count in zip(items, repeats, strict=True) if count]


def epoch_steps(dataset: Dataset, recipe: Recipe, epoch: int) -> list[list[Batch]]:
    """Return the steps of an epoch (counted from 0), each a list of batches; a batch is of one bucket.

    Each image occurs as often as its repeats. The images within a bucket and the batches are shuffled in every epoch,
    by seed and epoch alone.
    """
    buckets: dict[Size, list[TrainItem]] = defaultdict(list)
    for item in dataset.epoch_items:
        buckets[item.placement.bucket] += [item] * item.repeats
    batches: list[Batch] = []
    for number, bucket in enumerate(sorted(buckets)):
        items = _shuffled(buckets[bucket], generator(recipe.seed, "bucket", epoch, number))
        batches += [items[start : start + recipe.batch_size] for start in range(0, len(items), recipe.batch_size)]
    batches = _shuffled(batches, generator(recipe.seed, "batches", epoch))
    group = recipe.gradient_accumulation_steps
    return [batches[start : start + group] for start in range(0, len(batches), group)]


def _shuffled(values: list[T], source: torch.Generator) -> list[T]:
    return [values[index] for index in torch.randperm(len(values), generator=source).tolist()]
