"""Images that show much the same (one pose, one composition), and how varied a dataset is, by a tagger's own features.

Features of one tagger are all alike in what all pictures share: the embedded tagger's are all positive, so that any two
have a cosine near 1. Likeness is therefore the cosine of features that were standardised over the dataset (mean 0 and
deviation 1 each), and says how much two images stand out together. The figure of diversity must not depend on the
dataset's own mean: it is the mean of 1 - r over all pairs, r being the correlation over a picture's features.
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

# Of the examples, a mirrored copy has 0.92 and the most alike of unlike motifs 0.38.
MIN_SIMILARITY = 0.75
MIN_STANDARDIZED_IMAGES = (
    8  # images of which a mean and a deviation say something; fewer are compared by plain correlation
)
MIN_CORRELATION = 0.97
MAX_PAIRS = 10
_ROWS = 512  # images that are compared with all others at once

_VERDICTS = (
    (20, "nearly the same picture again and again: the LoRA will know little else"),
    (45, "much alike: add other poses, angles or backgrounds"),
    (70, "varied within one subject"),
    (100, "varied"),
)

Floats = NDArray[np.float32]


class SimilarPair(BaseModel):
    """Two images and how alike they are: 1 for the same, 0 for no more than any two of the dataset."""

    model_config = ConfigDict(frozen=True)

    first: Path
    second: Path
    likeness: float


class Diversity(BaseModel):
    """How varied `images` images are, 0 (all the same) to 100, in words too; and the most alike pairs, first the worst.

    Copies that the scan proposes to set aside are left out.
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
    # The sum of all correlations but those of an image with itself, without computing them.
    mean = (float(np.square(correlated.sum(axis=0, dtype=np.float64)).sum()) - number) / (number * (number - 1))
    figure = round(100 * min(1.0, max(0.0, 1 - mean)))
    if number >= MIN_STANDARDIZED_IMAGES:
        # A feature that never changes says nothing; dividing by its deviation would make noise of it.
        deviation = matrix.std(axis=0)
        compared, least = (
            _unit((matrix - matrix.mean(axis=0)) / (deviation + 0.01 * deviation.max() + 1e-6)),
            MIN_SIMILARITY,
        )
    else:
        compared, least = correlated, MIN_CORRELATION
    similar, most = _similar_pairs(compared, least, report_progress)
    diversity = Diversity(
        images=number,
        figure=figure,
        words=next(words for limit, words in _VERDICTS if figure <= limit),
        pairs=[
            SimilarPair(first=chosen[i].path, second=chosen[j].path, likeness=round(min(1.0, likeness), 3))
            for likeness, i, j in most
        ],
    )
    return _groups(chosen, similar), diversity


def _unit(matrix: NDArray[Any]) -> Floats:
    lengths = np.linalg.norm(matrix, axis=1, keepdims=True)
    unit: Floats = (matrix / np.maximum(lengths, 1e-6)).astype(np.float32)
    return unit


def _similar_pairs(
    unit: Floats, least: float, report_progress: ReportProgress
) -> tuple[dict[tuple[int, int], float], list[tuple[float, int, int]]]:
    """The pairs (i < j) of at least that cosine, and the most alike ones of all with their cosine, first the worst."""
    similar: dict[tuple[int, int], float] = {}
    most: list[tuple[float, int, int]] = []
    for start in range(0, len(unit), _ROWS):
        cosine = unit[start : start + _ROWS] @ unit[start:].T
        later = np.triu(np.ones(cosine.shape, bool), 1)
        flat = np.where(later, cosine, -2)
        for i, j in zip(*np.nonzero(flat >= least), strict=True):
            similar[start + int(i), start + int(j)] = float(flat[i, j])
        best = np.argpartition(-flat, min(MAX_PAIRS, flat.size - 1), axis=None)[:MAX_PAIRS]
        for i, j in zip(*np.unravel_index(best, flat.shape), strict=True):
            if flat[i, j] > -2:
                most.append((float(flat[i, j]), start + int(i), start + int(j)))
        most = heapq.nlargest(MAX_PAIRS, most)
        report_progress("Comparing what the tagger saw", min(start + _ROWS, len(unit)), len(unit))
    return similar, most


def _groups(infos: Sequence[ImageInfo], similar: Mapping[tuple[int, int], float]) -> list[DuplicateGroup]:
    likeness: dict[int, dict[int, float]] = {}
    for (i, j), value in similar.items():
        likeness.setdefault(i, {})[j] = value
        likeness.setdefault(j, {})[i] = value
    left = set(likeness)
    groups = []
    for keep in sorted(likeness, key=lambda index: (-infos[index].width * infos[index].height, index)):
        if keep not in left:
            continue
        others = sorted((other for other in likeness[keep] if other in left), key=lambda other: -likeness[keep][other])
        if not others:
            continue
        left -= {keep, *others}
        reasons = [f"similar: {likeness[keep][other]:.0%} alike in what the tagger sees" for other in others]
        groups.append(
            DuplicateGroup(
                keep=infos[keep].path,
                reject=[infos[other].path for other in others],
                kind=DuplicateKind.SIMILAR,
                distance=round(100 * (1 - min(1.0, min(likeness[keep][other] for other in others)))),
                reason="much the same motif, pose or composition",
                reasons=reasons,
            )
        )
    return groups
