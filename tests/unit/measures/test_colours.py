"""Colour figures and thumbnails."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageDraw

from lora_studio.measures.colours import Colours, colour_histograms, colours, mean_colour
from lora_studio.measures.distances import distances
from lora_studio.measures.thumbnails import SIDE, ThumbnailModel, as_pixels


def figures(*images: Image.Image) -> Colours:
    model = ThumbnailModel()
    return colours(
        as_pixels(np.stack([found.features for found in model.predict(list(map(model.preprocess, images)))]))
    )


def halves(left: str, right: str) -> Image.Image:
    image = Image.new("RGB", (100, 60), left)
    ImageDraw.Draw(image).rectangle((50, 0, 99, 59), fill=right)
    return image


def test_figures_of_known_pictures() -> None:
    grey, checked, red = (
        figures(Image.new("RGB", (50, 80), "#808080")),
        figures(halves("black", "white")),
        figures(halves("red", "red")),
    )
    assert [float(value[0]) for value in grey] == pytest.approx([0, 0, 0], abs=1e-3)
    assert [float(value[0]) for value in checked] == pytest.approx([0.5, 0, 1], abs=0.03)
    assert float(red.saturation[0]) == pytest.approx(1)


@given(st.integers(0, 2**32 - 1), st.floats(0.1, 0.9))
def test_a_washed_out_picture_has_less_contrast_and_saturation(seed: int, kept: float) -> None:
    pixels = np.random.default_rng(seed).random((SIDE, SIDE, 3), dtype=np.float32)
    found = colours(np.stack([pixels, 0.5 + np.float32(kept) * (pixels - 0.5)]))
    assert found.contrast[1] == pytest.approx(kept * found.contrast[0], rel=1e-3)
    assert found.saturation[1] == pytest.approx(kept * found.saturation[0], rel=1e-3)


def test_a_missing_picture_is_left_out() -> None:
    pixels = np.zeros((1, 2, SIDE, SIDE, 3), np.float32)
    pixels[0, 0] = np.nan
    found = mean_colour(colours(pixels).clipped)
    assert found is not None
    assert found.value == 1


def test_histograms_compare_colours_wherever_they_are() -> None:
    red, blue = ([*np.eye(3)[channel]] for channel in (0, 2))
    left, right = np.array([[red, red, blue, blue]] * 4), np.array([[blue, red, blue, red]] * 4)
    other = np.zeros((4, 4, 3))
    found = colour_histograms(np.stack([left, right, other]).astype(np.float32))
    assert found.shape == (3, 64)
    assert np.linalg.norm(found, axis=-1) == pytest.approx(1)
    assert distances(found[0], found[1]) == pytest.approx(0, abs=1e-6)
    assert distances(found[0], found[2]) == pytest.approx(1)


@given(st.floats(0, 1))
def test_the_distance_of_histograms_is_one_minus_their_bhattacharyya_coefficient(share: float) -> None:
    count = round(share * 16)
    pixels = np.zeros((2, 4, 4, 3), np.float32)
    pixels[1].reshape(-1, 3)[:count] = 1
    found = colour_histograms(pixels)
    assert distances(found[0], found[1]) == pytest.approx(1 - np.sqrt(1 - count / 16), abs=1e-6)
