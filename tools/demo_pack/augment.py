"""Augmentation of images: moved, recoloured, grey, as ink drawings or silhouettes, blurred, on other backgrounds.

The tagger and the captioner see each image in thousands of variants, so that they learn a subject's shape and not one
set's drawing style. The colour tags of an image are those of its variant.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional

from demo_pack import colours
from demo_pack.progress import StepRng

# Shares of the images whose colours are changed in one of these ways; the rest keeps its colours.
PERMUTED, GREY, INKED, SILHOUETTE = 0.15, 0.1, 0.25, 0.08


def _place(rgba: Tensor, size: int, rng: StepRng) -> Tensor:
    """Scale, rotate, shift and mirror each image: [B, 4, H, W] -> [B, 4, size, size]; outside is transparent."""
    count = len(rgba)
    scale = 0.85 + 0.5 * rng.uniform(count)  # above 1 the image shrinks
    angle = (rng.uniform(count) - 0.5) * math.radians(30)
    mirror = (rng.uniform(count) < 0.5).float() * -2 + 1
    shift = (rng.uniform(count, 2) - 0.5) * 0.25
    cos, sin = scale * angle.cos(), scale * angle.sin()
    theta = torch.stack([cos * mirror, -sin, shift[:, 0], sin * mirror, cos, shift[:, 1]], 1).view(count, 2, 3)
    grid = functional.affine_grid(theta, [count, 4, size, size], align_corners=False)
    return functional.grid_sample(rgba, grid, align_corners=False)


def _edges(grey: Tensor) -> Tensor:
    """Return the Sobel magnitude, [B, 1, H, W] -> [B, 1, H, W]."""
    kernel = torch.tensor([[1.0, 0, -1], [2, 0, -2], [1, 0, -1]]) / 4
    both = torch.stack([kernel, kernel.T])[:, None]
    return functional.conv2d(functional.pad(grey, (1, 1, 1, 1), mode="replicate"), both).norm(dim=1, keepdim=True)


def _ink(rgb: Tensor, alpha: Tensor, rng: StepRng) -> Tensor:
    """Turn images to black and white: lines at edges and outlines, dark areas filled; [B, 3, H, W]."""
    count = len(rgb)
    grey = (rgb * torch.tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)).sum(1, keepdim=True)
    grey = grey * alpha + 1 - alpha
    lines = functional.max_pool2d(torch.maximum(_edges(grey), _edges(alpha)), 3, 1, 1) > 0.2
    level = 0.25 + 0.5 * rng.uniform(count).view(-1, 1, 1, 1)
    dark = (grey < level) & (alpha > 0.5)
    kind = rng.uniform(count).view(-1, 1, 1, 1)  # lines only, fills only, or both
    kind = torch.where(dark.float().mean((1, 2, 3), keepdim=True) < 0.03, 0.0, kind)  # a pale image has no fills
    black = torch.where(kind < 0.35, lines, torch.where(kind < 0.6, dark, lines | dark))
    return (~black).float().expand_as(rgb)


def _change_colours(rgb: Tensor, alpha: Tensor, rng: StepRng, strength: float) -> tuple[Tensor, Tensor]:
    """Recolour, grey, ink or black out a share of the images; return colours [B, 3, H, W] and alpha [B, 1, H, W]."""
    count = len(rgb)
    choice = rng.uniform(count) / max(strength, 1e-6)
    bounds = [PERMUTED, PERMUTED + GREY, PERMUTED + GREY + INKED, PERMUTED + GREY + INKED + SILHOUETTE]
    kind = torch.bucketize(choice, torch.tensor(bounds), right=True)  # index in `bounds`; 4: unchanged
    out = (rgb * (0.7 + 0.6 * rng.uniform(count, 3, 1, 1))).clamp(0, 1)
    out[kind == 0] = rgb[kind == 0][:, rng.python.sample(range(3), 3)]
    out[kind == 1] = rgb[kind == 1].mean(1, keepdim=True)
    inked = kind == 2
    out[inked] = _ink(rgb[inked], alpha[inked], rng)
    out[kind == 3] = 0.25 * rng.uniform(int((kind == 3).sum()), 3, 1, 1)
    alpha = alpha.clone()  # ink lines extend beyond the outline
    alpha[inked] = torch.maximum(alpha[inked], (out[inked].mean(1, keepdim=True) < 0.5).float())
    return out, alpha


def _background(count: int, size: int, rng: StepRng, strength: float) -> Tensor:
    """Draw backgrounds [B, 3, size, size]: mostly white, else one colour or a gradient between two."""
    first, second = rng.uniform(count, 3, 1, 1), rng.uniform(count, 3, 1, 1)
    gradient = torch.linspace(0, 1, size).view(1, 1, size, 1)
    coloured = first + (second - first) * gradient * (rng.uniform(count) < 0.5).view(-1, 1, 1, 1)
    white = (rng.uniform(count) < 1 - 0.35 * strength).view(-1, 1, 1, 1)
    return torch.where(white, torch.ones(1), coloured)


def blur(x: Tensor, rng: StepRng, strength: float) -> Tensor:
    """Blur a third of the images by scaling down and up, and add a little noise, like the output of small models."""
    size = x.shape[-1]
    small = rng.python.randint(size * 2 // 5, size)
    chosen = rng.uniform(len(x)) < 0.35 * strength
    if not chosen.any():
        return x.clamp(0, 1)
    rough = functional.interpolate(x[chosen], size=(small, small), mode="bilinear", antialias=True)
    rough = functional.interpolate(rough, size=(size, size), mode="bicubic")
    x[chosen] = rough + 0.04 * torch.randn(rough.shape, generator=rng.torch)
    return x.clamp(0, 1)


def augment(rgba: Tensor, size: int, rng: StepRng, strength: float = 1.0) -> tuple[Tensor, Tensor]:
    """Augment images, uint8 [B, H, W, 4]; return them in 0..1, [B, 3, size, size], and their colour tags, bool [B, 11].

    `strength`, 0 to 1, scales the shares of changed images: a model learns faster if it begins with unchanged ones.
    """
    placed = _place(rgba.permute(0, 3, 1, 2).float() / 255, size, rng)
    rgb, alpha = _change_colours(placed[:, :3], placed[:, 3:], rng, strength)
    named = colours.present(rgb[:, :, ::3, ::3], alpha[:, 0, ::3, ::3])
    shown = rgb * alpha + _background(len(rgb), size, rng, strength) * (1 - alpha)
    return blur(shown, rng, strength), named
