"""Find groups of duplicate images, and choose which image of each group to keep.

Hashes propose candidate pairs (candidates.py), registration verifies each (alignment.py), and the groups are stars:
every image in `reject` was compared with `keep` itself, so that a chain of small changes never joins two images that
differ.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import BrokenExecutor, Future, ProcessPoolExecutor
from contextlib import closing, suppress
from dataclasses import dataclass
from enum import StrEnum
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from lora_studio.dataset.captions.text import existing_caption
from lora_studio.dataset.duplicates.alignment import Alignment, align_uint8
from lora_studio.dataset.duplicates.candidates import candidate_pairs
from lora_studio.dataset.duplicates.fingerprints import Fingerprint
from lora_studio.dataset.duplicates.pools import cancel_on_exit
from lora_studio.dataset.images.decode import ImageInfo, read_image
from lora_studio.errors import InputError

MAX_RESIDUAL = 0.16  # of the contrast: measured duplicates are below, the most similar other drawings above
MIN_PROCESS_PAIRS = 4_000  # of candidates, from which on other processes are used: starting them takes about a second

_LOSSLESS = (".png", ".bmp", ".dib", ".tif", ".tiff")
COMPARE_HASHES, VERIFY, CHOOSE = (
    "Comparing hashes",
    "Comparing candidate duplicates",
    "Choosing which to keep",
)  # phases
_BATCH = 32  # pairs aligned at once: their arrays fit into the CPU's cache
_MIN_CROP = 0.015  # of a side: windows that differ less are the whole image
_MIN_GAIN_CHANGE = 1.06  # factor of contrast from which a duplicate is called brightened


ReportProgress = Callable[[str, int, int], None]  # phase, done, total (0: unknown)


class DuplicateKind(StrEnum):
    """Kind of a group: the same pixels, changed pixels, or similar features of a tagger (similarity.py)."""

    EXACT = "exact"
    NEAR = "near"
    SIMILAR = "similar"


class DuplicateGroup(BaseModel):
    """One image to keep and its duplicates.

    `distance` is the largest hash distance of a duplicate from `keep`, in bits of 128 (0 for exact duplicates); for
    similar images it is 100 minus their similarity in percent. `reasons` describes each image of `reject`, and `reason`
    summarises them. Similar images are only shown: they are never set aside automatically.
    """

    model_config = ConfigDict(frozen=True)

    keep: Path
    reject: list[Path]
    kind: DuplicateKind
    distance: int
    reason: str
    reasons: list[str]


@dataclass(frozen=True)
class FingerprintedImage:
    """A readable image with its fingerprint and file size."""

    info: ImageInfo
    fingerprint: Fingerprint
    size_bytes: int


@dataclass(frozen=True)
class _Match:
    """A verified pair of duplicates, by index, and how `second` differs from `first`."""

    first: int
    second: int
    distance: int
    mirrored: bool
    area_ratio: float  # share of the area of `first` that `second` shows; above 1 if `first` is the crop
    gain: float


def find_duplicates(
    entries: Sequence[FingerprintedImage],
    *,
    report_progress: ReportProgress = lambda phase, done, total: None,
    workers: int = 1,
    min_process_pairs: int = MIN_PROCESS_PAIRS,
) -> list[DuplicateGroup]:
    """Return the groups of duplicates among readable images, ordered by the image kept.

    What `report_progress(phase, done, total)` raises ends the search. `workers` cores share the work; candidate pairs
    are aligned in other processes if there are at least `min_process_pairs` of them.
    """
    by_hash: dict[str, list[FingerprintedImage]] = {}
    for entry in entries:
        by_hash.setdefault(entry.info.sha256, []).append(entry)
    groups, unique = [], []
    for same in by_hash.values():
        keep, *duplicates = sorted(same, key=_tie_break)
        unique.append(keep)
        if duplicates:
            groups.append(_exact_group(keep, duplicates, "exact duplicate"))
    matches = _find_matches(unique, report_progress, workers, min_process_pairs)
    report_progress(CHOOSE, 0, 0)
    groups += _star_groups(unique, matches)
    return sorted(groups, key=lambda group: (str(group.keep), group.kind))


def _exact_group(keep: FingerprintedImage, duplicates: Sequence[FingerprintedImage], reason: str) -> DuplicateGroup:
    return DuplicateGroup(
        keep=keep.info.path,
        reject=[duplicate.info.path for duplicate in duplicates],
        kind=DuplicateKind.EXACT,
        distance=0,
        reason=reason,
        reasons=[reason] * len(duplicates),
    )


def _star_groups(entries: Sequence[FingerprintedImage], matches: Sequence[_Match]) -> list[DuplicateGroup]:
    """Form groups whose members all match the image that is kept."""
    neighbours: dict[int, dict[int, _Match]] = {}
    for match in matches:
        neighbours.setdefault(match.first, {})[match.second] = match
        neighbours.setdefault(match.second, {})[match.first] = match
    groups = []
    for component in _components(neighbours):
        waiting = component
        while waiting:
            keep = _choose_keep([(index, entries[index]) for index in waiting], neighbours)
            duplicates = [index for index in waiting if index in neighbours[keep]]
            if duplicates:
                groups += _group(entries, keep, duplicates, neighbours[keep])
            waiting = [index for index in waiting if index != keep and index not in duplicates]
    return groups


def _components(neighbours: dict[int, dict[int, _Match]]) -> Iterator[list[int]]:
    """Yield the connected components of the graph of matches."""
    seen: set[int] = set()
    for start in sorted(neighbours):
        if start in seen:
            continue
        stack, component = [start], []
        seen.add(start)
        while stack:
            index = stack.pop()
            component.append(index)
            fresh = neighbours[index].keys() - seen
            seen |= fresh
            stack.extend(fresh)
        yield sorted(component)


def _group(
    entries: Sequence[FingerprintedImage], keep: int, duplicates: Sequence[int], matches: dict[int, _Match]
) -> list[DuplicateGroup]:
    """Return one group for duplicates with the same pixels and one for the others, where there are any."""
    best = entries[keep]
    same = [duplicate for duplicate in duplicates if _same_pixels(best, entries[duplicate], matches[duplicate])]
    near = [duplicate for duplicate in duplicates if duplicate not in same]
    groups = []
    if same:
        groups.append(_exact_group(best, [entries[duplicate] for duplicate in same], "pixel-identical duplicate"))
    if near:
        reasons = [_reason(best, entries[duplicate], matches[duplicate], keep) for duplicate in near]
        groups.append(
            DuplicateGroup(
                keep=best.info.path,
                reject=[entries[duplicate].info.path for duplicate in near],
                kind=DuplicateKind.NEAR,
                distance=max(matches[duplicate].distance for duplicate in near),
                reason="; ".join(dict.fromkeys(reasons)),
                reasons=reasons,
            )
        )
    return groups


def _choose_keep(candidates: Sequence[tuple[int, FingerprintedImage]], neighbours: dict[int, dict[int, _Match]]) -> int:
    """Choose the largest image, then the sharpest, then a losslessly compressed one, then the largest file.

    Among equal ones, and among images with the same pixels in any format, `_tie_break` decides.
    """
    area = max(entry.info.width * entry.info.height for _, entry in candidates)
    largest = [(index, entry) for index, entry in candidates if entry.info.width * entry.info.height == area]
    if len(largest) > 1:
        sharpness = {index: _sharpness(entry.info.path) for index, entry in largest}
        # Compression noise looks like sharpness: small differences do not count.
        min_sharpness = 0.8 * max(sharpness.values())
        largest = [(index, entry) for index, entry in largest if sharpness[index] >= min_sharpness]
    # Even if it was made from a lossy file, a lossless one is not worse.
    lossless = [item for item in largest if item[1].info.path.suffix.lower() in _LOSSLESS]
    max_bytes = max(entry.size_bytes for _, entry in lossless or largest)
    near_max_bytes = [item for item in lossless or largest if item[1].size_bytes >= 0.95 * max_bytes]
    best, entry = min(near_max_bytes, key=lambda item: _tie_break(item[1]))
    matches = neighbours[best]
    same = [item for item in largest if item[0] in matches and _same_pixels(entry, item[1], matches[item[0]])]
    return min([(best, entry), *same], key=lambda item: _tie_break(item[1]))[0]


def _tie_break(entry: FingerprintedImage) -> tuple[bool, int, str]:
    """Return a sort key: captioned images first, then shorter names, as copies are called `a (1).png`."""
    path = entry.info.path
    return existing_caption(path) is None, len(path.name), str(path)


def _sharpness(path: Path) -> float:
    """Return the variance of the Laplacian (Pech-Pacheco et al. 2000), divided by the variance of the grey image.

    The division keeps a brightened duplicate, whose edges are only higher, from counting as sharper.
    """
    try:
        grey = np.asarray(read_image(path).convert("L"), dtype=np.float32)
    except InputError:
        return 0.0
    inner = grey[1:-1, 1:-1]
    laplacian = grey[:-2, 1:-1] + grey[2:, 1:-1] + grey[1:-1, :-2] + grey[1:-1, 2:] - 4 * inner
    contrast = float(grey.var()) if laplacian.size else 0.0
    return float(laplacian.var()) / contrast if contrast else 0.0


def _same_pixels(keep: FingerprintedImage, duplicate: FingerprintedImage, match: _Match) -> bool:
    if (
        match.distance
        or match.mirrored
        or (keep.info.width, keep.info.height) != (duplicate.info.width, duplicate.info.height)
    ):
        return False
    try:
        return read_image(keep.info.path).tobytes() == read_image(duplicate.info.path).tobytes()
    except InputError:
        return False


def _reason(keep: FingerprintedImage, duplicate: FingerprintedImage, match: _Match, keep_index: int) -> str:
    """Describe `duplicate` in comparison with `keep`, like "mirrored, resized duplicate"."""
    shown, gain = (
        (match.area_ratio, match.gain) if match.first == keep_index else (1 / match.area_ratio, 1 / match.gain)
    )
    words = ["mirrored"] if match.mirrored else []
    if abs(shown - 1) > 2 * _MIN_CROP:
        words.append("cropped" if shown < 1 else "uncropped")
    if gain > _MIN_GAIN_CHANGE or gain < 1 / _MIN_GAIN_CHANGE:
        words.append("brightened" if gain > 1 else "darkened")
    elif duplicate.info.width * duplicate.info.height < shown * keep.info.width * keep.info.height * 0.98:
        words.append("resized")
    return f"{', '.join(words) or 're-encoded'} duplicate"


def _find_matches(
    entries: Sequence[FingerprintedImage], report_progress: ReportProgress, workers: int, min_process_pairs: int
) -> list[_Match]:
    """Compare hashes, verify the candidate pairs by alignment, and return those that are duplicates."""
    report_progress(COMPARE_HASHES, 0, 0)
    pairs = candidate_pairs(
        [entry.fingerprint for entry in entries],
        on_progress=lambda done, total: report_progress(COMPARE_HASHES, done, total),
        workers=workers,
    )
    matches: dict[tuple[int, int], _Match] = {}
    done = 0
    with closing(_align_batches(entries, pairs, workers if len(pairs) >= min_process_pairs else 1)) as aligned:
        for batch, found in aligned:
            for match in _accepted_matches(batch, found):
                known = matches.get((match.first, match.second))
                # Symmetric images match in both orientations: they do not count as mirrored.
                if known is None or known.mirrored:
                    matches[match.first, match.second] = match
            done += len(batch)
            report_progress(VERIFY, done, len(pairs))
    return list(matches.values())


def _align_batches(
    entries: Sequence[FingerprintedImage], pairs: NDArray[np.int64], workers: int
) -> Generator[tuple[NDArray[np.int64], Alignment]]:
    """Yield batches of pairs with their alignment, computed in other processes if `workers` is above 1.

    If those are killed (out of memory) or cannot be started, this process computes the rest.
    """
    left = deque(pairs[start : start + _BATCH] for start in range(0, len(pairs), _BATCH))
    if workers > 1:
        with suppress(BrokenExecutor), closing(_align_in_processes(entries, list(left), workers)) as found:
            for alignment in found:
                yield left.popleft(), alignment
    for batch in left:
        yield batch, align_uint8(*_alignment_inputs(entries, batch))


def _align_in_processes(
    entries: Sequence[FingerprintedImage], batches: Sequence[NDArray[np.int64]], workers: int
) -> Generator[Alignment]:
    """Yield the alignments of batches in order; only a few are queued at a time, to bound memory."""
    # Spawned, not forked: the interface has threads.
    with cancel_on_exit(ProcessPoolExecutor(workers, mp_context=get_context("spawn"))) as pool:
        waiting: deque[Future[Alignment]] = deque()
        for batch in batches:
            waiting.append(pool.submit(align_uint8, *_alignment_inputs(entries, batch)))
            if len(waiting) > 4 * workers:
                yield waiting.popleft().result()
        for future in waiting:
            yield future.result()


def _alignment_inputs(
    entries: Sequence[FingerprintedImage], pairs: NDArray[np.int64]
) -> tuple[NDArray[np.uint8], NDArray[np.uint8], NDArray[np.float32]]:
    """Return the arguments of `align_uint8`: thumbnails of both (the first mirrored if need be), initial windows."""
    fingerprints = [
        (entries[first].fingerprint, entries[second].fingerprint, bool(is_mirrored))
        for first, second, _, is_mirrored in pairs
    ]
    base = np.stack(
        [first.thumbnail[:, ::-1] if is_mirrored else first.thumbnail for first, _, is_mirrored in fingerprints]
    )
    other = np.stack([second.thumbnail for _, second, _ in fingerprints])
    return (
        base,
        other,
        np.array(
            [_initial_window(first, second, is_mirrored) for first, second, is_mirrored in fingerprints], np.float32
        ),
    )


def _accepted_matches(pairs: NDArray[np.int64], found: Alignment) -> Iterator[_Match]:
    """Yield the pairs whose residual is small enough for duplicates."""
    for index in np.flatnonzero(found.residual <= MAX_RESIDUAL):
        first, second, distance, is_mirrored = (int(value) for value in pairs[index])
        left, right, top, bottom = found.window[index]
        uncut = max(abs(left), abs(1 - right), abs(top), abs(1 - bottom)) < _MIN_CROP
        area = 1.0 if uncut else float((right - left) * (bottom - top))
        yield _Match(first, second, distance, bool(is_mirrored), area, float(found.gain[index]))


def _initial_window(first: Fingerprint, second: Fingerprint, is_mirrored: bool) -> tuple[float, float, float, float]:
    """Return the window of `first` (left, right, top, bottom) that aligns the content boxes of both."""
    left, top, right, bottom = first.content_box
    if is_mirrored:
        left, right = 1 - right, 1 - left
    other_left, other_top, other_right, other_bottom = second.content_box
    scale_x, scale_y = (right - left) / (other_right - other_left), (bottom - top) / (other_bottom - other_top)
    x, y = left - other_left * scale_x, top - other_top * scale_y
    return x, x + scale_x, y, y + scale_y
