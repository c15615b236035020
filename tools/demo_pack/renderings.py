"""Renderings: one icon in many styles and on many backgrounds, with the words that describe them.

`random_rendering` samples from the styles that the base is trained on, so that it learns subject and style as separate
things. The styles in `HELD_OUT_STYLES` train no model of the pack: they are for LoRAs and for the measures of LoRAs.
"""

import dataclasses
import math
import random
from collections.abc import Callable
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

T = TypeVar("T")
Colour = tuple[float, float, float]
Choices = tuple[tuple[float, T], ...]  # weights and values

PALETTE: dict[str, Colour] = {
    "red": (0.84, 0.15, 0.16),
    "orange": (0.95, 0.55, 0.13),
    "brown": (0.45, 0.29, 0.16),
    "yellow": (0.97, 0.83, 0.22),
    "green": (0.20, 0.60, 0.28),
    "teal": (0.10, 0.58, 0.58),
    "blue": (0.18, 0.38, 0.80),
    "purple": (0.50, 0.25, 0.66),
    "pink": (0.95, 0.60, 0.72),
    "beige": (0.93, 0.87, 0.74),
    "grey": (0.62, 0.62, 0.62),
}
DARK: dict[str, Colour] = {"black": (0.07, 0.07, 0.07), "navy": (0.07, 0.10, 0.28), "maroon": (0.27, 0.07, 0.11)}
LUMA = torch.tensor([0.299, 0.587, 0.114]).view(3, 1, 1)
EDGE_THRESHOLD = 0.18  # of the Sobel magnitude; weaker edges are not drawn
MIN_CONTRAST = 0.15  # mean difference between an icon and its background, below which another background is chosen
BACKGROUND_TRIES = 8


@dataclasses.dataclass(frozen=True)
class Icon:
    """An icon with straight alpha: `rgb` [3, H, W] and `alpha` [1, H, W] in 0..1."""

    rgb: Tensor
    alpha: Tensor

    @classmethod
    def from_rgba(cls, rgba: NDArray[np.uint8]) -> "Icon":
        """Convert uint8 [H, W, 4]."""
        x = torch.from_numpy(rgba).permute(2, 0, 1).float() / 255
        return cls(x[:3], x[3:])

    @property
    def size(self) -> int:
        """The width in px."""
        return self.rgb.shape[-1]

    @property
    def grey(self) -> Tensor:
        """The luma of the icon's colours, [1, H, W]."""
        return (self.rgb * LUMA).sum(0, keepdim=True)

    def over(self, background: Tensor) -> Tensor:
        """Composite the icon over a background [3, H, W]."""
        return self.rgb * self.alpha + background * (1 - self.alpha)

    @property
    def luma(self) -> Tensor:
        """The luma of the icon on white, [1, H, W]."""
        return (self.over(torch.ones_like(self.rgb)) * LUMA).sum(0, keepdim=True)

    def contrast(self, background: Tensor) -> float:
        """Return the mean absolute difference between the icon's opaque pixels and a background [3, H, W], 0 to 1."""
        difference = (self.rgb - background).abs().mean(0, keepdim=True)
        return ((difference * self.alpha).sum() / self.alpha.sum().clamp_min(1e-6)).item()


def fill(colour: Colour, size: int) -> Tensor:
    """Return an image of one colour, [3, size, size]."""
    return torch.tensor(colour).view(3, 1, 1).expand(3, size, size)


def _choose_colour(rng: random.Random, palette: dict[str, Colour]) -> tuple[str, Colour]:
    """Choose one of the palette's colours and vary it a little; return its name and the colour."""
    name = rng.choice(sorted(palette))
    red, green, blue = (min(1.0, max(0.0, value + rng.uniform(-0.06, 0.06))) for value in palette[name])
    return name, (red, green, blue)


def _coordinates(size: int) -> tuple[Tensor, Tensor]:
    """Return y and x of every pixel, each [size, size] in 0..1."""
    line = torch.linspace(0, 1, size)
    y, x = torch.meshgrid(line, line, indexing="ij")
    return y, x


def _edges(grey: Tensor) -> Tensor:
    """Return the Sobel gradient magnitude of [1, H, W]."""
    kernel = torch.tensor([[1.0, 0, -1], [2, 0, -2], [1, 0, -1]]) / 4
    both = torch.stack([kernel, kernel.T])[:, None]
    padded = functional.pad(grey[None], (1, 1, 1, 1), mode="replicate")
    return functional.conv2d(padded, both)[0].norm(dim=0, keepdim=True)


