"""Aspect-ratio buckets: which size an image trains at, how it is scaled and where it is cropped.

The arithmetic is that of kohya's sd-scripts (BucketManager), so that counts of steps agree with what people know, with
three corrections: the crop's offset stands on the axis that is cropped, no bucket is larger than `resolution` squared
by a rounding, and `max_bucket_reso` bounds the longer side without upscaling too. Sizes are (width, height) in pixels.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from math import ceil, floor, sqrt
from pathlib import Path
from typing import NamedTuple

from lora_studio.errors import InputError
from lora_studio.settings.recipe import Recipe

Size = tuple[int, int]

VAE_FACTOR = 8  # pixels a latent: the VAE halves the sides three times

# Keeps a quotient that is a whole number in exact arithmetic from being floored to the number below it.
_NOISE = 1e-6


@dataclass(frozen=True)
class Placement:
    """Scale an image to `scaled`, then cut `bucket` out of it at `crop` (left, top).

    `scaled` covers `bucket` on both sides. SDXL's conditioning takes the crop as (top, left).
    """

    bucket: Size
    scaled: Size
    crop: Size


class PlacedImage(NamedTuple):
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

    The last batch of the bucket lacks `empty_slots` images.
    """

    size: Size
    images: list[PlacedImage]
    samples: int
    batches: int
    empty_slots: int


