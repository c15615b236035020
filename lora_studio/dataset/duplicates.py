"""Which images are copies of one another, and which of them to keep.

Hashes propose pairs (vectorised, in blocks of bounded memory), alignment decides about each (see alignment.py), and
groups are stars: every image in `reject` was compared with `keep` itself, so that a chain of small changes never joins
two images that differ.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from lora_studio.dataset.alignment import Floats, align
from lora_studio.dataset.captions import existing_caption
from lora_studio.dataset.fingerprints import HASH_BITS, VIEW_PAIRS, Fingerprint
from lora_studio.dataset.images import ImageInfo, read_image
from lora_studio.errors import InputError

NEAR_DISTANCE = 28  # of 128 bits: what the hashes propose; unlike photos are some 64 apart
LARGEST_DIFFERENCE = 0.16  # of the contrast: measured copies stay below, the nearest unlike drawings are above
NEAREST = 24  # candidates an image, so that a large set of one style stays affordable

_BLOCK = 256  # rows of hashes compared with all others at once
_LOSSLESS = (".png", ".bmp", ".dib", ".tif", ".tiff")
_BATCH = 32  # pairs aligned at once: their arrays fit into the processor's cache
_CROPPED = 0.015  # of a side: windows that differ less are the whole picture
_BRIGHTER = 1.06  # factor of contrast from which a copy is called brightened


class DuplicateKind(StrEnum):
    """How alike: the same pixels, a changed copy, or (found by other means) much the same motif."""

    EXACT = "exact"
    NEAR = "near"
    SIMILAR = "similar"


class DuplicateGroup(BaseModel):
    """One image to keep and its copies.

    `distance` is the largest hash distance of a copy from `keep`, in bits of 128 (0 for exact ones); `reasons` says in
    words for each of `reject` what it is, and `reason` sums them up.
    """

    model_config = ConfigDict(frozen=True)

    keep: Path
    reject: list[Path]
    kind: DuplicateKind
    distance: int
    reason: str
    reasons: list[str]


@dataclass(frozen=True)
class Entry:
    """A readable image as the search for duplicates sees it."""

    info: ImageInfo
    print: Fingerprint
    size_bytes: int


@dataclass(frozen=True)
class _Link:
    """Two copies, `first` and `second` being indices; what `second` is, seen from `first`."""

    first: int
    second: int
    distance: int
    mirrored: bool
    cropped: float  # share of the area of `first` that `second` shows, 1 for all, above 1 if `first` is the crop
    gain: float


def find_duplicates(
    entries: Sequence[Entry], *, on_progress: Callable[[int, int], None] | None = None
) -> list[DuplicateGroup]:
    """Groups of copies among readable images, in the order of the images kept."""
    by_hash: dict[str, list[Entry]] = {}
    for entry in entries:
        by_hash.setdefault(entry.info.sha256, []).append(entry)
    groups, unique = [], []
    for same in by_hash.values():
        keep, *copies = sorted(same, key=_tie)
        unique.append(keep)
        if copies:
            groups.append(_exact_group(keep, copies, "identical file"))
    links = _links(unique, on_progress)
    groups += _star_groups(unique, links)
    return sorted(groups, key=lambda group: (str(group.keep), group.kind))


def _exact_group(keep: Entry, copies: Sequence[Entry], reason: str) -> DuplicateGroup:
    return DuplicateGroup(
        keep=keep.info.path,
        reject=[copy.info.path for copy in copies],
        kind=DuplicateKind.EXACT,
        distance=0,
        reason=reason,
        reasons=[reason] * len(copies),
    )


def _star_groups(entries: Sequence[Entry], links: Sequence[_Link]) -> list[DuplicateGroup]:
    neighbours: dict[int, dict[int, _Link]] = {}
    for link in links:
        neighbours.setdefault(link.first, {})[link.second] = link
        neighbours.setdefault(link.second, {})[link.first] = link
    groups = []
    for component in _components(neighbours):
        waiting = component
        while waiting:
            keep = _best([(index, entries[index]) for index in waiting], neighbours)
            copies = [index for index in waiting if index in neighbours[keep]]
            if copies:
                groups += _group(entries, keep, copies, neighbours[keep])
            waiting = [index for index in waiting if index != keep and index not in copies]
    return groups


def _components(neighbours: dict[int, dict[int, _Link]]) -> Iterator[list[int]]:
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


def _group(entries: Sequence[Entry], keep: int, copies: Sequence[int], links: dict[int, _Link]) -> list[DuplicateGroup]:
    best = entries[keep]
    same = [copy for copy in copies if _same_pixels(best, entries[copy], links[copy])]
    near = [copy for copy in copies if copy not in same]
    groups = []
    if same:
        groups.append(_exact_group(best, [entries[copy] for copy in same], "identical pixels"))
    if near:
        reasons = [_reason(best, entries[copy], links[copy], keep) for copy in near]
        groups.append(
            DuplicateGroup(
                keep=best.info.path,
                reject=[entries[copy].info.path for copy in near],
                kind=DuplicateKind.NEAR,
                distance=max(links[copy].distance for copy in near),
                reason="; ".join(dict.fromkeys(reasons)),
                reasons=reasons,
            )
        )
    return groups


def _best(candidates: Sequence[tuple[int, Entry]], neighbours: dict[int, dict[int, _Link]]) -> int:
    """The largest, then the sharpest; then one that was saved without loss, then the file with most bytes.

    Where that leaves several, and among those of equal pixels whatever their bytes, `_tie` decides.
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
    best, entry = min(rich, key=lambda item: _tie(item[1]))
    links = neighbours[best]
    same = [item for item in largest if item[0] in links and _same_pixels(entry, item[1], links[item[0]])]
    return min([(best, entry), *same], key=lambda item: _tie(item[1]))[0]


