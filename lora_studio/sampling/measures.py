"""Measures of a sweep's images: how much the LoRA changes them, oversaturation, and variety between prompts.

They compare pixels, not meaning: compare them along one column of a grid, and do not read them as a quality score.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydantic import BaseModel, ConfigDict

K = TypeVar("K")
Pixels = NDArray[np.float32]

MEASURE_DESCRIPTIONS = {
    "change": "Mean absolute difference from strength 0, same prompt and seed (0 to 1): the effect of the LoRA.",
    "saturation": "Mean of the largest minus the smallest colour channel (0 grey to 1): washed-out or burnt colours.",
    "contrast": "Standard deviation of the brightness (0 flat to 0.5 black and white).",
    "clipped": "Share of pixels that are nearly black or nearly white (0 to 1).",
    "variety": "Mean absolute difference between images of different prompts or seeds, at 32 x 32 (0 identical to 1).",
}
# Rec. 709 luma, on the gamma-coded values that screens and eyes work with.
LUMA = np.array([0.2126, 0.7152, 0.0722], dtype=np.float32)
CLIP = 3 / 255
THUMBNAIL = (32, 32)


class StrengthMeasures(BaseModel):
    """The measures of one base, LoRA and strength, a row of measures.json; MEASURE_DESCRIPTIONS describes them."""

    model_config = ConfigDict(frozen=True)

    base: str = ""
    lora: str = ""
    strength: float
    change: float | None = None
    saturation: float | None = None
    contrast: float | None = None
    clipped: float | None = None
    variety: float | None = None


def measure(images: Mapping[K, Image.Image], references: Mapping[K, Image.Image]) -> dict[str, float | None]:
    """Return the measures of one strength, averaged over its `images` by cell; `references` are those of strength 0.

    Each is described in MEASURE_DESCRIPTIONS; `change` is None without a reference, `variety` with fewer than two
    images.
    """
    pixels = {key: _pixels(image) for key, image in images.items()}
    changes = [float(np.abs(pixels[key] - _pixels(references[key])).mean()) for key in pixels if key in references]
    small = [_pixels(image.resize(THUMBNAIL, Image.Resampling.BOX)) for image in images.values()]
    differences = [float(np.abs(one - other).mean()) for one, other in combinations(small, 2)]
    luma = [image @ LUMA for image in pixels.values()]
    return {
        "change": _mean(changes),
        "saturation": _mean([float(np.ptp(image, axis=2).mean()) for image in pixels.values()]),
        "contrast": _mean([float(light.std()) for light in luma]),
        "clipped": _mean([float(((light < CLIP) | (light > 1 - CLIP)).mean()) for light in luma]),
        "variety": _mean(differences),
    }


def _pixels(image: Image.Image) -> Pixels:
    """Return the image as [height, width, 3] between 0 and 1."""
    pixels: Pixels = np.asarray(image.convert("RGB"), dtype=np.float32)
    return pixels / np.float32(255)


def _mean(values: Sequence[float]) -> float | None:
    return round(sum(values) / len(values), 5) if values else None
