"""Distances between the features of pictures.

Features are arrays [..., F] of one model. A picture that is missing, as one that was not finite, has NaN features;
distances to it are NaN, and the means leave it out.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

Vectors = NDArray[np.float32]
MIN_NORM = 1e-6
# Distances below are rounding: features are cached as float16.
MIN_DISTANCE = 1e-4
FLAT = 0.03  # standard deviation of the pixels of a picture that looks flat


def unit_vectors(features: ArrayLike) -> Vectors:
    """Return features [..., F] at length 1; vectors of length 0 stay 0."""
    vectors = np.asarray(features, dtype=np.float32)
    unit: Vectors = vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), MIN_NORM)
    return unit


def pixel_vectors(pixels: ArrayLike) -> Vectors:
    """Return unit vectors [..., F + 1] for pixels [..., F] between 0 and 1.

    The mean is subtracted, so that their cosine distance is 1 - Pearson's correlation, and a constant is appended, as
    if each picture had a further detail of contrast FLAT: flat pictures, whose correlation is chance, are then equal.
    """
    values = np.asarray(pixels, dtype=np.float32)
    centred = values - values.mean(axis=-1, keepdims=True)
    constant = np.full((*values.shape[:-1], 1), FLAT * np.sqrt(values.shape[-1]), np.float32)
    return unit_vectors(np.concatenate([centred, constant], axis=-1))


def distances(first: Vectors, second: Vectors) -> Vectors:
    """Return the cosine distance, 1 - cos (0 equal to 2 opposite), of unit vectors [..., F] at the same places."""
    found: Vectors = np.maximum(1 - (first * second).sum(axis=-1), 0)
    return found


def concatenate_features(*vectors: Vectors) -> Vectors:
    """Return unit vectors of several features side by side: their cosine distance is the mean of the distances."""
    found: Vectors = np.concatenate(vectors, axis=-1) / np.float32(np.sqrt(len(vectors)))
    return found


def cross_distances(first: Vectors, second: Vectors) -> Vectors:
    """Return the cosine distances [M, N] between unit vectors [M, F] and [N, F]."""
    found: Vectors = np.maximum(1 - first @ second.T, 0)
    return found


def mean_pairwise(vectors: Vectors) -> float:
    """Return the mean cosine distance of all pairs of unit vectors [N, F]; NaN with fewer than two."""
    between = cross_distances(vectors, vectors)[np.triu_indices(len(vectors), 1)]
    return mean(between)


def mean(values: ArrayLike) -> float:
    """Return the mean of the values that are not NaN; NaN if there are none."""
    known = np.asarray(values, dtype=np.float64)
    known = known[~np.isnan(known)]
    return float(known.mean()) if known.size else float("nan")
