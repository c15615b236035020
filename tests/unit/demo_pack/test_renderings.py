"""Renderings name what they show, are images in 0..1, and never show a style that only LoRAs are trained on."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from demo_pack.renderings import HELD_OUT_STYLES, MIN_CONTRAST, PAIRS, Icon, Rendering, random_rendering

SIZE = 48
STYLES = ("greyscale", "sepia", "duotone", "outline", "silhouette", "posterised", "hatched")
LAYOUTS = ("side by side", "rotated", "upside down")
FILTERS = ("pixelated", "blurred")
BACKGROUNDS = ("white", "red", "dark", "gradient", "striped", "checked", "dotted")


def circle(colour: tuple[int, int, int]) -> Icon:
    """Draw a disc with a darker centre on a transparent canvas."""
    y, x = np.mgrid[:SIZE, :SIZE] - SIZE / 2
    radius = np.hypot(y, x)
    rgba = np.zeros((SIZE, SIZE, 4), np.uint8)
    rgba[radius < 18] = (*colour, 255)
    rgba[radius < 6] = (*(value // 3 for value in colour), 255)
    return Icon.from_rgba(rgba)


RED, GREEN = circle((220, 40, 30)), circle((40, 160, 60))


@pytest.fixture(scope="module")
def renderings() -> list[Rendering]:
    """Return 400 renderings of the red icon, with the green one as the partner."""
    rng = random.Random(7)
    return [random_rendering(RED, GREEN, rng) for _ in range(400)]


def test_images_are_in_range_and_keep_their_shape(renderings: list[Rendering]) -> None:
    held_out = [draw(RED) for draw in HELD_OUT_STYLES.values()]
    for image in [*(rendering.image for rendering in renderings), *held_out]:
        assert image.shape == (3, SIZE, SIZE)
        assert image.isfinite().all()
        assert 0 <= image.min() <= image.max() <= 1


def test_every_kind_of_rendering_is_drawn_and_named(renderings: list[Rendering]) -> None:
    styles = {word.split()[-1] for rendering in renderings for word in rendering.style}
    assert {word.split()[-1] for word in (*STYLES, *LAYOUTS, *FILTERS)} == styles
    backgrounds = " ".join(rendering.background for rendering in renderings).split()
    assert set(BACKGROUNDS) <= set(backgrounds)


def test_words_of_the_held_out_styles_are_never_used(renderings: list[Rendering]) -> None:
    words = {
        word for rendering in renderings for text in (*rendering.style, rendering.background) for word in text.split()
    }
    assert words.isdisjoint(HELD_OUT_STYLES)


def test_no_rendering_looks_like_a_held_out_style(renderings: list[Rendering]) -> None:
    images = torch.stack([rendering.image for rendering in renderings])
    for name, draw in HELD_OUT_STYLES.items():
        nearest = (images - draw(RED)).abs().mean((1, 2, 3)).min()
        assert nearest > 0.03, name


def test_the_same_seed_gives_the_same_rendering() -> None:
    first, second = (random_rendering(RED, GREEN, random.Random(3)) for _ in range(2))
    assert torch.equal(first.image, second.image)
    assert (first.style, first.background) == (second.style, second.background)


def test_pairs_show_both_icons_and_are_named(renderings: list[Rendering]) -> None:
    pairs = [rendering for rendering in renderings if rendering.is_pair]
    assert 0.5 * PAIRS < len(pairs) / len(renderings) < 2 * PAIRS
    assert all(("side by side" in rendering.style) == rendering.is_pair for rendering in renderings)
    plain = next(rendering for rendering in pairs if rendering.style == ("side by side",))
    red, green, _ = plain.image.split(1)
    middle = SIZE // 2
    assert red[0, middle, SIZE // 8] > green[0, middle, SIZE // 8]
    assert green[0, middle, -SIZE // 8] > red[0, middle, -SIZE // 8]


@pytest.mark.parametrize(("style", "limit"), [("greyscale", 0.02), ("sepia", 0.25)])
def test_styles_with_few_colours_show_none_of_the_icon(renderings: list[Rendering], style: str, limit: float) -> None:
    found = [
        rendering.image
        for rendering in renderings
        if style in rendering.style and rendering.background in ("", "white background")
    ]
    assert found
    assert all((image.amax(0) - image.amin(0)).amax() < limit for image in found)
    assert (RED.rgb.amax(0) - RED.rgb.amin(0)).amax() > 2 * limit


def test_icons_are_visible_on_their_background() -> None:
    """A black outline on black would show nothing, though its caption names the subject."""
    rng = random.Random(5)
    black = circle((10, 10, 10))
    for _ in range(150):
        image = random_rendering(black, black, rng).image
        assert (image - image[:, :1, :1]).abs().amax() > MIN_CONTRAST


def test_held_out_styles_differ_from_each_other_and_repeat() -> None:
    images = [draw(RED) for draw in HELD_OUT_STYLES.values()]
    assert all(torch.equal(image, draw(RED)) for image, draw in zip(images, HELD_OUT_STYLES.values(), strict=True))
    for i, image in enumerate(images):
        assert all((image - other).abs().mean() > 0.1 for other in images[i + 1 :])
