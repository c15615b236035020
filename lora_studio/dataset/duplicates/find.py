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
from lora_studio.dataset.duplicates.alignment import Alignment, align_pairs
from lora_studio.dataset.duplicates.candidates import candidate_pairs
from lora_studio.dataset.duplicates.fingerprints import Fingerprint
from lora_studio.dataset.duplicates.pools import cancelling
from lora_studio.dataset.images.decode import ImageInfo, read_image
from lora_studio.errors import InputError

LARGEST_DIFFERENCE = 0.16  # of the contrast: measured copies stay below, the nearest unlike drawings are above
MANY_PAIRS = 4_000  # from here on other processes help: starting them takes about a second

_LOSSLESS = (".png", ".bmp", ".dib", ".tif", ".tiff")
_BATCH = 32  # pairs aligned at once: their arrays fit into the processor's cache
_CROPPED = 0.015  # of a side: windows that differ less are the whole picture
_BRIGHTER = 1.06  # factor of contrast from which a copy is called brightened


Told = Callable[[str, int, int], None]  # phase, done, total (0: unknown)


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
    entries: Sequence[Entry],
    *,
    tell: Told = lambda phase, done, total: None,
    workers: int = 1,
    many_pairs: int = MANY_PAIRS,
) -> list[DuplicateGroup]:
    """Groups of copies among readable images, in the order of the images kept.

    `tell(phase, done, total)` says how far it is; what it raises ends the search. `workers` cores share the work, other
    processes from `many_pairs` pairs on that are worth a closer look.
    """
    by_hash: dict[str, list[Entry]] = {}
    for entry in entries:
        by_hash.setdefault(entry.info.sha256, []).append(entry)
    groups, unique = [], []
    for same in by_hash.values():
        keep, *copies = sorted(same, key=_tie)
        unique.append(keep)
        if copies:
            groups.append(_exact_group(keep, copies, "identical file"))
    links = _links(unique, tell, workers, many_pairs)
    tell("Choosing which to keep", 0, 0)
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


def _links(entries: Sequence[Entry], tell: Told, workers: int, many_pairs: int) -> list[_Link]:
    tell("Comparing hashes", 0, 0)
    pairs = candidate_pairs(
        [entry.print for entry in entries],
        on_progress=lambda done, total: tell("Comparing hashes", done, total),
        workers=workers,
    )
    links: dict[tuple[int, int], _Link] = {}
    done = 0
    with closing(_aligned(entries, pairs, workers if len(pairs) >= many_pairs else 1)) as aligned:
        for batch, found in aligned:
            for link in _verified(batch, found):
                known = links.get((link.first, link.second))
                # Symmetric pictures match both ways: then they are not called mirrored.
                if known is None or known.mirrored:
                    links[link.first, link.second] = link
            done += len(batch)
            tell("Looking closely at likely copies", done, len(pairs))
    return list(links.values())


def _aligned(
    entries: Sequence[Entry], pairs: NDArray[np.int64], workers: int
) -> Generator[tuple[NDArray[np.int64], Alignment]]:
    """Batches of pairs with their alignment, shared among processes if there are to be several.

    Where those die (for want of memory) or cannot be started, this one does the rest.
    """
    left = deque(pairs[start : start + _BATCH] for start in range(0, len(pairs), _BATCH))
    if workers > 1:
        with suppress(BrokenExecutor), closing(_aligned_elsewhere(entries, list(left), workers)) as found:
            for alignment in found:
                yield left.popleft(), alignment
    for batch in left:
        yield batch, align_pairs(*_pictures(entries, batch))


def _aligned_elsewhere(
    entries: Sequence[Entry], batches: Sequence[NDArray[np.int64]], workers: int
) -> Generator[Alignment]:
    """The alignment of batches, in order. A few wait at a time, as their pictures are in memory."""
    # Spawned, not forked: the interface has threads.
    with cancelling(ProcessPoolExecutor(workers, mp_context=get_context("spawn"))) as pool:
        waiting: deque[Future[Alignment]] = deque()
        for batch in batches:
            waiting.append(pool.submit(align_pairs, *_pictures(entries, batch)))
            if len(waiting) > 4 * workers:
                yield waiting.popleft().result()
        for future in waiting:
            yield future.result()


def _pictures(
    entries: Sequence[Entry], pairs: NDArray[np.int64]
) -> tuple[NDArray[np.uint8], NDArray[np.uint8], NDArray[np.float32]]:
    """What `align_pairs` takes: the small pictures of both, the first mirrored where asked for, and where to start."""
    prints = [(entries[first].print, entries[second].print, bool(turned)) for first, second, _, turned in pairs]
    base = np.stack([first.small[:, ::-1] if turned else first.small for first, _, turned in prints])
    other = np.stack([second.small for _, second, _ in prints])
    return base, other, np.array([_start(first, second, turned) for first, second, turned in prints], np.float32)


def _verified(pairs: NDArray[np.int64], found: Alignment) -> Iterator[_Link]:
    for index in np.flatnonzero(found.worst <= LARGEST_DIFFERENCE):
        first, second, distance, turned = (int(value) for value in pairs[index])
        left, right, top, bottom = found.window[index]
        uncut = max(abs(left), abs(1 - right), abs(top), abs(1 - bottom)) < _CROPPED
        area = 1.0 if uncut else float((right - left) * (bottom - top))
        yield _Link(first, second, distance, bool(turned), area, float(found.gain[index]))


def _start(first: Fingerprint, second: Fingerprint, turned: bool) -> tuple[float, float, float, float]:
    """The window of `first` (left, right, top, bottom) that lays the contents of both on each other."""
    left, top, right, bottom = first.content
    if turned:
        left, right = 1 - right, 1 - left
    other_left, other_top, other_right, other_bottom = second.content
    scale_x, scale_y = (right - left) / (other_right - other_left), (bottom - top) / (other_bottom - other_top)
    x, y = left - other_left * scale_x, top - other_top * scale_y
    return x, x + scale_x, y, y + scale_y
