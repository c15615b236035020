"""Image augmentation: random crop and horizontal flip.

Latents are cached, so each image has a fixed set of augmented versions, which are encoded before the first step; each
sample draws one of them. A random crop is therefore one of CROP_COUNT positions, spread over the part of the image that
does not fit its bucket: encoding in every step would keep the VAE on the device, and take more time than finer
positions are worth. The positions depend on the image alone, so that runs with other seeds use the same cache files.
"""

from __future__ import annotations

from dataclasses import replace

import torch

from lora_studio.settings.recipe import Recipe
from lora_studio.training.data.dataset import TrainItem
from lora_studio.training.data.rng import generator

CROP_COUNT = 8


def augment(item: TrainItem, recipe: Recipe, step: int, sample: int) -> TrainItem:
    """Return the item with the crop and flip of one sample of one step."""
    augmented, settings = item, item.settings or recipe
    if settings.random_crop:
        augmented = _crop(augmented, _draw(CROP_COUNT, recipe.seed, "crop", step, sample))
    if settings.flip_aug:
        augmented = replace(augmented, flipped=bool(_draw(2, recipe.seed, "flip", step, sample)))
    return augmented


def all_augmentations(item: TrainItem, recipe: Recipe) -> list[TrainItem]:
    """Return every item that `augment` can return."""
    settings = item.settings or recipe
    cropped = [_crop(item, number) for number in range(CROP_COUNT)] if settings.random_crop else [item]
    distinct = list({crop.placement.crop: crop for crop in cropped}.values())
    return [
        replace(crop, flipped=flipped)
        for crop in distinct
        for flipped in ((False, True) if settings.flip_aug else (False,))
    ]


def image_seed(item: TrainItem) -> int:
    """Return an integer derived from the image's content hash, to key random draws that depend on the image."""
    return int(item.sha256[:15], 16)


def _crop(item: TrainItem, number: int) -> TrainItem:
    """Return the item with crop `number` of CROP_COUNT.

    There is one crop in each eighth of the longer excess (scaled size minus bucket size); along the other side it is
    uniformly random.
    """
    placement = item.placement
    first, second = torch.rand(2, generator=generator(0, "crop place", image_seed(item), number)).tolist()
    excess = [placement.scaled[axis] - placement.bucket[axis] for axis in (0, 1)]
    fractions = [first, second]
    longer = 0 if excess[0] >= excess[1] else 1
    fractions[longer] = (number + fractions[longer]) / CROP_COUNT
    left, top = (min(pixels, int(fraction * (pixels + 1))) for pixels, fraction in zip(excess, fractions, strict=True))
    return replace(item, placement=replace(placement, crop=(left, top)))


def _draw(count: int, seed: int, purpose: str, step: int, sample: int) -> int:
    """Return a random integer below `count`."""
    return int(torch.randint(count, (1,), generator=generator(seed, purpose, step, sample)))