def lines(icon: Icon) -> Tensor:
    """Return the icon's outline and inner edges as coverage [1, H, W] in 0..1, about 2 px wide."""
    edge = torch.maximum(_edges(icon.luma), _edges(icon.alpha))
    return functional.max_pool2d(((edge - EDGE_THRESHOLD) * 8).clamp(0, 1)[None], 3, 1, 1)[0]


def _gradient_map(value: Tensor, dark: Colour, light: Colour) -> Tensor:
    """Map values [1, H, W] in 0..1 to the colours between `dark` and `light`, [3, H, W]."""
    low, high = (torch.tensor(colour).view(3, 1, 1) for colour in (dark, light))
    return low + (high - low) * value


# Treatments change the icon itself and return it with the words that name the style.


def _plain(icon: Icon, rng: random.Random) -> tuple[Icon, str]:
    return icon, ""


def _grey(icon: Icon, rng: random.Random) -> tuple[Icon, str]:
    return Icon(icon.grey.expand(3, -1, -1), icon.alpha), "greyscale"


def _sepia(icon: Icon, rng: random.Random) -> tuple[Icon, str]:
    return Icon(_gradient_map(icon.grey, (0.20, 0.12, 0.06), (0.96, 0.88, 0.74)), icon.alpha), "sepia"


def _duotone(icon: Icon, rng: random.Random) -> tuple[Icon, str]:
    dark_name, dark = _choose_colour(rng, {**DARK, "blue": PALETTE["blue"], "purple": PALETTE["purple"]})
    light_name, light = _choose_colour(
        rng, {name: PALETTE[name] for name in ("yellow", "pink", "beige", "orange", "teal")}
    )
    return Icon(_gradient_map(icon.grey, dark, light), icon.alpha), f"{dark_name} and {light_name} duotone"


def _outline(icon: Icon, rng: random.Random) -> tuple[Icon, str]:
    name, colour = _choose_colour(rng, DARK if rng.random() < 0.6 else PALETTE)
    return Icon(fill(colour, icon.size), lines(icon)), f"{name} outline" if name != "black" else "outline"


def _silhouette(icon: Icon, rng: random.Random) -> tuple[Icon, str]:
    name, colour = _choose_colour(rng, DARK if rng.random() < 0.5 else PALETTE)
    return Icon(fill(colour, icon.size), icon.alpha), f"{name} silhouette"


def _posterised(icon: Icon, rng: random.Random) -> tuple[Icon, str]:
    levels = rng.choice((2, 3))
    return Icon((icon.rgb * levels).round() / levels, icon.alpha), "posterised"


def _hatched(icon: Icon, rng: random.Random) -> tuple[Icon, str]:
    size = icon.size
    y, x = _coordinates(size)
    period = rng.uniform(0.045, 0.07)
    wave = 0.5 + 0.5 * torch.sin(2 * math.pi * (x + rng.choice((-1, 1)) * y) / period)[None]
    ink = (((1 - icon.grey) * 1.1 - wave) * 6).clamp(0, 1) * icon.alpha
    _, colour = _choose_colour(rng, DARK)
    return Icon(fill(colour, size), torch.maximum(ink, lines(icon))), "hatched"


TREATMENTS: Choices[Callable[[Icon, random.Random], tuple[Icon, str]]] = (
    (0.48, _plain),
    (0.07, _grey),
    (0.06, _sepia),
    (0.09, _duotone),
    (0.10, _outline),
    (0.07, _silhouette),
    (0.06, _posterised),
    (0.07, _hatched),
)

# Backgrounds return [3, size, size] and the words that name them.


def _white(size: int, rng: random.Random) -> tuple[Tensor, str]:
    return torch.ones(3, size, size), rng.choice(("", "white background"))


def _solid(size: int, rng: random.Random) -> tuple[Tensor, str]:
    name, colour = _choose_colour(rng, PALETTE)
    return fill(colour, size), f"{name} background"


def _dark(size: int, rng: random.Random) -> tuple[Tensor, str]:
    name, colour = _choose_colour(rng, DARK)
    return fill(colour, size), rng.choice((f"{name} background", "dark background"))


def _gradient(size: int, rng: random.Random) -> tuple[Tensor, str]:
    one, first = _choose_colour(rng, PALETTE)
    two, second = _choose_colour(rng, {name: colour for name, colour in PALETTE.items() if name != one})
    angle = rng.uniform(0, 2 * math.pi)
    y, x = _coordinates(size)
    slope = (0.5 + (x - 0.5) * math.cos(angle) + (y - 0.5) * math.sin(angle)).clamp(0, 1)[None]
    return _gradient_map(slope, first, second), f"{one} and {two} gradient background"


