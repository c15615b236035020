"""Registration of image pairs: the window, the gain and the residual that it finds."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from PIL import Image, ImageEnhance

from lora_studio.dataset.duplicates.alignment import Alignment, align, align_uint8
from lora_studio.dataset.duplicates.find import MAX_RESIDUAL
from lora_studio.dataset.duplicates.fingerprints import THUMBNAIL_SIDE
from tests.support.scenes import CHANGES, cropped, photo

WHOLE = (0.0, 1.0, 0.0, 1.0)


def pixels(images: Sequence[Image.Image]) -> np.ndarray:
    """Return thumbnails [P, n, n, 3]."""
    side = (THUMBNAIL_SIDE, THUMBNAIL_SIDE)
    return np.stack([np.asarray(image.resize(side, Image.Resampling.LANCZOS)) for image in images])


def aligned(base: Sequence[Image.Image], other: Sequence[Image.Image]) -> Alignment:
    return align_uint8(pixels(base), pixels(other), np.tile(np.array(WHOLE, np.float32), (len(base), 1)))


def test_finds_the_window_of_a_crop() -> None:
    margins = [(0.1, 0.0, 0.0, 0.05), (0.04, 0.08, 0.06, 0.02), (0.0, 0.0, 0.0, 0.0)]
    images = [photo(seed) for seed in range(3)]
    found = aligned(images, [cropped(image, *margin) for image, margin in zip(images, margins, strict=True)])
    expected = [(left, 1 - right, top, 1 - bottom) for left, top, right, bottom in margins]
    assert found.window == pytest.approx(np.array(expected), abs=0.01)
    assert (found.residual < MAX_RESIDUAL).all()


def test_finds_the_change_in_contrast() -> None:
    factors = [0.7, 1.0, 1.15]
    dark = [ImageEnhance.Brightness(photo(4)).enhance(0.6)] * 3  # so that no highlight is clipped
    found = aligned(dark, [ImageEnhance.Brightness(dark[0]).enhance(factor) for factor in factors])
    assert found.gain == pytest.approx(np.array(factors), rel=0.02)
    assert (found.residual < MAX_RESIDUAL).all()


def test_the_residual_separates_duplicates_from_other_images() -> None:
    images = [photo(seed) for seed in range(6)]
    for name, change in CHANGES.items():
        if "mirrored" not in name:
            assert (aligned(images, list(map(change, images))).residual < MAX_RESIDUAL).all(), name
    others = aligned(images, images[1:] + images[:1])
    assert (others.residual > 2 * MAX_RESIDUAL).all()


def test_a_small_local_change_has_a_large_residual() -> None:
    changed = photo(5).copy()
    changed.paste("red", (150, 100, 200, 150))
    assert aligned([photo(5)], [changed]).residual[0] > MAX_RESIDUAL


def test_uniform_images_match_no_other_image_and_give_finite_values() -> None:
    grey = [Image.new("RGB", (64, 64), "grey"), photo(1)]
    found = aligned(grey, grey[::-1])
    assert (found.residual > 2 * MAX_RESIDUAL).all()
    assert np.isfinite(found.window).all()


def test_integer_and_float_pixels_give_the_same_alignment() -> None:
    base, other = pixels([photo(1)]), pixels([cropped(photo(1), 0.05, 0, 0, 0)])
    initial = np.array([WHOLE], np.float32)
    first = align_uint8(base, other, initial)
    second = align(base.astype(np.float32) / 255, other.astype(np.float32) / 255, initial)
    assert first.window.tolist() == second.window.tolist()
    assert first.residual.tolist() == second.residual.tolist()