@lru_cache(maxsize=64)
def bucket_sizes(
    *, resolution: int, min_bucket_reso: int = 256, max_bucket_reso: int = 2048, bucket_reso_steps: int = 64
) -> tuple[Size, ...]:
    """All bucket sizes for `resolution` squared pixels, sorted; at least the square one.

    Widths go from `min_bucket_reso` to `max_bucket_reso` in steps; each takes the largest height, a multiple of the
    step, whose area stays within `resolution` squared; both orientations. Raises InputError for a step that the VAE
    cannot take.
    """
    step = _step(resolution, bucket_reso_steps)
    area = resolution * resolution
    largest = max(step, max_bucket_reso // step * step)
    smallest = ceil(min_bucket_reso / step) * step
    side = min(resolution // step * step, largest)
    sizes = {(side, side)}
    for width in range(smallest, largest + 1, step):
        height = min(largest, area // width // step * step)
        if height >= smallest:
            sizes |= {(width, height), (height, width)}
    return tuple(sorted(sizes))


def place(
    width: int,
    height: int,
    *,
    resolution: int,
    enable_bucket: bool = True,
    min_bucket_reso: int = 256,
    max_bucket_reso: int = 2048,
    bucket_reso_steps: int = 64,
    bucket_no_upscale: bool = True,
) -> Placement:
    """Where an image of `width` x `height` pixels trains.

    Without buckets: the square of `resolution`. With buckets: the size of nearest aspect ratio. With
    `bucket_no_upscale`: a bucket of the image's own shape, made of whole steps, and never an enlarged image; only one
    that is smaller than a single step is enlarged to fill it. Raises InputError for an empty image or a bad step.
    """
    if width < 1 or height < 1:
        raise InputError(f"An image of {width} x {height} px has no pixels.", "Remove it.", code="empty_image")
    if not enable_bucket:
        side = max(VAE_FACTOR, resolution // VAE_FACTOR * VAE_FACTOR)
        return _cover(width, height, (side, side))
    if bucket_no_upscale:
        return _place_without_upscale(width, height, resolution, max_bucket_reso, bucket_reso_steps)
    sizes = bucket_sizes(
        resolution=resolution,
        min_bucket_reso=min_bucket_reso,
        max_bucket_reso=max_bucket_reso,
        bucket_reso_steps=bucket_reso_steps,
    )
    if (width, height) in sizes:
        return Placement((width, height), (width, height), (0, 0))
    aspect = width / height
    return _cover(width, height, min(sizes, key=lambda size: abs(size[0] / size[1] - aspect)))


def place_for(recipe: Recipe, width: int, height: int) -> Placement:
    """`place` with the settings of a recipe."""
    return place(
        width,
        height,
        resolution=recipe.resolution,
        enable_bucket=recipe.enable_bucket,
        min_bucket_reso=recipe.min_bucket_reso,
        max_bucket_reso=recipe.max_bucket_reso,
        bucket_reso_steps=recipe.bucket_reso_steps,
        bucket_no_upscale=recipe.bucket_no_upscale,
    )


def bucket_plan(images: Iterable[tuple[Path, Size, int]], recipe: Recipe) -> list[Bucket]:
    """The buckets of images (path, size in pixels, repeats) with a recipe's settings, the fullest first."""
    placed: dict[Size, list[tuple[PlacedImage, int]]] = {}
    places: dict[Size, Placement] = {}
    for path, size, repeats in images:
        placement = places.get(size) or places.setdefault(size, place_for(recipe, *size))
        placed.setdefault(placement.bucket, []).append((PlacedImage(path, size, placement), recipe.repeats or repeats))
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


def _place_without_upscale(width: int, height: int, resolution: int, max_side: int, steps: int) -> Placement:
    step = _step(resolution, steps)
    area = resolution * resolution
    aspect = width / height
    # The longer side is bounded; a bucket one step high may not be longer than the area allows either.
    longest = max(step, min(max_side, area // step) // step * step)
    target_width = min(float(width), sqrt(area * aspect), float(longest), longest * aspect)
    if target_width >= width:
        bucket = (_floor(width, step), _floor(height, step))
        return _cut(width, height, bucket) if min(bucket) else _cover(width, height, _at_least(bucket, step))
    # Scale down so that one side is a whole number of steps: the side that keeps the aspect ratio better.
    candidates: list[tuple[float, Size, Size]] = []
    by_width = _floor(target_width, step)
    if by_width:
        bucket = (by_width, _floor(by_width / aspect, step))
        candidates.append((_error(bucket, aspect), bucket, (by_width, round(by_width / aspect))))
    by_height = _floor(target_width / aspect, step)
    if by_height:
        bucket = (_floor(by_height * aspect, step), by_height)
        candidates.append((_error(bucket, aspect), bucket, (round(by_height * aspect), by_height)))
    usable = [candidate for candidate in candidates if min(candidate[1])]
    if not usable:
        bucket = (_floor(target_width, step), _floor(target_width / aspect, step))
        return _cover(width, height, _at_least(bucket, step))
    _, bucket, scaled = min(usable)
    return _cut(*scaled, bucket)


def _step(resolution: int, steps: int) -> int:
    """The step in use: never above the resolution, so that a bucket of one step fits into its area."""
    if steps < VAE_FACTOR or steps % VAE_FACTOR:
        raise InputError(
            f"bucket_reso_steps is {steps}; the VAE needs multiples of {VAE_FACTOR}.", "Use 64.", code="bucket_step"
        )
    if resolution < VAE_FACTOR:
        raise InputError(f"resolution is {resolution} px.", "Use 1024, or 64 at least.", code="resolution")
    return min(steps, resolution // VAE_FACTOR * VAE_FACTOR)


def _floor(length: float, step: int) -> int:
    return floor(length / step + _NOISE) * step


def _at_least(bucket: Size, step: int) -> Size:
    return max(step, bucket[0]), max(step, bucket[1])


def _error(bucket: Size, aspect: float) -> float:
    return abs(bucket[0] / bucket[1] - aspect) if bucket[1] else float("inf")


def _cover(width: int, height: int, bucket: Size) -> Placement:
    """Scale so that both sides reach the bucket's, then cut its middle."""
    scale = max(bucket[0] / width, bucket[1] / height)
    scaled = max(bucket[0], round(width * scale)), max(bucket[1], round(height * scale))
    return _cut(*scaled, bucket)


def _cut(width: int, height: int, bucket: Size) -> Placement:
    return Placement(bucket, (width, height), ((width - bucket[0]) // 2, (height - bucket[1]) // 2))
