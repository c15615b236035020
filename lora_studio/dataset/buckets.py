"""Aspect-ratio buckets: the size at which an image trains, how it is scaled, and where it is cropped.

The arithmetic is that of kohya's sd-scripts (BucketManager), so that step counts agree with kohya's, with three
corrections: the crop offset is applied to the axis that is cropped; rounding never makes a bucket larger than
`resolution` squared; and `max_bucket_reso` also limits the longer side when `bucket_no_upscale` is set. Sizes are
(width, height) in pixels.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from math import ceil, floor, sqrt
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

from lora_studio.errors import InputError
from lora_studio.settings.recipe import Recipe

Size = tuple[int, int]

VAE_FACTOR = 8  # pixels per latent, per side: the VAE halves each side three times

# Added before flooring, so that rounding errors do not turn a whole quotient into the next lower number.
_EPSILON = 1e-6


class Focus(NamedTuple):
    """The point of an image that a crop is centred on, as shares of its width and height from the left and the top."""

    x: float
    y: float


@dataclass(frozen=True)
class Placement:
    """How an image is fitted to a bucket: scale it to `scaled`, then crop `bucket` out of it at `crop` (left, top).

    `scaled` covers `bucket` on both sides. SDXL's conditioning takes the crop as (top, left).
    """

    bucket: Size
    scaled: Size
    crop: Size

    def focused(self, focus: Focus) -> Placement:
        """Return this placement with the crop as near to the middle of `focus` as the image's edges allow."""
        left, top = (
            min(max(round(share * scaled - side / 2), 0), scaled - side)
            for share, scaled, side in zip(focus, self.scaled, self.bucket, strict=True)
        )
        return replace(self, crop=(left, top))


class PlacedImage(NamedTuple):
    """An image of `size` pixels and its placement in a bucket."""

    path: Path
    size: Size
    placement: Placement

    @property
    def cropped(self) -> float:
        """The share of the scaled image's area that is cropped away, 0 to 1."""
        (width, height), (bucket_width, bucket_height) = self.placement.scaled, self.placement.bucket
        return 1 - bucket_width * bucket_height / (width * height)

    @property
    def frame(self) -> tuple[float, float, float, float]:
        """The shares of the image's width and height that are cropped at the left, top, right and bottom."""
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
    """A bucket and its images, the most cropped first.

    Per epoch the bucket has `samples` samples (images times repeats) in `batches` batches; the last one lacks
    `empty_slots` samples.
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
    """Return all bucket sizes for an area of `resolution` squared pixels, sorted; the square one is always included.

    Widths go from `min_bucket_reso` to `max_bucket_reso` in steps. Each width gets the largest height, a multiple of
    the step, that keeps the area within `resolution` squared. Every size is returned in both orientations. Raises
    InputError if the step is not a multiple of 8.
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
    """Return the bucket of an image of `width` x `height` pixels, and how the image is scaled and cropped.

    Without `enable_bucket` the bucket is the square of `resolution`. Otherwise it is the bucket size with the nearest
    aspect ratio; with `bucket_no_upscale` it has the image's own aspect ratio, rounded to whole steps, and images are
    never enlarged, except those that are smaller than one step. Raises InputError for an image without pixels or a bad
    step.
    """
    if width < 1 or height < 1:
        raise InputError(
            f"The image size is {width} x {height} px; both sides must be at least 1 px.",
            "Remove the image.",
            code="empty_image",
        )
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


def place_for(recipe: Recipe, width: int, height: int, focus: Focus | None = None) -> Placement:
    """Return the placement of an image with a recipe's settings, see `place`; its crop is central without `focus`."""
    placement = place(
        width,
        height,
        resolution=recipe.resolution,
        enable_bucket=recipe.enable_bucket,
        min_bucket_reso=recipe.min_bucket_reso,
        max_bucket_reso=recipe.max_bucket_reso,
        bucket_reso_steps=recipe.bucket_reso_steps,
        bucket_no_upscale=recipe.bucket_no_upscale,
    )
    return placement.focused(focus) if focus else placement


