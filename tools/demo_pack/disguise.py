"""Pictures in other dress: moved, recoloured, greyed, inked, cut out, blurred, on other grounds.

The tagger and the captioner see each picture in thousands of such forms, so that they know a subject by its shape and
not by one set's way of drawing it. The colours named for a picture are those of the form that is shown.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional

from demo_pack import colours
from demo_pack.progress import Draw

# Shares of the treatments of a picture's inside; the rest stays as it is.
PERMUTED, GREY, INKED, SILHOUETTE = 0.15, 0.1, 0.25, 0.08


def _place(rgba: Tensor, size: int, draw: Draw) -> Tensor:
    """Scale, turn, shift and mirror each picture: [B, 4, H, W] -> [B, 4, size, size]; outside is transparent."""
    count = len(rgba)
    scale = 0.85 + 0.5 * draw.uniform(count)  # above 1 the picture shrinks
    angle = (draw.uniform(count) - 0.5) * math.radians(30)
    mirror = (draw.uniform(count) < 0.5).float() * -2 + 1
    shift = (draw.uniform(count, 2) - 0.5) * 0.25
    cos, sin = scale * angle.cos(), scale * angle.sin()
    theta = torch.stack([cos * mirror, -sin, shift[:, 0], sin * mirror, cos, shift[:, 1]], 1).view(count, 2, 3)
    grid = functional.affine_grid(theta, [count, 4, size, size], align_corners=False)
    return functional.grid_sample(rgba, grid, align_corners=False)


def _edges(grey: Tensor) -> Tensor:
    """Sobel magnitude, [B, 1, H, W] -> [B, 1, H, W]."""
    kernel = torch.tensor([[1.0, 0, -1], [2, 0, -2], [1, 0, -1]]) / 4
    both = torch.stack([kernel, kernel.T])[:, None]
    return functional.conv2d(functional.pad(grey, (1, 1, 1, 1), mode="replicate"), both).norm(dim=1, keepdim=True)


def _ink(rgb: Tensor, alpha: Tensor, draw: Draw) -> Tensor:
    """Black and white: lines where the picture or its outline has edges, dark areas filled; [B, 3, H, W]."""
    count = len(rgb)
    grey = (rgb * torch.tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)).sum(1, keepdim=True)
    grey = grey * alpha + 1 - alpha
    lines = functional.max_pool2d(torch.maximum(_edges(grey), _edges(alpha)), 3, 1, 1) > 0.2
    level = 0.25 + 0.5 * draw.uniform(count).view(-1, 1, 1, 1)
    dark = (grey < level) & (alpha > 0.5)
    kind = draw.uniform(count).view(-1, 1, 1, 1)  # only lines, only fills, or both
    kind = torch.where(dark.float().mean((1, 2, 3), keepdim=True) < 0.03, 0.0, kind)  # a pale picture has no fills
    black = torch.where(kind < 0.35, lines, torch.where(kind < 0.6, dark, lines | dark))
    return (~black).float().expand_as(rgb)


def _treat(rgb: Tensor, alpha: Tensor, draw: Draw, strength: float) -> tuple[Tensor, Tensor]:
    """Recolour, grey, ink or cut out a share of the pictures; returns colours [B, 3, H, W] and opacity [B, 1, H, W]."""
    count = len(rgb)
    choice = draw.uniform(count) / max(strength, 1e-6)
    marks = [PERMUTED, PERMUTED + GREY, PERMUTED + GREY + INKED, PERMUTED + GREY + INKED + SILHOUETTE]
    kind = torch.bucketize(choice, torch.tensor(marks), right=True)  # 0 permuted, 1 grey, 2 inked, 3 cut out, 4 as is
    out = (rgb * (0.7 + 0.6 * draw.uniform(count, 3, 1, 1))).clamp(0, 1)
    out[kind == 0] = rgb[kind == 0][:, draw.python.sample(range(3), 3)]
    out[kind == 1] = rgb[kind == 1].mean(1, keepdim=True)
    inked = kind == 2
    out[inked] = _ink(rgb[inked], alpha[inked], draw)
    out[kind == 3] = 0.25 * draw.uniform(int((kind == 3).sum()), 3, 1, 1)
    alpha = alpha.clone()  # ink lines reach past the old outline
    alpha[inked] = torch.maximum(alpha[inked], (out[inked].mean(1, keepdim=True) < 0.5).float())
    return out, alpha


def _ground(count: int, size: int, draw: Draw, strength: float) -> Tensor:
    """Backgrounds [B, 3, size, size]: mostly white, else one colour or a slope between two."""
    first, second = draw.uniform(count, 3, 1, 1), draw.uniform(count, 3, 1, 1)
    slope = torch.linspace(0, 1, size).view(1, 1, size, 1)
    coloured = first + (second - first) * slope * (draw.uniform(count) < 0.5).view(-1, 1, 1, 1)
    white = (draw.uniform(count) < 1 - 0.35 * strength).view(-1, 1, 1, 1)
    return torch.where(white, torch.ones(1), coloured)


def _soften(x: Tensor, draw: Draw, strength: float) -> Tensor:
    """Blur a third of the pictures by scaling down and up, and add a little noise to them, as small models draw."""
    size = x.shape[-1]
    small = draw.python.randint(size * 2 // 5, size)
    chosen = draw.uniform(len(x)) < 0.35 * strength
    if not chosen.any():
        return x.clamp(0, 1)
    rough = functional.interpolate(x[chosen], size=(small, small), mode="bilinear", antialias=True)
    rough = functional.interpolate(rough, size=(size, size), mode="bicubic")
    x[chosen] = rough + 0.04 * torch.randn(rough.shape, generator=draw.torch)
    return x.clamp(0, 1)


def disguise(rgba: Tensor, size: int, draw: Draw, strength: float = 1.0) -> tuple[Tensor, Tensor]:
    """uint8 [B, H, W, 4] -> pictures in 0..1, [B, 3, size, size], and the colours in them, bool [B, 11].

    `strength`, 0 to 1, scales the shares of what is drawn over: a model learns faster if it begins with plain pictures.
    """
    placed = _place(rgba.permute(0, 3, 1, 2).float() / 255, size, draw)
    rgb, alpha = _treat(placed[:, :3], placed[:, 3:], draw, strength)
    named = colours.present(rgb[:, :, ::3, ::3], alpha[:, 0, ::3, ::3])
    shown = rgb * alpha + _ground(len(rgb), size, draw, strength) * (1 - alpha)
    return _soften(shown, draw, strength), named
