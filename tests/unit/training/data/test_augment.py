"""Random crop and flip: the size conditioning agrees with the pixels, and draws are uniform and reproducible."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from lora_studio.dataset.buckets import place
from lora_studio.dataset.images.crop import crop_to_bucket
from lora_studio.training.data.augment import CROP_COUNT, all_augmentations, augment
from lora_studio.training.data.dataset import TrainItem
from tests.support.training_runs import recipe_of

sides = st.integers(40, 700)


def item_of(width: int, height: int, *, buckets: bool = True, sha256: str = "ab12" * 16) -> TrainItem:
    spot = place(width, height, resolution=256, enable_bucket=buckets, bucket_reso_steps=64)
    return TrainItem(Path("a.png"), sha256, (width, height), spot, "a cat", True, 1, "images")


@settings(max_examples=40, deadline=None)
@given(width=sides, height=sides, buckets=st.booleans(), step=st.integers(0, 10**6), sample=st.integers(0, 64))
def test_size_conditioning_describes_the_crop_and_flip(
    width: int, height: int, buckets: bool, step: int, sample: int
) -> None:
    recipe = recipe_of(flip_aug=True, random_crop=True)
    item = item_of(width, height, buckets=buckets)
    crop = augment(item, recipe, step, sample)
    assert crop in all_augmentations(item, recipe)
    (scaled_width, scaled_height), (target_width, target_height) = item.placement.scaled, item.placement.bucket
    original_height, original_width, top, left, bucket_height, bucket_width = crop.time_ids
    assert (original_height, original_width) == (height, width)
    assert (bucket_height, bucket_width) == (target_height, target_width)
    assert 0 <= top <= scaled_height - target_height
    assert 0 <= left <= scaled_width - target_width
    # The left of the flipped image is the right of the unflipped one.
    cut_left, cut_right = crop.placement.crop[0], scaled_width - target_width - crop.placement.crop[0]
    assert left == (cut_right if crop.flipped else cut_left)


@settings(max_examples=15, deadline=None)
@given(width=st.integers(70, 400), height=st.integers(70, 400), sample=st.integers(0, 20))
def test_the_cropped_pixels_are_those_of_the_size_conditioning(width: int, height: int, sample: int) -> None:
    """The colours of the image are its coordinates; flipped with the image if it is flipped."""
    recipe = recipe_of(flip_aug=True, random_crop=True)
    crop = augment(item_of(width, height, buckets=False), recipe, 3, sample)
    x, y = np.meshgrid(np.linspace(0, 1, width), np.linspace(0, 1, height))
    pixels = np.stack([x, y, 0 * x], axis=-1)
    cropped = np.array(
        crop_to_bucket(Image.fromarray((pixels * 255).astype(np.uint8)), crop.placement, flipped=crop.flipped)
    )
    _, _, top, left, target_height, target_width = crop.time_ids
    assert cropped.shape == (target_height, target_width, 3)
    middle_y, middle_x = target_height // 2, target_width // 2
    across = (left + middle_x + 0.5) / crop.placement.scaled[0]
    expected_x = 1 - across if crop.flipped else across
    expected_y = (top + middle_y + 0.5) / crop.placement.scaled[1]
    found = cropped[middle_y, middle_x] / 255
    assert found[0] == pytest.approx(expected_x, abs=0.02)
    assert found[1] == pytest.approx(expected_y, abs=0.02)


def test_an_image_of_its_buckets_size_has_one_crop_and_two_flips() -> None:
    item = item_of(256, 256)
    assert len(all_augmentations(item, recipe_of(random_crop=True))) == 1
    assert {crop.flipped for crop in all_augmentations(item, recipe_of(random_crop=True, flip_aug=True))} == {
        False,
        True,
    }
    assert all_augmentations(item, recipe_of()) == [item]
    assert augment(item, recipe_of(), 5, 1) == item


def test_crops_cover_the_image_and_depend_on_the_image_alone() -> None:
    recipe = recipe_of(random_crop=True)
    wide = item_of(700, 256, buckets=False)
    places = sorted(crop.placement.crop[0] for crop in all_augmentations(wide, recipe))
    excess = wide.placement.scaled[0] - wide.placement.bucket[0]
    assert len(places) == CROP_COUNT
    for number, left in enumerate(places):
        assert excess * number / CROP_COUNT - 1 <= left <= excess * (number + 1) / CROP_COUNT + 1
    assert places == sorted(
        crop.placement.crop[0] for crop in all_augmentations(wide, recipe_of(random_crop=True, seed=7))
    )
    other = item_of(700, 256, buckets=False, sha256="cd34" * 16)
    assert places != sorted(crop.placement.crop[0] for crop in all_augmentations(other, recipe))


def test_flips_and_crops_are_drawn_uniformly_by_seed_step_and_sample() -> None:
    recipe = recipe_of(random_crop=True, flip_aug=True)
    item = item_of(700, 256, buckets=False)
    drawn = [augment(item, recipe, step, sample) for step in range(200) for sample in range(4)]
    again = [augment(item, recipe, step, sample) for step in range(200) for sample in range(4)]
    assert drawn == again
    flips = Counter(crop.flipped for crop in drawn)
    assert abs(flips[True] - 400) < 4 * (800 * 0.25) ** 0.5
    crops = Counter(crop.placement.crop for crop in drawn)
    assert len(crops) == CROP_COUNT
    assert all(abs(count - 100) < 5 * (800 / 8) ** 0.5 for count in crops.values())
    other = [augment(item, recipe_of(random_crop=True, flip_aug=True, seed=1), step, 0) for step in range(200)]
    assert other != drawn[::4]
