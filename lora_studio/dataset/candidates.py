"""Which pairs of images are worth a closer look, by their hashes: vectorised, in blocks of bounded memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from lora_studio.dataset.fingerprints import HASH_BITS, VIEW_PAIRS, Fingerprint

NEAR_DISTANCE = 28  # of 128 bits: what the hashes propose; unlike photos are some 64 apart
NEAREST = 24  # candidates an image, so that a large set of one style stays affordable

_ROWS = 256  # hashes that are compared with all others at once
_COLUMNS = 2048  # of these at a time: what is computed in between fits into the processor's cache


def candidate_pairs(
    prints: Sequence[Fingerprint], *, on_progress: Callable[[int, int], None] = lambda done, total: None
) -> NDArray[np.int64]:
    """Pairs worth a closer look: [n, 4] of (first, second, distance in bits, 1 if mirrored), first < second.

    At most the nearest `NEAREST` of each image and orientation (more where several are as near). `on_progress` counts
    images.
    """
    if len(prints) < 2:
        return np.empty((0, 4), np.int64)
    # [views, words, N]: a word of all images lies together
    plain = np.ascontiguousarray(np.stack([item.hashes for item in prints]).transpose(1, 2, 0))
    mirrored = np.ascontiguousarray(np.stack([item.mirrored for item in prints]).transpose(1, 2, 0))
    found = []
    for start in range(0, len(prints) - 1, _ROWS):
        rows = slice(start, start + _ROWS)
        for turned, hashes in enumerate((plain, mirrored)):
            first, second, distance = _near(hashes[:, :, rows], plain[:, :, start:])
            turns = np.full(len(first), turned)
            found.append(np.stack([first + start, second + start, distance, turns], axis=1).astype(np.int64))
        on_progress(min(start + _ROWS, len(prints)), len(prints))
    return np.concatenate(found)


def _near(
    rows: NDArray[np.uint64], columns: NDArray[np.uint64]
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.uint8]]:
    """Row, column and distance of pairs that are near, the column being the later image."""
    distance = np.concatenate(
        [_distances(rows, columns[:, :, start : start + _COLUMNS]) for start in range(0, columns.shape[2], _COLUMNS)],
        axis=1,
    )
    first, second = np.nonzero(distance <= NEAR_DISTANCE)
    later = second > first
    first, second = first[later], second[later]
    values = distance[first, second]
    counts = np.bincount(first, minlength=len(distance))
    if counts.max(initial=0) > NEAREST:
        limits = np.full(len(distance), NEAR_DISTANCE)
        for row in np.flatnonzero(counts > NEAREST):
            limits[row] = np.partition(values[first == row], NEAREST - 1)[NEAREST - 1]
        chosen = values <= limits[first]
        first, second, values = first[chosen], second[chosen], values[chosen]
    return first, second, values


def _distances(rows: NDArray[np.uint64], columns: NDArray[np.uint64]) -> NDArray[np.uint8]:
    """Least Hamming distance over the pairs of views: [rows, columns], at most 128."""
    least = np.full((rows.shape[2], columns.shape[2]), HASH_BITS, np.uint8)
    for view, other in VIEW_PAIRS:
        bits = np.zeros_like(least)
        for word in range(rows.shape[1]):
            bits += np.bitwise_count(rows[view, word, :, None] ^ columns[other, word, None, :])
        np.minimum(least, bits, out=least)
    return least