def _tie(entry: Entry) -> tuple[bool, int, str]:
    """A captioned image comes first, then the shorter name: copies are called `a (1).png` or `a copy.png`."""
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


def _same_pixels(keep: Entry, copy: Entry, link: _Link) -> bool:
    if link.distance or link.mirrored or (keep.info.width, keep.info.height) != (copy.info.width, copy.info.height):
        return False
    try:
        return read_image(keep.info.path).tobytes() == read_image(copy.info.path).tobytes()
    except InputError:
        return False


def _reason(keep: Entry, copy: Entry, link: _Link, keep_index: int) -> str:
    """What `copy` is in comparison with `keep`, like "mirrored, smaller copy"."""
    shown, gain = (link.cropped, link.gain) if link.first == keep_index else (1 / link.cropped, 1 / link.gain)
    words = ["mirrored"] if link.mirrored else []
    if abs(shown - 1) > 2 * _CROPPED:
        words.append("cropped" if shown < 1 else "wider")
    if gain > _BRIGHTER or gain < 1 / _BRIGHTER:
        words.append("brightened" if gain > 1 else "darkened")
    elif copy.info.width * copy.info.height < shown * keep.info.width * keep.info.height * 0.98:
        words.append("smaller")
    return f"{', '.join(words) or 're-encoded'} copy"


def _links(entries: Sequence[Entry], on_progress: Callable[[int, int], None] | None) -> list[_Link]:
    pairs = candidate_pairs([entry.print for entry in entries])
    links: dict[tuple[int, int], _Link] = {}
    for start in range(0, len(pairs), _BATCH):
        for link in _verified(entries, pairs[start : start + _BATCH]):
            known = links.get((link.first, link.second))
            # Symmetric pictures match both ways: then they are not called mirrored.
            if known is None or known.mirrored:
                links[link.first, link.second] = link
        if on_progress:
            on_progress(min(start + _BATCH, len(pairs)), len(pairs))
    return list(links.values())


def candidate_pairs(prints: Sequence[Fingerprint]) -> NDArray[np.int64]:
    """Pairs worth a closer look: [n, 4] of (first, second, distance in bits, 1 if mirrored), first < second.

    At most the nearest `NEAREST` of each image and orientation.
    """
    if len(prints) < 2:
        return np.empty((0, 4), np.int64)
    plain = np.stack([item.hashes for item in prints])  # [N, views, words]
    mirrored = np.stack([item.mirrored for item in prints])
    found = []
    for start in range(0, len(prints) - 1, _BLOCK):
        rows = np.arange(start, min(start + _BLOCK, len(prints)))
        for turned, hashes in enumerate((plain, mirrored)):
            distance = _distances(hashes[rows], plain[start:])
            distance[rows[:, None] >= np.arange(start, len(prints))] = HASH_BITS
            if distance.shape[1] > NEAREST:
                limit = np.partition(distance, NEAREST - 1, axis=1)[:, NEAREST - 1 : NEAREST]
            else:
                limit = np.full((len(rows), 1), NEAR_DISTANCE)
            first, second = np.nonzero(distance <= np.minimum(limit, NEAR_DISTANCE))
            found.append(
                np.stack(
                    [first + start, second + start, distance[first, second], np.full(len(first), turned)], axis=1
                ).astype(np.int64)
            )
    return np.concatenate(found)


def _distances(rows: NDArray[np.uint64], columns: NDArray[np.uint64]) -> NDArray[np.uint8]:
    """Least Hamming distance over the pairs of views: [rows, columns], at most 128."""
    least = np.full((len(rows), len(columns)), HASH_BITS, np.uint8)
    for view, other in VIEW_PAIRS:
        bits = np.zeros_like(least)
        for word in range(rows.shape[2]):
            bits += np.bitwise_count(rows[:, None, view, word] ^ columns[None, :, other, word])
        np.minimum(least, bits, out=least)
    return least


def _verified(entries: Sequence[Entry], pairs: NDArray[np.int64]) -> Iterator[_Link]:
    prints = [(entries[first].print, entries[second].print, bool(turned)) for first, second, _, turned in pairs]
    base = _floats([first.small[:, ::-1] if turned else first.small for first, _, turned in prints])
    other = _floats([second.small for _, second, _ in prints])
    start = np.array([_start(first, second, turned) for first, second, turned in prints], np.float32)
    found = align(base, other, start)
    for index in np.flatnonzero(found.worst <= LARGEST_DIFFERENCE):
        first, second, distance, turned = (int(value) for value in pairs[index])
        left, right, top, bottom = found.window[index]
        uncut = max(abs(left), abs(1 - right), abs(top), abs(1 - bottom)) < _CROPPED
        area = 1.0 if uncut else float((right - left) * (bottom - top))
        yield _Link(first, second, distance, bool(turned), area, float(found.gain[index]))


def _floats(pictures: Sequence[NDArray[np.uint8]]) -> Floats:
    return np.stack(pictures).astype(np.float32) / 255


def _start(first: Fingerprint, second: Fingerprint, turned: bool) -> tuple[float, float, float, float]:
    """The window of `first` (left, right, top, bottom) that lays the contents of both on each other."""
    left, top, right, bottom = first.content
    if turned:
        left, right = 1 - right, 1 - left
    other_left, other_top, other_right, other_bottom = second.content
    scale_x, scale_y = (right - left) / (other_right - other_left), (bottom - top) / (other_bottom - other_top)
    x, y = left - other_left * scale_x, top - other_top * scale_y
    return x, x + scale_x, y, y + scale_y
