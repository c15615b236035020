"""The dataset as the trainer sees it, and the order in which it is seen."""

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
    """One image with its caption. `size` is that of the upright image, before scaling: (width, height) in px.

    `flipped` items are mirrored after they are cut; `prior` ones belong to the regularisation set.
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

        Podell et al. 2023 (arXiv:2307.01952), section 2.2; the original is the image before it was scaled. Of a
        mirrored image, what was cut off at the right is now at its left.
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
    """Every readable image of a folder: `items` are trained on, `held_out` are not.

    `regularization` has images of another folder, with repeats that balance them against `items`. `unreadable` says in
    one line each what could not be read, `left_out` are images beside the N_name folders.
    """

    items: list[TrainItem]
    unreadable: list[str]
    outside_sets: list[Path] = field(default_factory=list)
    regularization: list[TrainItem] = field(default_factory=list)
    validation_items: list[TrainItem] = field(default_factory=list)

    @property
    def epoch_items(self) -> list[TrainItem]:
        """What an epoch shows, each as often as it is repeated: the training set, then the regularisation set."""
        return [*self.items, *self.regularization]

    def step_count(self, recipe: Recipe) -> StepCount:
        """Steps of a run, as the plan counts them. Raises InputError if there are no images."""
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
        """A hash of all that decides about the order and content of samples; names of folders and files do not."""
        lines = [_described(item) for item in self.items]
        lines += [f"prior {_described(item)}" for item in self.regularization]
        lines += [f"held out {_described(item)}" for item in self.validation_items]
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def _described(item: TrainItem) -> str:
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

    An image without a caption gets the trigger word, or the name of its folder if there is none. The recipe's repeats,
    if set, take the place of the folders'. Images of the folder `regularization` get their caption, or the name of
    their folder: the trigger word is not theirs.
    """
    found = _find(folder, prior=False)
    found += _find(regularization, prior=True) if regularization is not None else []
    items, unreadable = [], []
    for done, (group, path, prior) in enumerate(found):
        on_progress(done, len(found))
        info, _ = image_info(path, min_side=64)
        if not info.readable:
            unreadable += [issue.message for issue in info.issues]
            continue
        try:
            items.append(_item(group, info, recipe, "" if prior else trigger_word, prior=prior))
        except InputError as error:
            unreadable.append(str(error))
    own = [item for item in items if not item.prior]
    kept_back = _held_out(folder, own, recipe)
    trained = [item for item in own if item.path not in kept_back]
    return Dataset(
        trained,
        unreadable,
        outside_sets=loose_images(folder),
        regularization=_balanced([item for item in items if item.prior], sum(item.repeats for item in trained)),
        validation_items=[item for item in own if item.path in kept_back],
    )


def _find(folder: Path, *, prior: bool) -> list[tuple[ImageSet, Path, bool]]:
    return [(group, path, prior) for group in image_sets(folder) for path in images_in(group.path)]


def _item(group: ImageSet, info: ImageInfo, recipe: Recipe, trigger_word: str, *, prior: bool) -> TrainItem:
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


def _held_out(folder: Path, items: list[TrainItem], recipe: Recipe) -> frozenset[Path]:
    if not recipe.validation_split:
        return frozenset()
    images = [(item.path, item.sha256) for item in items]
    return choose_validation_images(
        images, Manifest.of(folder).duplicates, share=recipe.validation_split, seed=recipe.seed
    )


def _balanced(items: list[TrainItem], samples: int) -> list[TrainItem]:
    """Regularisation items with the repeats that `samples` training samples ask for, without those not needed."""
    repeats = balanced_repeats([item.repeats for item in items], samples)
    return [replace(item, repeats=count) for item, count in zip(items, repeats, strict=True) if count]


def epoch_steps(dataset: Dataset, recipe: Recipe, epoch: int) -> list[list[Batch]]:
    """The steps of one epoch (counted from 0), each a list of batches of one bucket.

    Each image comes as often as it is repeated; images within a bucket and the batches are shuffled anew in every
    epoch, by seed and epoch alone.
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
