"""Find candidate pairs of duplicates by the Hamming distance of their hashes, vectorised in blocks of bounded memory.

Every hash is compared with every other. Multi-index hashing would hardly prune: with 28 of 128 bits allowed to differ,
the best of 8 parts of 16 bits may differ in 3 bits, which is true of 8% of unrelated pairs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from math import ceil

import numpy as np
from numpy.typing import NDArray

from lora_studio.dataset.duplicates.fingerprints import VIEW_PAIRS, Fingerprint
from lora_studio.dataset.duplicates.pools import cancel_on_exit

MAX_DISTANCE = 28  # of 128 bits, for candidates; unrelated photos are about 64 apart
MAX_NEIGHBOURS = 24  # candidates per image, so that a large set of one style stays affordable

_ROWS = 256  # hashes that a thread compares at a time with all later ones
_TILE = (16, 8192)  # max rows and columns compared at once: a megabyte, which fits into a core's L2 cache


def candidate_pairs(
    fingerprints: Sequence[Fingerprint],
    *,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
    workers: int = 1,
) -> NDArray[np.int64]:
    """Return candidate pairs [n, 4]: (first, second, distance in bits, 1 if mirrored), with first < second.

    At most the nearest `MAX_NEIGHBOURS` of each image and orientation (more where several are as near).
    `on_progress` counts images; what it raises ends the comparison. `workers` threads share the work.
    """
    if len(fingerprints) < 2:
        return np.empty((0, 4), np.int64)
    # [views, words, N]: each word is contiguous over all images
    plain = np.ascontiguousarray(np.stack([item.hashes for item in fingerprints]).transpose(1, 2, 0))
    mirrored = np.ascontiguousarray(np.stack([item.mirrored_hashes for item in fingerprints]).transpose(1, 2, 0))
    starts = range(0, len(fingerprints) - 1, _ROWS)
    found = []
    with cancel_on_exit(ThreadPoolExecutor(workers)) as pool:
        for start, pairs in zip(starts, pool.map(partial(_pairs_with_later, plain, mirrored), starts), strict=True):
            found.append(pairs)
            on_progress(min(start + _ROWS, len(fingerprints)), len(fingerprints))
    return np.concatenate(found)


def _pairs_with_later(plain: NDArray[np.uint64], mirrored: NDArray[np.uint64], start: int) -> NDArray[np.int64]:
    """Return the candidate pairs of `_ROWS` images from `start` with later images."""
    found = []
    for is_mirrored, hashes in enumerate((plain, mirrored)):
        near = _near_pairs(hashes[:, :, start : start + _ROWS], plain[:, :, start:])
        near[:, :2] += start
        found.append(np.insert(near, 3, is_mirrored, axis=1))
    return np.concatenate(found)


def _near_pairs(rows: NDArray[np.uint64], columns: NDArray[np.uint64]) -> NDArray[np.int64]:
    """Return near pairs [n, 3], sorted by (row, column, distance), where the column is the later image."""
    near = np.concatenate([np.empty((0, 3), np.int64), *_near_in_tiles(rows, columns)])
    near = near[near[:, 1] > near[:, 0]]
    near = near[np.lexsort((near[:, 1], near[:, 0]))]
    first, values = near[:, 0], near[:, 2]
    counts = np.bincount(first, minlength=rows.shape[2])
    if np.max(counts, initial=0) > MAX_NEIGHBOURS:
        limits = np.full(rows.shape[2], MAX_DISTANCE)
        for row in np.flatnonzero(counts > MAX_NEIGHBOURS):
            limits[row] = np.partition(values[first == row], MAX_NEIGHBOURS - 1)[MAX_NEIGHBOURS - 1]
        near = near[values <= limits[first]]
    return near


def _near_in_tiles(rows: NDArray[np.uint64], columns: NDArray[np.uint64]) -> Iterator[NDArray[np.int64]]:
    """Yield the near pairs [n, 3] of each tile: (row, column, distance), including columns before the row."""
    height, widest = _TILE
    number = columns.shape[2]
    width = ceil(number / ceil(number / widest))  # equally wide tiles: numpy takes three times as long for narrow ones
    buffers = _Buffers()
    for left in range(0, number, width):
        for top in range(0, rows.shape[2], height):
            distances = buffers.distances(rows[:, :, top : top + height], columns[:, :, left : left + width])
            if np.min(distances) <= MAX_DISTANCE:
                places = np.flatnonzero(distances <= MAX_DISTANCE)
                first, second = np.divmod(places, distances.shape[1])
                yield np.stack([first + top, second + left, distances.ravel()[places]], axis=1)


class _Buffers:
    """Reused buffers for the distances of a tile: allocating them would take as long as computing the distances."""

    def __init__(self) -> None:
        size = _TILE[0] * _TILE[1]
        self._differing = np.empty(size, np.uint64)
        self._count, self._bits, self._minimum = (np.empty(size, np.uint8) for _ in range(3))

    def distances(self, rows: NDArray[np.uint64], columns: NDArray[np.uint64]) -> NDArray[np.uint8]:
        """Return the smallest Hamming distance over the pairs of views [rows, columns]; the next call overwrites it."""
        shape = rows.shape[2], columns.shape[2]
        differing = self._differing[: shape[0] * shape[1]].reshape(shape)
        count, bits, distances = (
            buffer[: shape[0] * shape[1]].reshape(shape) for buffer in (self._count, self._bits, self._minimum)
        )
        distances.fill(np.iinfo(np.uint8).max)
        for view, other in VIEW_PAIRS:
            bits.fill(0)
            for word in range(rows.shape[1]):
                np.bitwise_xor(rows[view, word, :, None], columns[other, word, None, :], out=differing)
                np.add(bits, np.bitwise_count(differing, out=count), out=bits)
            np.minimum(distances, bits, out=distances)
        return distances
