"""Which images are held out of training, to see how well a LoRA does on what it was not shown.

The choice depends on the images' content and the seed alone: neither names nor order matter, and an image that is
added changes little. Copies of one picture stay on one side, else the held-out loss would be that of training.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path


def choose_validation_images(
    images: Sequence[tuple[Path, str]], duplicates: Iterable[Iterable[Path]], *, share: float, seed: int
) -> frozenset[Path]:
    """The paths of images to hold out; `images` has path and SHA-256 of each, `duplicates` groups of paths.

    As near to `share` of all images as whole groups allow, at least one group if `share` is above 0, and never all.
    """
    groups = _groups(images, duplicates)
    wanted = share * len(images)
    if not wanted or len(groups) < 2:
        return frozenset()
    ranked = sorted(groups, key=lambda group: _rank(seed, group))
    chosen: list[tuple[Path, str]] = []
    for group in ranked[:-1]:
        # Half of a group too many is as near as half too few.
        if chosen and len(chosen) + len(group) / 2 > wanted:
            break
        chosen += group
    return frozenset(path for path, _ in chosen)


def validation_count(images: int, share: float) -> int:
    """How many of so many images, none a copy of another, `choose_validation_images` takes."""
    return min(max(1, int(share * images + 0.5)), images - 1) if share and images > 1 else 0


def _groups(images: Sequence[tuple[Path, str]], duplicates: Iterable[Iterable[Path]]) -> list[list[tuple[Path, str]]]:
    """Images by what they are duplicates of: the same bytes, or members of one of `duplicates`."""
    parent = list(range(len(images)))

    def root(index: int) -> int:
        while parent[index] != index:
            parent[index] = parent[parent[index]]
            index = parent[index]
        return index

    def join(members: list[int]) -> None:
        for other in members[1:]:
            parent[root(other)] = root(members[0])

    places: dict[str, list[int]] = {}
    for index, (_, sha256) in enumerate(images):
        places.setdefault(sha256, []).append(index)
    by_path = {path: index for index, (path, _) in enumerate(images)}
    for members in [*places.values(), *([by_path[path] for path in group if path in by_path] for group in duplicates)]:
        join(members)
    found: dict[int, list[tuple[Path, str]]] = {}
    for index, image in enumerate(images):
        found.setdefault(root(index), []).append(image)
    return list(found.values())


def _rank(seed: int, group: list[tuple[Path, str]]) -> bytes:
    """A number that is as good as random: by the seed and the content of the group's images."""
    content = min(sha256 for _, sha256 in group)
    return hashlib.blake2b(f"{seed}/held out/{content}".encode()).digest()
