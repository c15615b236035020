"""How an image is shown: where it is cut and whether it is mirrored.

Latents are cached, so an image has a fixed set of views that are encoded before the first step, and each sample draws
one of them. A crop at random is therefore one of CROPS places, spread over what there is to cut off: encoding anew in
each step would keep the VAE on the device and cost more time than the places between them are worth. The places depend
on the image alone, so that runs with other seeds find them in the cache.
"""

from __future__ import annotations

from dataclasses import replace

import torch

from lora_studio.settings.recipe import Recipe
from lora_studio.training.data.dataset import Item
from lora_studio.training.data.rng import generator

CROPS = 8


def view_of(item: Item, recipe: Recipe, step: int, sample: int) -> Item:
    """The item as one sample of one step shows it."""
    view = item
    if recipe.random_crop:
        view = _cropped(view, _choose(CROPS, recipe.seed, "crop", step, sample))
    if recipe.flip_aug:
        view = replace(view, flipped=bool(_choose(2, recipe.seed, "flip", step, sample)))
    return view


def views_of(item: Item, recipe: Recipe) -> list[Item]:
    """Every view that `view_of` may give."""
    cut = [_cropped(item, number) for number in range(CROPS)] if recipe.random_crop else [item]
    distinct = list({view.placement.crop: view for view in cut}.values())
    return [
        replace(view, flipped=flipped)
        for view in distinct
        for flipped in ((False, True) if recipe.flip_aug else (False,))
    ]


def image_number(item: Item) -> int:
    """A number that stands for an image's content, for random draws that depend on it."""
    return int(item.sha256[:15], 16)


def _cropped(item: Item, number: int) -> Item:
    """The item cut at its place `number` of CROPS: one in each eighth of the longer way, anywhere along the other."""
    placement = item.placement
    first, second = torch.rand(2, generator=generator(0, "crop place", image_number(item), number)).tolist()
    ways = [placement.scaled[axis] - placement.bucket[axis] for axis in (0, 1)]
    shares = [first, second]
    longer = 0 if ways[0] >= ways[1] else 1
    shares[longer] = (number + shares[longer]) / CROPS
    left, top = (min(way, int(share * (way + 1))) for way, share in zip(ways, shares, strict=True))
    return replace(item, placement=replace(placement, crop=(left, top)))


def _choose(count: int, seed: int, purpose: str, step: int, sample: int) -> int:
    return int(torch.randint(count, (1,), generator=generator(seed, purpose, step, sample)))