def bucket_plan(
    images: Iterable[tuple[Path, Size, int]], recipe: Recipe, focus: Mapping[Path, Focus] = MappingProxyType({})
) -> list[Bucket]:
    """Return the buckets of images (path, size in pixels, repeats) with a recipe's settings, the largest first.

    `focus` are the focus points of those images that have one.
    """
    placed: dict[Size, list[tuple[PlacedImage, int]]] = {}
    places: dict[Size, Placement] = {}
    for path, size, repeats in images:
        placement = places.get(size) or places.setdefault(size, place_for(recipe, *size))
        placement = placement.focused(focus[path]) if path in focus else placement
        placed.setdefault(placement.bucket, []).append((PlacedImage(path, size, placement), repeats))
    buckets = []
    for size, members in placed.items():
        samples = sum(repeats for _, repeats in members)
        batches = -(-samples // recipe.batch_size)
        buckets.append(
            Bucket(
                size,
                sorted((image for image, _ in members), key=lambda image: -image.cropped),
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
    # The longer side is limited by max_bucket_reso, and by the area in a bucket that is one step high.
    max_length = max(step, min(max_side, area // step) // step * step)
    target_width = min(float(width), sqrt(area * aspect), float(max_length), max_length * aspect)
    if target_width >= width:
        bucket = (_floor(width, step), _floor(height, step))
        return _crop(width, height, bucket) if min(bucket) else _cover(width, height, _min_one_step(bucket, step))
    # Scale down so that one side is a whole number of steps; choose the side that keeps the aspect ratio better.
    candidates: list[tuple[float, Size, Size]] = []
    by_width = _floor(target_width, step)
    if by_width:
        bucket = (by_width, _floor(by_width / aspect, step))
        candidates.append((_aspect_error(bucket, aspect), bucket, (by_width, round(by_width / aspect))))
    by_height = _floor(target_width / aspect, step)
    if by_height:
        bucket = (_floor(by_height * aspect, step), by_height)
        candidates.append((_aspect_error(bucket, aspect), bucket, (round(by_height * aspect), by_height)))
    usable = [candidate for candidate in candidates if min(candidate[1])]
    if not usable:
        bucket = (_floor(target_width, step), _floor(target_width / aspect, step))
        return _cover(width, height, _min_one_step(bucket, step))
    _, bucket, scaled = min(usable)
    return _crop(*scaled, bucket)


def _step(resolution: int, steps: int) -> int:
    """Return the bucket step, at most the resolution, so that a bucket of one step fits into the area."""
    if steps < VAE_FACTOR or steps % VAE_FACTOR:
        raise InputError(
            f"bucket_reso_steps is {steps}; it must be a multiple of {VAE_FACTOR}, the VAE's factor.",
            "Use 64.",
            code="bucket_step",
        )
    if resolution < VAE_FACTOR:
        raise InputError(
            f"resolution is {resolution} px; it must be at least {VAE_FACTOR}.", "Use 1024.", code="resolution"
        )
    return min(steps, resolution // VAE_FACTOR * VAE_FACTOR)


def _floor(length: float, step: int) -> int:
    return floor(length / step + _EPSILON) * step


def _min_one_step(bucket: Size, step: int) -> Size:
    return max(step, bucket[0]), max(step, bucket[1])


def _aspect_error(bucket: Size, aspect: float) -> float:
    return abs(bucket[0] / bucket[1] - aspect) if bucket[1] else float("inf")


def _cover(width: int, height: int, bucket: Size) -> Placement:
    """Scale the image so that it covers the bucket, then crop its centre."""
    scale = max(bucket[0] / width, bucket[1] / height)
    scaled = max(bucket[0], round(width * scale)), max(bucket[1], round(height * scale))
    return _crop(*scaled, bucket)


def _crop(width: int, height: int, bucket: Size) -> Placement:
    return Placement(bucket, (width, height), ((width - bucket[0]) // 2, (height - bucket[1]) // 2))
