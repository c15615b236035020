"""Closeness and likeness to the training images, and memorisation: how near pictures are to images, seen or not.

Features of images are unit vectors [N, F], those of pictures [prompts, seeds, F], of the same model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lora_studio.measures.distances import MIN_DISTANCE, Vectors, cross_distances, mean, mean_pairwise
from lora_studio.measures.estimate import Estimate, Indices, jackknife

MIN_IMAGES = 3  # fewer say nothing about how far apart the training images are
MIN_GAP = 0.02  # distance that the base's pictures must be farther from the images than these are from each other


@dataclass(frozen=True)
class Memorisation:
    """Of each picture [prompts, seeds], the nearest training image and the relative distance to it.

    `nearest` has indices of training images, -1 for a missing picture; `ratios` are 0 for a copy, 1 for a picture that
    is as far from the nearest training image as a typical training image is from its own nearest; NaN if missing.
    `mean` is the mean of the ratios with its jackknife standard error.
    """

    nearest: NDArray[np.intp]
    ratios: Vectors
    mean: Estimate

    @property
    def closest(self) -> tuple[int, int]:
        """The prompt and seed of the picture with the lowest ratio."""
        prompt, seed = np.unravel_index(np.nanargmin(self.ratios), self.ratios.shape)
        return int(prompt), int(seed)


def closeness(pictures: Vectors, images: Vectors) -> Estimate | None:
    """Return how close pictures are to images: the mean distance among the images over that to the pictures.

    1: a picture is as far from the images as these are from each other, so it could be one of them. Near 0: it is
    something else. Above 1: it is nearer to the middle of the images than they are, as an average is. The same for
    training images and for those of the validation split: only for images that were trained on, memorising raises it.
    peft's method comparison of image generation uses the similarity of features to images not trained on, too. None
    with fewer than MIN_IMAGES images.
    """
    if len(images) < MIN_IMAGES:
        return None
    apart = max(mean_pairwise(images), MIN_DISTANCE)
    to_images = _to_images(pictures, images).mean(axis=-1)
    return jackknife(
        lambda prompts, seeds: apart / max(mean(to_images[prompts][:, seeds]), MIN_DISTANCE), to_images.shape
    )


def likeness(pictures: Vectors, base: Vectors, images: Vectors) -> Estimate | None:
    """Return which part of the way from the base's pictures to the training images the pictures have gone.

    (d(base, images) - d(pictures, images)) / (d(base, images) - d(images, images)), of mean distances: 0 as the base
    draws the same prompts and seeds, 1 as close to the images as these are to each other. The normalised gain of Hake
    1998 (American Journal of Physics 66, 64), of distances. None with fewer than MIN_IMAGES images, or if the base's
    pictures are hardly farther from them than they are from each other: then there is nothing to learn that the
    features show.
    """
    if len(images) < MIN_IMAGES:
        return None
    apart = mean_pairwise(images)
    before, now = (_to_images(vectors, images).mean(axis=-1) for vectors in (base, pictures))
    if not mean(before) > apart + MIN_GAP:
        return None

    def statistic(prompts: Indices, seeds: Indices) -> float:
        off, on = (mean(found[prompts][:, seeds]) for found in (before, now))
        return (off - on) / max(off - apart, MIN_GAP)

    return jackknife(statistic, now.shape)


def reproduction(pictures: Vectors, base: Vectors, own: Sequence[NDArray[np.intp]], images: Vectors) -> Estimate | None:
    """Return how far pictures of training captions are from the images of these captions, relative to what is usual.

    Of features [captions, seeds, F]; `own` has the places of the `images` [N, F] with each caption, of which the
    nearest counts. Usual is the distance of the base's pictures of the same captions, or, if it is lower, the median
    distance of an image to its own nearest, as in `memorisation`. 0: the LoRA draws its training images; about 1: it
    draws what the captions say as the base does. A caption is the prompt that brings a memorised image out (Carlini et
    al. 2023, arXiv:2301.13188, section 4). None with fewer than MIN_IMAGES images.
    """
    if len(images) < MIN_IMAGES or not len(pictures):
        return None
    apart = nearest_distance(images)
    now, before = (
        np.stack(
            [_to_images(row[None], images[places]).min(axis=-1)[0] for row, places in zip(found, own, strict=True)]
        )
        for found in (pictures, base)
    )

    def statistic(captions: Indices, seeds: Indices) -> float:
        usual = min(apart, mean(before[captions][:, seeds]))
        return mean(now[captions][:, seeds]) / max(usual, MIN_DISTANCE)

    return jackknife(statistic, now.shape)


def nearest_distance(images: Vectors) -> float:
    """Return the median distance of the images to their nearest other image.

    The median, since some duplicates are often left in a training set.
    """
    between = cross_distances(images, images)
    np.fill_diagonal(between, np.inf)
    return max(float(np.median(between.min(axis=1))), MIN_DISTANCE)


def memorisation(pictures: Vectors, images: Vectors) -> Memorisation | None:
    """Return the nearest training image of each picture, and its distance relative to those among the images.

    The distance to the nearest image over the median distance of an image to its own nearest. Carlini et al. 2023
    (Extracting training data from diffusion models, arXiv:2301.13188) relate the distance to a training image in the
    same way to those of its neighbours, since what is near depends on how dense the images are. None with fewer than
    MIN_IMAGES images, or without a picture.
    """
    if len(images) < MIN_IMAGES:
        return None
    to_images = _to_images(pictures, images)
    missing = np.isnan(to_images).any(axis=-1)
    nearest = np.where(missing, -1, to_images.argmin(axis=-1))
    ratios: Vectors = to_images.min(axis=-1) / np.float32(nearest_distance(images))
    found = jackknife(lambda prompts, seeds: mean(ratios[prompts][:, seeds]), ratios.shape)
    return None if found is None else Memorisation(nearest, ratios, found)


def _to_images(pictures: Vectors, images: Vectors) -> Vectors:
    """Return the distances [prompts, seeds, N] of pictures to images."""
    prompts, seeds, size = pictures.shape
    return cross_distances(pictures.reshape(-1, size), images).reshape(prompts, seeds, -1)
