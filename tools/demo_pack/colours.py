"""Colour words for images, from the hue, saturation and brightness of their opaque pixels."""

import torch
from torch import Tensor

NAMES = ("black", "white", "grey", "red", "orange", "brown", "yellow", "green", "blue", "purple", "pink")
SHARE = 0.15  # of the opaque pixels; colours with less are not named


def _hsv(rgb: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Convert [B, 3, H, W] in 0..1 to hue in degrees, saturation and value, each [B, H, W]."""
    red, green, blue = rgb.unbind(1)
    value, low = rgb.amax(1), rgb.amin(1)
    span = (value - low).clamp_min(1e-6)
    hue = torch.where(
        value == red,
        (green - blue) / span % 6,
        torch.where(value == green, (blue - red) / span + 2, (red - green) / span + 4),
    )
    return hue * 60, (value - low) / value.clamp_min(1e-6), value


def present(rgb: Tensor, alpha: Tensor) -> Tensor:
    """Return for each colour whether it fills SHARE of the opaque pixels: [B, 3, H, W], [B, H, W] -> bool [B, 11]."""
    hue, saturation, value = _hsv(rgb)
    black, pale = value < 0.22, saturation < 0.15
    vivid = ~black & ~pale
    rose = (hue >= 290) & (hue < 345) | ((hue >= 345) | (hue < 15)) & (saturation < 0.55) & (value > 0.75)
    warm = (hue >= 15) & (hue < 40)
    masks = {
        "black": black,
        "white": ~black & pale & (value > 0.88),
        "grey": ~black & pale & (value <= 0.88),
        "red": vivid & ((hue >= 345) | (hue < 15)) & ~rose & (value >= 0.5),
        "orange": vivid & warm & (value >= 0.7),
        "brown": vivid & (warm & (value < 0.7) | ((hue >= 345) | (hue < 15)) & ~rose & (value < 0.5)),
        "yellow": vivid & (hue >= 40) & (hue < 68),
        "green": vivid & (hue >= 68) & (hue < 165),
        "blue": vivid & (hue >= 165) & (hue < 255),
        "purple": vivid & (hue >= 255) & (hue < 290),
        "pink": vivid & rose,
    }
    area = alpha.sum((1, 2)).clamp_min(1e-6)
    shares = torch.stack([(masks[name] * alpha).sum((1, 2)) / area for name in NAMES], 1)
    return shares >= SHARE
