"""Find similar images (same pose or composition) and measure the diversity of a dataset, by a tagger's features.

The features of one tagger have much in common: those of the embedded tagger are all positive, so that any two images
have a cosine near 1. Similarity is therefore the cosine of features that were standardised over the dataset (mean 0 and
standard deviation 1 each). Diversity must not depend on the mean of the dataset: it is the mean of 1 - r over all
pairs, where r is the Pearson correlation of the features of two images.
"""

from __future__ import annotations

import heapq
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from lora_studio.dataset.duplicates.find import DuplicateGroup, DuplicateKind, ReportProgress
from lora_studio.dataset.images.decode import ImageInfo

Features = Mapping[str, NDArray[np.float16]]  # [F] by the image's SHA-256

# In the example images, a mirrored duplicate has 0.92 and the most similar of different motifs 0.38.
MIN_SIMILARITY = 0.75
MIN_STANDARDISED_IMAGES = 8  # fewer images are compared by correlation instead
MIN_CORRELATION = 0.97
MAX_PAIRS = 10
_ROWS = 512  # images compared with all others at once

_VERDICTS = (
    (20, "nearly the same image again and again: the LoRA will know little else"),
    (45, "very similar images: add other poses, angles or backgrounds"),
    (70, "varied within one subject"),
    (100, "varied"),
)

Floats = NDArray[np.float32]


class SimilarPair(BaseModel):
    """Two images and their similarity: 1 for the same image, 0 for the average of the dataset."""

    model_config = ConfigDict(frozen=True)

    first: Path
    second: Path
    likeness: float


class Diversity(BaseModel):
    """Diversity of `images` images from 0 (all the same) to 100, its verdict, and the most similar pairs.

    Duplicates that the scan proposes to set aside are left out.
    """

    model_config = ConfigDict(frozen=True)

    images: int
    figure: int
    words: str
    pairs: list[SimilarPair]


def compare_features(
    infos: Sequence[ImageInfo],
    features: Features,
    duplicates: Collection[Path],
    report_progress: ReportProgress = lambda phase, done, total: None,
) -> tuple[list[DuplicateGroup], Diversity | None]:
    """Return groups of similar images, leaving out `duplicates`, and the diversity of the dataset.

    With fewer than two images with features there are no groups and the diversity is None. Groups are stars: every
    image of a group is similar to the one that it keeps, the largest.
    """
    chosen = [info for info in infos if info.sha256 in features and info.path not in duplicates]
    if len(chosen) < 2:
        return [], None
    matrix = np.stack([features[info.sha256] for info in chosen]).astype(np.float32)
    correlated = _unit(matrix - matrix.mean(axis=1, keepdims=True))
    number = len(chosen)
    # The mean over all pairs without computing them, as |sum of unit vectors|^2 = number + sum over pairs.
    mean = (float(np.square(correlated.sum(axis=0, dtype=np.float64)).sum()) - number) / (number * (number - 1))
    figure = round(100 * min(1.0, max(0.0, 1 - mean)))
    standardised = number >= MIN_STANDARDISED_IMAGES
    compared = _standardised(matrix) if standardised else correlated
    min_cosine = MIN_SIMILARITY if standardised else MIN_CORRELATION
    similar, highest = _similar_and_highest_pairs(compared, min_cosine, report_progress)
    diversity = Diversity(
        images=number,
        figure=figure,
        words=next(words for limit, words in _VERDICTS if figure <= limit),
        pairs=[
            SimilarPair(first=chosen[i].path, second=chosen[j].path, likeness=round(min(1.0, cosine), 3))
            for cosine, i, j in highest
        ],
    )
    return _groups(chosen, similar), diversity


def nearest_similarities(features: NDArray[np.float16]) -> Floats:
    """Return the similarity of each of two or more images to the one that is most similar to it, 1 at most.

    `features` are [images, F].
    """
    matrix = features.astype(np.float32)
    is_large = len(matrix) >= MIN_STANDARDISED_IMAGES
    compared = _standardised(matrix) if is_large else _unit(matrix - matrix.mean(axis=1, keepdims=True))
    nearest = np.empty(len(matrix), np.float32)
    for start in range(0, len(matrix), _ROWS):
        cosine = compared[start : start + _ROWS] @ compared.T
        rows = np.arange(len(cosine))
        cosine[rows, start + rows] = -1  # the image itself
        nearest[start : start + _ROWS] = cosine.max(axis=1)
    return np.clip(nearest, -1, 1)


def _standardised(matrix: Floats) -> Floats:
    """Return features standardised over the dataset, in rows of unit length."""
    deviation = matrix.std(axis=0)
    # Dividing a nearly constant feature by its standard deviation would amplify noise.
    return _unit((matrix - matrix.mean(axis=0)) / (deviation + 0.01 * np.max(deviation) + 1e-6))


def _unit(matrix: NDArray[Any]) -> Floats:
    """Scale rows to unit length."""
    lengths = np.linalg.norm(matrix, axis=1, keepdims=True)
    unit: Floats = (matrix / np.maximum(lengths, 1e-6)).astype(np.float32)
    return unit


def _similar_and_highest_pairs(
    unit: Floats, min_cosine: float, report_progress: ReportProgress
) -> tuple[dict[tuple[int, int], float], list[tuple[float, int, int]]]:
    """Return the pairs (i < j) with at least that cosine, and the `MAX_PAIRS` highest of all as (cosine, i, j)."""
    similar: dict[tuple[int, int], float] = {}
    highest: list[tuple[float, int, int]] = []
    for start in range(0, len(unit), _ROWS):
        cosine = unit[start : start + _ROWS] @ unit[start:].T
        later = np.triu(np.ones(cosine.shape, bool), 1)
        flat = np.where(later, cosine, -2)
        for i, j in zip(*np.nonzero(flat >= min_cosine), strict=True):
            similar[start + int(i), start + int(j)] = float(flat[i, j])
        best = np.argpartition(-flat, min(MAX_PAIRS, flat.size - 1), axis=None)[:MAX_PAIRS]
        for i, j in zip(*np.unravel_index(best, flat.shape), strict=True):
            if flat[i, j] > -2:
                highest.append((float(flat[i, j]), start + int(i), start + int(j)))
        highest = heapq.nlargest(MAX_PAIRS, highest)
        report_progress("Comparing tagger features", min(start + _ROWS, len(unit)), len(unit))
    return similar, highest


def _groups(infos: Sequence[ImageInfo], similar: Mapping[tuple[int, int], float]) -> list[DuplicateGroup]:
    """Form star groups of similar pairs, the largest images first as the ones to keep."""
    similarities: dict[int, dict[int, float]] = {}
    for (i, j), value in similar.items():
        similarities.setdefault(i, {})[j] = value
        similarities.setdefault(j, {})[i] = value
    left = set(similarities)
    groups = []
    for keep in sorted(similarities, key=lambda index: (-infos[index].width * infos[index].height, index)):
        if keep not in left:
            continue
        others = sorted(
            (other for other in similarities[keep] if other in left), key=lambda other: -similarities[keep][other]
        )
        if not others:
            continue
        left -= {keep, *others}
        reasons = [f"similar: {similarities[keep][other]:.0%} by the features of the tagger" for other in others]
        groups.append(
            DuplicateGroup(
                keep=infos[keep].path,
                reject=[infos[other].path for other in others],
                kind=DuplicateKind.SIMILAR,
                distance=round(100 * (1 - min(1.0, min(similarities[keep][other] for other in others)))),
                reason="similar motif, pose or composition",
                reasons=reasons,
            )
        )
    return groups
