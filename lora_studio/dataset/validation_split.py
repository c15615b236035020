"""The validation split: images that are not trained on, to measure the validation loss.

The choice depends only on the content of the images and the seed: names and order do not matter, and adding an image
changes little. Duplicates of one image stay on the same side of the split; otherwise the validation loss would measure
images that are trained on.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path

from pydantic import BaseModel, ConfigDict


class SplitSuggestion(BaseModel):
    """A validation split: its share of all images (0 to 1), its images, and the reason."""

    model_config = ConfigDict(frozen=True)

    share: float
    held_out: list[Path]
    why: str


def choose_validation_images(
    images: Sequence[tuple[Path, str]], duplicates: Iterable[Iterable[Path]], *, share: float, seed: int
) -> frozenset[Path]:
    """Return the paths of the validation images; `images` has the path and SHA-256 of each image.

    `duplicates` are groups of paths that stay together. The number of images is as near to `share` of all as whole
    groups allow: at least one group if `share` is above 0, and never all.
    """
    groups = _groups(images, duplicates)
    wanted = share * len(images)
    if not wanted or len(groups) < 2:
        return frozenset()
    ranked = sorted(groups, key=lambda group: _rank(seed, group))
    chosen: list[tuple[Path, str]] = []
    for group in ranked[:-1]:
        # Take the group if that brings the number nearer to the wanted one.
        if chosen and len(chosen) + len(group) / 2 > wanted:
            break
        chosen += group
    return frozenset(path for path, _ in chosen)


def validation_count(images: int, share: float) -> int:
    """Return how many of `images` images `choose_validation_images` takes if none are duplicates."""
    return min(max(1, int(share * images + 0.5)), images - 1) if share and images > 1 else 0


def _groups(images: Sequence[tuple[Path, str]], duplicates: Iterable[Iterable[Path]]) -> list[list[tuple[Path, str]]]:
    """Return the images in groups of duplicates: the same bytes, or members of one group of `duplicates`."""
    parent = list(range(len(images)))

    def root(index: int) -> int:
        while parent[index] != index:
            parent[index] = parent[parent[index]]
            index = parent[index]
        return index

    def union(members: list[int]) -> None:
        for other in members[1:]:
            parent[root(other)] = root(members[0])

    places: dict[str, list[int]] = {}
    for index, (_, sha256) in enumerate(images):
        places.setdefault(sha256, []).append(index)
    by_path = {path: index for index, (path, _) in enumerate(images)}
    for members in [*places.values(), *([by_path[path] for path in group if path in by_path] for group in duplicates)]:
        union(members)
    found: dict[int, list[tuple[Path, str]]] = {}
    for index, image in enumerate(images):
        found.setdefault(root(index), []).append(image)
    return list(found.values())


def _rank(seed: int, group: list[tuple[Path, str]]) -> bytes:
    """Return a pseudo-random sort key that depends on the seed and the content of the group's images."""
    content = min(sha256 for _, sha256 in group)
    return hashlib.blake2b(f"{seed}/held out/{content}".encode()).digest()
