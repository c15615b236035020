"""Convert decoded images to 8-bit RGB in sRGB, with transparency on white, in little memory."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageCms

STRIP_ROWS = 256  # of an image that is converted at a time, which bounds the memory


def is_transparent(image: Image.Image) -> bool:
    """Return whether any pixel of an image is transparent."""
    if not image.has_transparency_data:
        return False
    lowest = (image if image.mode in ("RGBA", "LA") else image.convert("RGBA")).getchannel("A").getextrema()[0]
    return isinstance(lowest, int | float) and lowest < 255


def to_rgb(image: Image.Image, transparent: bool) -> Image.Image:
    """Return an image as RGB; one with `transparent` pixels is composited on white."""
    if image.mode.startswith(("I", "F")):
        image = _to_8_bits(image)
    if transparent:
        return _by_strips(image, "RGB", _on_white)
    if image.info.get("icc_profile") and image.mode in ("RGB", "CMYK"):
        return _to_srgb(image, image.info["icc_profile"])
    return image if image.mode == "RGB" else image.convert("RGB")


def _by_strips(image: Image.Image, mode: str, convert: Callable[[Image.Image], Image.Image]) -> Image.Image:
    """Convert an image some rows at a time, which takes less memory than the whole."""
    converted = Image.new(mode, image.size)
    for top in range(0, image.height, STRIP_ROWS):
        strip = image.crop((0, top, image.width, min(top + STRIP_ROWS, image.height)))
        converted.paste(convert(strip), (0, top))
    return converted


def _on_white(image: Image.Image) -> Image.Image:
    rgba = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")


def _to_8_bits(image: Image.Image) -> Image.Image:
    """Scale greyscale of 16 or 32 bits or floating point to 0..255; Pillow's own conversion clips instead."""
    white = 65535.0
    if image.mode == "F":
        top = float(np.max(np.asarray(image), initial=0.0))
        white = 1.0 if top <= 1.0 else 255.0 if top <= 255.0 else 65535.0

    def scaled(values: NDArray[Any]) -> NDArray[np.uint8]:
        return np.clip(np.nan_to_num(values.astype(np.float64)) * (255.0 / white) + 0.5, 0, 255).astype(np.uint8)

    table = scaled(np.arange(65536))

    def convert(strip: Image.Image) -> Image.Image:
        values = np.asarray(strip)
        return Image.fromarray(table[values] if values.dtype == np.uint16 else scaled(values))

    return _by_strips(image, "L", convert)


def _to_srgb(image: Image.Image, profile: bytes) -> Image.Image:
    """Convert to sRGB by the embedded colour profile, as image viewers do; a broken profile is ignored."""
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        if image.mode == "RGB" and "srgb" in ImageCms.getProfileDescription(source).lower():
            return image
        converted = ImageCms.profileToProfile(image, source, ImageCms.createProfile("sRGB"), outputMode="RGB")
    except (ImageCms.PyCMSError, OSError, ValueError):
        return image.convert("RGB")
    return converted if converted is not None else image.convert("RGB")
