"""Synthetic images that differ from each other, and the changes that people make to images."""

from __future__ import annotations

import io
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageEnhance, ImageFilter, ImageOps


@cache
def photo(seed: int, size: tuple[int, int] = (360, 280)) -> Image.Image:
    """Draw an image like a photo: soft light, a few objects, grain."""
    rng = np.random.default_rng(seed)
    light = Image.fromarray(rng.integers(30, 220, (5, 6, 3), dtype=np.uint8)).resize(size, Image.Resampling.BICUBIC)
    draw = ImageDraw.Draw(light)
    for _ in range(rng.integers(4, 9)):
        x, y = rng.integers(0, size[0] - 30), rng.integers(0, size[1] - 30)
        width, height = rng.integers(25, 130, 2)
        colour = tuple(int(value) for value in rng.integers(0, 256, 3))
        shape = draw.ellipse if rng.random() < 0.6 else draw.rectangle
        shape((x, y, x + width, y + height), fill=colour)
    soft = light.filter(ImageFilter.GaussianBlur(1))
    grain = np.asarray(soft, dtype=np.int16) + rng.normal(0, 4, (size[1], size[0], 3)).astype(np.int16)
    return Image.fromarray(np.clip(grain, 0, 255).astype(np.uint8))


def resized(image: Image.Image, factor: float) -> Image.Image:
    """Return the image with both sides multiplied by `factor`."""
    return image.resize((round(image.width * factor), round(image.height * factor)), Image.Resampling.LANCZOS)


def saved_as(image: Image.Image, form: str, quality: int) -> Image.Image:
    """Return the image after saving it to a lossy format and loading it."""
    file = io.BytesIO()
    image.save(file, form, quality=quality)
    return Image.open(file).convert("RGB")


def cropped(image: Image.Image, left: float, top: float, right: float, bottom: float) -> Image.Image:
    """Return the image without these shares of its sides."""
    width, height = image.size
    return image.crop(
        (round(left * width), round(top * height), round((1 - right) * width), round((1 - bottom) * height))
    )


CHANGES: dict[str, Callable[[Image.Image], Image.Image]] = {
    "resized to 50%": lambda image: resized(image, 0.5),
    "resized to 125%": lambda image: resized(image, 1.25),
    "JPEG 60": lambda image: saved_as(image, "JPEG", 60),
    "WebP 50": lambda image: saved_as(image, "WEBP", 50),
    "mirrored": ImageOps.mirror,
    "mirrored, JPEG 80": lambda image: saved_as(ImageOps.mirror(image), "JPEG", 80),
    "5% cropped": lambda image: cropped(image, 0.03, 0.02, 0.02, 0.03),
    "10% cropped": lambda image: cropped(image, 0.1, 0.0, 0.0, 0.05),
    "brightened 15%": lambda image: ImageEnhance.Brightness(image).enhance(1.15),
    "darkened 15%": lambda image: ImageEnhance.Brightness(image).enhance(0.85),
    "resized to 60%, JPEG 70": lambda image: saved_as(resized(image, 0.6), "JPEG", 70),
}


def save(image: Image.Image, path: Path) -> Path:
    """Save in the format of the suffix, create the folder, and return the path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)
    return path
