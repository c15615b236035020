"""The dataset as the trainer sees it, and the order in which it is seen."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import torch

from lora_studio.config import Recipe
from lora_studio.dataset.buckets import Placement, Size, place_for
from lora_studio.dataset.captions import read_caption
from lora_studio.dataset.images import image_info, is_image_name
from lora_studio.planning.steps import StepCount, count_steps
from lora_studio.project import ImageSet, image_sets
from lora_studio.training.rng import generator

Batch = list["Item"]
T = TypeVar("T")


@dataclass(frozen=True)
class Item:
    """One image with its caption. `size` is that of the upright image, before scaling: (width, height) in px."""

    path: Path
    sha256: str
    size: Size
    placement: Placement
    caption: str
    captioned: bool
    repeats: int
    folder: str

    @property
    def time_ids(self) -> tuple[int, ...]:
        """SDXL's size conditioning: (original height, width, crop top, left, target height, width).

        Podell et al. 2023 (arXiv:2307.01952), section 2.2; the original is the image before it was scaled.
        """
        (width, height), (left, top), (target_width, target_height) = (
            self.size,
            self.placement.crop,
            self.placement.bucket,
        )
        return height, width, top, left, target_height, target_width


@dataclass(frozen=True)
class Dataset:
    """Every readable image of a folder.

    `unreadable` says in one line each what could not be read, `left_out` are images beside the N_name folders.
    """

    items: list[Item]
    unreadable: list[str]
    left_out: list[Path] = field(default_factory=list)

    def count(self, recipe: Recipe) -> StepCount:
        """Steps of a run, as the plan counts them. Raises InputError if there are no images."""
        samples: Counter[Size] = Counter()
        for item in self.items:
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
        text = "\n".join(f"{item.sha256} {item.placement} {item.repeats} {item.caption}" for item in self.items)
        return hashlib.sha256(text.encode()).hexdigest()


def read_dataset(
    folder: Path,
    recipe: Recipe,
    trigger_word: str = "",
    *,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> Dataset:
    """Read sizes, hashes and captions of the images in `folder` and its N_name subfolders, in order of name.

    An image without a caption gets the trigger word, or the name of its folder if there is none. The recipe's repeats,
    if set, take the place of the folders'.
    """
    found = [(group, path) for group in image_sets(folder) for path in _images(group.path)]
    items, unreadable = [], []
    for done, (group, path) in enumerate(found):
        on_progress(done, len(found))
        info, _ = image_info(path, at_least=64)
        if info.readable:
            items.append(_item(group, path, (info.width, info.height), info.sha256, recipe, trigger_word))
        else:
            unreadable += [issue.message for issue in info.issues]
    read = {path for _, path in found}
    return Dataset(items, unreadable, left_out=[path for path in _images(folder) if path not in read])


def _images(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if is_image_name(path.name) and path.is_file())


def _item(group: ImageSet, path: Path, size: Size, sha256: str, recipe: Recipe, trigger_word: str) -> Item:
    caption = read_caption(path)
    return Item(
        path=path,
        sha256=sha256,
        size=size,
        placement=place_for(recipe, *size),
        caption=" ".join(caption.split()) if caption else trigger_word or group.concept,
        captioned=bool(caption),
        repeats=recipe.repeats or group.repeats,
        folder=group.path.name,
    )


def epoch_steps(dataset: Dataset, recipe: Recipe, epoch: int) -> list[list[Batch]]:
    """The steps of one epoch (counted from 0), each a list of batches of one bucket.

    Each image comes as often as it is repeated; images within a bucket and the batches are shuffled anew in every
    epoch, by seed and epoch alone.
    """
    buckets: dict[Size, list[Item]] = defaultdict(list)
    for item in dataset.items:
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
