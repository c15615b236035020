"""Which images are copies of one another, and which of them to keep.

Hashes propose pairs (vectorised, in blocks of bounded memory), alignment decides about each (see alignment.py), and
groups are stars: every image in `reject` was compared with `keep` itself, so that a chain of small changes never joins
two images that differ.
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

MAX_RESIDUAL = 0.16  # of the contrast: measured copies stay below, the nearest unlike drawings are above
MIN_PROCESS_PAIRS = 4_000  # from here on other processes help: starting them takes about a second

_LOSSLESS = (".png", ".bmp", ".dib", ".tif", ".tiff")
_BATCH = 32  # pairs aligned at once: their arrays fit into the processor's cache
_MIN_CROP = 0.015  # of a side: windows that differ less are the whole picture
_MIN_GAIN_CHANGE = 1.06  # factor of contrast from which a copy is called brightened


ReportProgress = Callable[[str, int, int], None]  # phase, done, total (0: unknown)


class DuplicateKind(StrEnum):
    """How alike: the same pixels, a changed copy, or (by what a tagger sees, see similarity.py) much the same motif."""

    EXACT = "exact"
    NEAR = "near"
    SIMILAR = "similar"


class DuplicateGroup(BaseModel):
    """One image to keep and its copies.

    `distance` is the largest hash distance of a copy from `keep`, in bits of 128 (0 for exact ones), for similar images
    100 less their likeness in percent; `reasons` says in words for each of `reject` what it is, and `reason` sums them
    up. Similar images are for a curator to look at: nothing sets them aside by itself.
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
    """A readable image as the search for duplicates sees it."""

    info: ImageInfo
    fingerprint: Fingerprint
    size_bytes: int


@dataclass(frozen=True)
class _Match:
    """Two copies, `first` and `second` being indices; what `second` is, seen from `first`."""

    first: int
    second: int
    distance: int
    mirrored: bool
    area_ratio: float  # share of the area of `first` that `second` shows, 1 for all, above 1 if `first` is the crop
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
            groups.append(_exact_group(keep, duplicates, "identical file"))
    matches = _find_matches(unique, report_progress, workers, min_process_pairs)
    report_progress("Choosing which to keep", 0, 0)
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
    best = entries[keep]
    same = [duplicate for duplicate in duplicates if _same_pixels(best, entries[duplicate], matches[duplicate])]
    near = [duplicate for duplicate in duplicates if duplicate not in same]
    groups = []
    if same:
        groups.append(_exact_group(best, [entries[duplicate] for duplicate in same], "identical pixels"))
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
    """The largest, then the sharpest; then one that was saved without loss, then the file with most bytes.

    Where that leaves several, and among those of equal pixels whatever their bytes, `_tie_break` decides.
    """
    area = max(entry.info.width * entry.info.height for _, entry in candidates)
    largest = [(index, entry) for index, entry in candidates if entry.info.width * entry.info.height == area]
    if len(largest) > 1:
        sharpness = {index: _sharpness(entry.info.path) for index, entry in largest}
        # Compression leaves noise that looks sharp: a small difference decides nothing.
        enough = 0.8 * max(sharpness.values())
        largest = [(index, entry) for index, entry in largest if sharpness[index] >= enough]
    # Even when it was made of a lossy copy, a lossless one is no worse.
    lossless = [item for item in largest if item[1].info.path.suffix.lower() in _LOSSLESS]
    most = max(entry.size_bytes for _, entry in lossless or largest)
    rich = [item for item in lossless or largest if item[1].size_bytes >= 0.95 * most]
    best, entry = min(rich, key=lambda item: _tie_break(item[1]))
    matches = neighbours[best]
    same = [item for item in largest if item[0] in matches and _same_pixels(entry, item[1], matches[item[0]])]
    return min([(best, entry), *same], key=lambda item: _tie_break(item[1]))[0]


def _tie_break(entry: FingerprintedImage) -> tuple[bool, int, str]:
    """A captioned image comes first, then the shorter name: copies are called `a (1).png` or `a duplicate.png`."""
    path = entry.info.path
    return existing_caption(path) is None, len(path.name), str(path)


def _sharpness(path: Path) -> float:
    """Variance of the Laplacian of the grey image (Pech-Pacheco et al. 2000), by the variance of the grey itself.

    So a brightened copy, whose edges are only higher, is no sharper.
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
    """What `duplicate` is in comparison with `keep`, like "mirrored, smaller copy"."""
    shown, gain = (
        (match.area_ratio, match.gain) if match.first == keep_index else (1 / match.area_ratio, 1 / match.gain)
    )
    words = ["mirrored"] if match.mirrored else []
    if abs(shown - 1) > 2 * _MIN_CROP:
        words.append("cropped" if shown < 1 else "wider")
    if gain > _MIN_GAIN_CHANGE or gain < 1 / _MIN_GAIN_CHANGE:
        words.append("brightened" if gain > 1 else "darkened")
    elif duplicate.info.width * duplicate.info.height < shown * keep.info.width * keep.info.height * 0.98:
        words.append("smaller")
    return f"{', '.join(words) or 're-encoded'} copy"


def _find_matches(
    entries: Sequence[FingerprintedImage], report_progress: ReportProgress, workers: int, min_process_pairs: int
) -> list[_Match]:
    report_progress("Comparing hashes", 0, 0)
    pairs = candidate_pairs(
        [entry.fingerprint for entry in entries],
        on_progress=lambda done, total: report_progress("Comparing hashes", done, total),
        workers=workers,
    )
    matches: dict[tuple[int, int], _Match] = {}
    done = 0
    with closing(_align_batches(entries, pairs, workers if len(pairs) >= min_process_pairs else 1)) as aligned:
        for batch, found in aligned:
            for match in _accepted_matches(batch, found):
                known = matches.get((match.first, match.second))
                # Symmetric pictures match both ways: then they are not called mirrored.
                if known is None or known.mirrored:
                    matches[match.first, match.second] = match
            done += len(batch)
            report_progress("Looking closely at likely copies", done, len(pairs))
    return list(matches.values())


def _align_batches(
    entries: Sequence[FingerprintedImage], pairs: NDArray[np.int64], workers: int
) -> Generator[tuple[NDArray[np.int64], Alignment]]:
    """Batches of pairs with their alignment, shared among processes if there are to be several.

    Where those die (for want of memory) or cannot be started, this one does the rest.
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
    """The alignment of batches, in order. A few wait at a time, as their pictures are in memory."""
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
    """What `align_uint8` takes: the small pictures of both, the first mirrored where asked for, and where to start."""
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
    for index in np.flatnonzero(found.residual <= MAX_RESIDUAL):
        first, second, distance, is_mirrored = (int(value) for value in pairs[index])
        left, right, top, bottom = found.window[index]
        uncut = max(abs(left), abs(1 - right), abs(top), abs(1 - bottom)) < _MIN_CROP
        area = 1.0 if uncut else float((right - left) * (bottom - top))
        yield _Match(first, second, distance, bool(is_mirrored), area, float(found.gain[index]))


def _initial_window(first: Fingerprint, second: Fingerprint, is_mirrored: bool) -> tuple[float, float, float, float]:
    """The window of `first` (left, right, top, bottom) that lays the contents of both on each other."""
    left, top, right, bottom = first.content_box
    if is_mirrored:
        left, right = 1 - right, 1 - left
    other_left, other_top, other_right, other_bottom = second.content_box
    scale_x, scale_y = (right - left) / (other_right - other_left), (bottom - top) / (other_bottom - other_top)
    x, y = left - other_left * scale_x, top - other_top * scale_y
    return x, x + scale_x, y, y + scale_y
