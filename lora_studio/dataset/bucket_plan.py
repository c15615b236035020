"""Which images fall into which bucket, what is cropped from each, and what a batch size leaves empty."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from lora_studio.dataset.buckets import Placement, Size, place_for
from lora_studio.settings.recipe import Recipe


class Placed(NamedTuple):
    """An image of `size` pixels in its bucket; `cropped` is the share of its area that is cut away."""

    path: Path
    size: Size
    placement: Placement

    @property
    def cropped(self) -> float:
        """The share of the scaled image that is not in the bucket, 0 to 1."""
        (width, height), (bucket_width, bucket_height) = self.placement.scaled, self.placement.bucket
        return 1 - bucket_width * bucket_height / (width * height)

    @property
    def frame(self) -> tuple[float, float, float, float]:
        """What is kept: left, top, right, bottom, as shares of the image's sides that are cut away there."""
        (width, height), (left, top) = self.placement.scaled, self.placement.crop
        bucket_width, bucket_height = self.placement.bucket
        return (
            left / width,
            top / height,
            (width - left - bucket_width) / width,
            (height - top - bucket_height) / height,
        )


@dataclass(frozen=True)
class Bucket:
    """One bucket: its images, the most cropped first; in an epoch `samples` images times repeats fill `batches`.

    The last batch of the bucket lacks `empty` images.
    """

    size: Size
    images: list[Placed]
    samples: int
    batches: int
    empty: int


def bucket_plan(images: Iterable[tuple[Path, Size, int]], recipe: Recipe) -> list[Bucket]:
    """The buckets of images (path, size in pixels, repeats) with a recipe's settings, the fullest first."""
    placed: dict[Size, list[tuple[Placed, int]]] = {}
    places: dict[Size, Placement] = {}
    for path, size, repeats in images:
        placement = places.get(size) or places.setdefault(size, place_for(recipe, *size))
        placed.setdefault(placement.bucket, []).append((Placed(path, size, placement), recipe.repeats or repeats))
    buckets = []
    for size, members in placed.items():
        samples = sum(repeats for _, repeats in members)
        batches = -(-samples // recipe.batch_size)
        buckets.append(
            Bucket(
                size,
                sorted((one for one, _ in members), key=lambda one: -one.cropped),
                samples,
                batches,
                batches * recipe.batch_size - samples,
            )
        )
    return sorted(buckets, key=lambda bucket: (-bucket.samples, bucket.size))