def _patterned(size: int, rng: random.Random) -> tuple[Tensor, str]:
    (one, first), (two, second) = rng.sample([(name, PALETTE[name]) for name in sorted(PALETTE)], 2)
    if rng.random() < 0.4:
        two, second = "white", (1.0, 1.0, 1.0)
    y, x = _coordinates(size)
    period = rng.uniform(0.09, 0.22)
    kind = rng.choice(("striped", "checked", "dotted"))
    if kind == "striped":
        angle = rng.choice((0.0, math.pi / 4, math.pi / 2, 3 * math.pi / 4))
        wave = torch.sin(2 * math.pi * (x * math.cos(angle) + y * math.sin(angle)) / period)
    elif kind == "checked":
        wave = torch.sin(math.pi * x / period) * torch.sin(math.pi * y / period)
    else:
        wave = torch.cos(2 * math.pi * x / period) + torch.cos(2 * math.pi * y / period) - 0.8
    return _gradient_map((0.5 + 6 * wave).clamp(0, 1)[None], first, second), f"{one} and {two} {kind} background"


BACKGROUNDS: Choices[Callable[[int, random.Random], tuple[Tensor, str]]] = (
    (0.42, _white),
    (0.22, _solid),
    (0.12, _dark),
    (0.10, _gradient),
    (0.14, _patterned),
)


def _transform(icon: Icon, *, scale: float, angle: float = 0.0, x: float = 0.0, y: float = 0.0) -> Icon:
    """Scale, rotate by `angle` radians and shift by shares of half the width."""
    cos, sin = math.cos(angle) / scale, math.sin(angle) / scale
    theta = torch.tensor([[cos, -sin, -x * cos + y * sin], [sin, cos, -x * sin - y * cos]])[None]
    stacked = torch.cat([icon.rgb * icon.alpha, icon.alpha])[None]
    grid = functional.affine_grid(theta, [1, *stacked.shape[1:]], align_corners=False)
    moved = functional.grid_sample(stacked, grid, align_corners=False)[0]
    return Icon((moved[:3] / moved[3:].clamp_min(1e-4)).clamp(0, 1), moved[3:])


def _unfiltered(x: Tensor, rng: random.Random) -> tuple[Tensor, str]:
    return x, ""


def _pixelated(x: Tensor, rng: random.Random) -> tuple[Tensor, str]:
    cells = rng.choice((16, 24, 32))
    small = functional.interpolate(x[None], size=(cells, cells), mode="area")
    return functional.interpolate(small, size=x.shape[1:], mode="nearest")[0], "pixelated"


def _blurred(x: Tensor, rng: random.Random) -> tuple[Tensor, str]:
    side = rng.choice((20, 26, 32))
    small = functional.interpolate(x[None], size=(side, side), mode="bilinear", antialias=True)
    return functional.interpolate(small, size=x.shape[1:], mode="bicubic")[0].clamp(0, 1), "blurred"


FILTERS: Choices[Callable[[Tensor, random.Random], tuple[Tensor, str]]] = (
    (0.89, _unfiltered),
    (0.06, _pixelated),
    (0.05, _blurred),
)
ROTATED = 0.12  # share of single icons that are rotated by 20 degrees or more
PAIRS = 0.10  # share of images with two icons side by side


@dataclasses.dataclass(frozen=True)
class Rendering:
    """An image [3, H, W] in 0..1 with the words for its treatment, layout and filter, and those for its background.

    `is_pair` is true if the partner is in the image, too.
    """

    image: Tensor
    style: tuple[str, ...]
    background: str
    is_pair: bool = False


def _choose(rng: random.Random, choices: Choices[T]) -> T:
    return rng.choices([value for _, value in choices], [weight for weight, _ in choices])[0]


def _choose_background(icon: Icon, rng: random.Random) -> tuple[Tensor, str]:
    """Return a background on which the icon is visible, [3, H, W], with its words."""
    for _ in range(BACKGROUND_TRIES):
        background, words = _choose(rng, BACKGROUNDS)(icon.size, rng)
        if icon.contrast(background) >= MIN_CONTRAST:
            break
    return background, words


def _side_by_side(first: Icon, second: Icon, rng: random.Random) -> Icon:
    """Return one icon with both at half size, the second on the right."""
    left = _transform(first, scale=0.5, x=-0.48, y=rng.uniform(-0.1, 0.1))
    right = _transform(second, scale=0.5, x=0.48, y=rng.uniform(-0.1, 0.1))
    rgb = torch.where(left.alpha >= right.alpha, left.rgb, right.rgb)
    return Icon(rgb, torch.maximum(left.alpha, right.alpha))


