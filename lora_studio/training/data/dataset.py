"""The training dataset: images with captions, buckets and repeats, and the batches of an epoch."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TypeVar

import torch

from lora_studio.dataset.buckets import Placement, Size
from lora_studio.dataset.images.decode import decode
from lora_studio.dataset.images.header_cache import MIN_DECODED_SIDE
from lora_studio.dataset.images.masks import MaskSource
from lora_studio.dataset.training_images import DatasetImage, RepeatedImage, read_images
from lora_studio.errors import InputError
from lora_studio.planning.steps import StepCount, count_steps
from lora_studio.settings.recipe import Recipe
from lora_studio.settings.subsets import Subset
from lora_studio.training.data.rng import generator

Batch = list["TrainItem"]
MAX_UNREADABLE_SHOWN = 5  # unreadable images that are listed one by one
T = TypeVar("T")


@dataclass(frozen=True)
class TrainItem:
    """One image with its caption, bucket and repeats.

    `size` is (width, height) in px after EXIF rotation and before scaling. `has_caption` is False if `caption` is a
    substitute. `flipped` mirrors the image after cropping; `prior` marks regularisation images. `template` is the text
    from which captions are drawn, if it is not `caption` itself: see `dataset.captions.template`. `settings` are those
    of the image's subset, None for the job's recipe.
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
    template: str = ""
    settings: Recipe | None = field(default=None, compare=False)

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
    return f"{item.sha256} {item.placement} {item.repeats} {item.template or item.caption}{mask}"


def read_dataset(
    folder: Path,
    recipe: Recipe,
    trigger_word: str = "",
    *,
    regularization: Path | None = None,
    subsets: Sequence[Subset] = (),
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> Dataset:
    """Read sizes, hashes, masks and captions of the images in `folder` and its N_name subfolders, in order of name.

    Images are not decoded: one whose header is intact and whose pixels are damaged is found when it is encoded. An
    image without a caption gets the trigger word as its caption, or the name of its folder if there is no trigger word.
    Images of the folder `regularization` without a caption get the name of their folder, never the trigger word. With
    `subsets` these are read instead of `folder`. Raises InputError if a folder does not exist.
    """
    read = partial(read_images, hash_all=True, caption_extension=recipe.caption_extension, on_progress=on_progress)
    own = read(folder, subsets=[subset for subset in subsets if not subset.is_reg])
    priors = [subset for subset in subsets if subset.is_reg]
    prior = read(regularization or folder, subsets=priors) if priors or regularization is not None else None
    split = own.split(recipe, prior)
    unreadable = [*own.unreadable.values(), *(prior.unreadable.values() if prior is not None else [])]

    def read_items(images: list[RepeatedImage], trigger_word: str, *, prior: bool = False) -> list[TrainItem]:
        items = []
        for image, repeats in images:
            try:
                items.append(_read_item(image, repeats, recipe, trigger_word, prior=prior))
            except (InputError, OSError) as error:
                unreadable.append(str(error))
        return items

    return Dataset(
        read_items(split.training, trigger_word),
        unreadable,
        outside_sets=own.outside_sets,
        regularization=read_items(split.regularization, "", prior=True),
        validation_items=read_items(split.validation, trigger_word),
    )


def _read_item(image: DatasetImage, repeats: int, recipe: Recipe, trigger_word: str, *, prior: bool) -> TrainItem:
    settings = image.settings_in(recipe)
    template, caption = image.template_in(recipe, trigger_word), image.caption_in(recipe, trigger_word)
    return TrainItem(
        path=image.path,
        sha256=image.sha256,
        size=image.size,
        placement=image.placement_in(recipe),
        caption=caption,
        has_caption=bool(image.caption),
        repeats=repeats,
        folder=image.image_set.path.name,
        mask=image.mask(recipe.masked_loss),
        prior=prior,
        template="" if template == caption else template,
        settings=None if settings is recipe else settings,
    )


def damaged_images(dataset: Dataset, on_progress: Callable[[int, int], None]) -> list[str]:
    """Decode all images and mask files, and return a message for each that is damaged."""
    items = [*dataset.epoch_items, *dataset.validation_items]
    masks = [item.mask.path for item in items if item.mask is not None and not item.mask.alpha]
    paths = list(dict.fromkeys([*(item.path for item in items), *masks]))
    found = []
    for done, path in enumerate(paths):
        on_progress(done, len(paths))
        try:
            decode(path, min_side=MIN_DECODED_SIDE)
        except InputError as error:
            found.append(error.message)
    return found


def unreadable_errors(messages: Sequence[str]) -> list[str]:
    """Return the error messages of a run about images and masks that cannot be read: the first few, and a count."""
    found = [f"dataset: {message} Remove or replace it." for message in messages[:MAX_UNREADABLE_SHOWN]]
    if (more := len(messages) - MAX_UNREADABLE_SHOWN) > 0:
        found.append(f"dataset: {more} more images cannot be read. `scan` lists all of them.")
    return found


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
