"""Colours of pictures, from small thumbnails: figures of washed-out, grey, burnt and clipped ones, and histograms."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from lora_studio.measures.distances import Vectors, mean, unit_vectors
from lora_studio.measures.estimate import Estimate, jackknife

# Rec. 709 luma, on the gamma-coded values that screens and eyes work with.
LUMA = np.array([0.2126, 0.7152, 0.0722], dtype=np.float32)
CLIP = 3 / 255  # from black or white
LEVELS = 4  # of each channel in a histogram


class Colours(NamedTuple):
    """Colour figures of each of some pictures [...], NaN for a missing one.

    `contrast` is the standard deviation of the luma (0 flat to 0.5), `saturation` the mean of the largest minus the
    smallest channel (0 grey to 1), `clipped` the share of nearly black and nearly white pixels.
    """

    contrast: NDArray[np.float32]
    saturation: NDArray[np.float32]
    clipped: NDArray[np.float32]


def colours(thumbnails: NDArray[np.float32]) -> Colours:
    """Return the colour figures of thumbnails [..., height, width, 3] between 0 and 1."""
    pixels = np.asarray(thumbnails, dtype=np.float32)
    luma = pixels @ LUMA
    missing = np.isnan(luma).any(axis=(-2, -1))
    clipped = ((luma < CLIP) | (luma > 1 - CLIP)).mean(axis=(-2, -1), dtype=np.float32)
    return Colours(
        contrast=luma.std(axis=(-2, -1)),
        saturation=np.ptp(pixels, axis=-1).mean(axis=(-2, -1)),
        clipped=np.where(missing, np.float32("nan"), clipped),
    )


def mean_colour(figures: NDArray[np.float32]) -> Estimate | None:
    """Return the mean of a colour figure of pictures [prompts, seeds] with its jackknife standard error."""
    return jackknife(lambda prompts, seeds: mean(figures[prompts][:, seeds]), figures.shape)


def colour_histograms(thumbnails: NDArray[np.float32]) -> Vectors:
    """Return joint histograms of red, green and blue as unit vectors: [N, height, width, 3] -> [N, LEVELS ** 3].

    They are the square roots of the shares of the colours, so the cosine distance of two is 1 minus their Bhattacharyya
    coefficient (Bhattacharyya 1943), which is 0 for the same colours wherever they are in the picture, and 1 if no
    colour is in both. Features that are trained to name a subject, as a tagger's, hardly differ by colours and style.
    """
    levels = (np.asarray(thumbnails) * LEVELS).astype(int).clip(0, LEVELS - 1)
    colour = levels @ [LEVELS**2, LEVELS, 1]
    flat = colour.reshape(len(colour), -1)
    shares = np.stack([np.bincount(row, minlength=LEVELS**3) for row in flat]) / flat.shape[1]
    return unit_vectors(np.sqrt(shares))