def _rotate(icon: Icon, rng: random.Random) -> tuple[Icon, str]:
    degrees = rng.uniform(20, 180)
    rotated = _transform(icon, scale=0.85, angle=math.radians(rng.choice((-1, 1)) * degrees))
    return rotated, "upside down" if degrees > 150 else "rotated"


def random_rendering(icon: Icon, partner: Icon, rng: random.Random) -> Rendering:
    """Render an icon in a random style for training; a share PAIRS of the images has `partner` beside it."""
    treatment = _choose(rng, TREATMENTS)
    seed = rng.random()  # both icons of a pair get the same colours
    styled, style = treatment(icon, random.Random(seed))
    words = [style]
    is_pair = rng.random() < PAIRS
    if is_pair:
        styled = _side_by_side(styled, treatment(partner, random.Random(seed))[0], rng)
        words.append("side by side")
    elif rng.random() < ROTATED:
        styled, layout = _rotate(styled, rng)
        words.append(layout)
    background, background_words = _choose_background(styled, rng)
    image, filtered = _choose(rng, FILTERS)(styled.over(background), rng)
    words.append(filtered)
    return Rendering(image.clamp(0, 1), tuple(word for word in words if word), background_words, is_pair)


# Styles that only LoRAs are trained on; deterministic.


def neon(icon: Icon) -> Tensor:
    """Return glowing cyan and magenta lines on black, [3, H, W]."""
    line = lines(icon)
    glow = functional.avg_pool2d(functional.pad(line[None], (6, 6, 6, 6)), 13, 1)[0]
    y, _ = _coordinates(icon.size)
    tint = _gradient_map(y[None], (0.1, 0.95, 1.0), (1.0, 0.2, 0.85))
    return (tint * (0.9 * line + 1.1 * glow) + 0.03).clamp(0, 1)


def halftone(icon: Icon) -> Tensor:
    """Return dark red dots, larger where the icon is darker, on cream paper, [3, H, W]."""
    y, x = _coordinates(icon.size)
    u, v = (x + y) / math.sqrt(2), (x - y) / math.sqrt(2)
    screen = 0.5 + 0.25 * (torch.cos(2 * math.pi * u / 0.05) + torch.cos(2 * math.pi * v / 0.05))[None]
    ink = ((1 - icon.luma - screen + 0.12) * 6).clamp(0, 1) * (icon.luma < 0.97)
    return _gradient_map(1 - ink, (0.55, 0.08, 0.12), (0.98, 0.95, 0.86))


def sticker(icon: Icon) -> Tensor:
    """Return the icon with a white rim and a shadow on turquoise, [3, H, W]."""
    small = _transform(icon, scale=0.8)
    rim = functional.max_pool2d(small.alpha[None], 11, 1, 5)[0]
    shadow = functional.avg_pool2d(functional.pad(rim[None], (1, 9, 1, 9)), 11, 1)[0]
    ground = fill((0.16, 0.72, 0.70), icon.size) * (1 - 0.45 * shadow)
    return small.over(ground * (1 - rim) + rim)


def blueprint(icon: Icon) -> Tensor:
    """Return white lines on blue paper with a grid, [3, H, W]."""
    size = icon.size
    grid = torch.zeros(1, size, size)
    grid[:, ::16] = grid[:, :, ::16] = 0.25
    paper = fill((0.10, 0.28, 0.62), size) + grid * 0.5
    return (paper + lines(icon) * (1 - paper)).clamp(0, 1)


def sunset(icon: Icon) -> Tensor:
    """Return the icon in violet tones before an orange sky with a sun, [3, H, W]."""
    y, x = _coordinates(icon.size)
    sky = _gradient_map(y[None], (0.98, 0.45, 0.20), (0.99, 0.82, 0.42))
    sun = ((0.38 - ((x - 0.5).square() + (y - 0.62).square()).sqrt()) * 40).clamp(0, 1)[None]
    sky = sky + sun * (torch.tensor([1.0, 0.95, 0.70]).view(3, 1, 1) - sky)
    return Icon(_gradient_map(icon.grey, (0.20, 0.05, 0.30), (0.80, 0.35, 0.60)), icon.alpha).over(sky)


HELD_OUT_STYLES: dict[str, Callable[[Icon], Tensor]] = {
    "neon": neon,
    "halftone": halftone,
    "sticker": sticker,
    "blueprint": blueprint,
    "sunset": sunset,
}  # the sixth is that of the example images, an icon set of its own
