"""Bucket sizes, placements and bucket plans against their definition."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lora_studio.dataset.buckets import bucket_plan, bucket_sizes, place, place_for
from lora_studio.errors import InputError
from lora_studio.planning.steps import count_steps
from lora_studio.settings.recipe import Recipe

sides = st.integers(1, 6000)
resolutions = st.integers(8, 192).map(lambda n: n * 8)
steps = st.sampled_from([8, 16, 32, 64, 128])
image_sizes = st.lists(st.tuples(st.integers(64, 3000), st.integers(64, 3000)), min_size=1, max_size=12)


@pytest.mark.parametrize(("low", "high", "count"), [(256, 1024, 25), (256, 2048, 41), (512, 2048, 33)])
def test_makes_as_many_buckets_as_kohya(low: int, high: int, count: int) -> None:
    assert len(bucket_sizes(resolution=1024, min_bucket_reso=low, max_bucket_reso=high)) == count


def test_includes_the_known_buckets_of_sdxl() -> None:
    sizes = bucket_sizes(resolution=1024)
    assert {(1024, 1024), (896, 1152), (1152, 896), (832, 1216), (1216, 832), (768, 1344), (640, 1536)} <= set(sizes)


@given(resolutions, st.integers(1, 64), st.integers(0, 64), steps)
def test_bucket_sizes_respect_the_bounds(resolution: int, low: int, more: int, step: int) -> None:
    minimum, maximum = low * 32, (low + more) * 32
    sizes = bucket_sizes(
        resolution=resolution, min_bucket_reso=minimum, max_bucket_reso=maximum, bucket_reso_steps=step
    )
    used = min(step, resolution)
    assert len(set(sizes)) == len(sizes) >= 1
    for width, height in sizes:
        assert width % 8 == height % 8 == 0
        assert width % used == height % used == 0
        assert width * height <= resolution**2
        assert max(width, height) <= max(maximum, used)
        assert (height, width) in sizes


@given(sides, sides, resolutions, steps, st.booleans(), st.booleans(), st.sampled_from([256, 1024, 2048]))
def test_placements_cover_and_fit_their_bucket(
    width: int, height: int, resolution: int, step: int, no_upscale: bool, enable: bool, maximum: int
) -> None:
    placement = place(
        width,
        height,
        resolution=resolution,
        enable_bucket=enable,
        max_bucket_reso=maximum,
        bucket_reso_steps=step,
        bucket_no_upscale=no_upscale,
    )
    (bucket_w, bucket_h), (scaled_w, scaled_h), (left, top) = placement.bucket, placement.scaled, placement.crop
    used = min(step, resolution)
    assert bucket_w * bucket_h <= resolution**2
    assert bucket_w >= 8
    assert bucket_h >= 8
    assert bucket_w % 8 == bucket_h % 8 == 0
    assert 0 <= left <= scaled_w - bucket_w
    assert 0 <= top <= scaled_h - bucket_h
    # The crop is centred to the pixel.
    assert abs(2 * left - (scaled_w - bucket_w)) <= 1
    assert abs(2 * top - (scaled_h - bucket_h)) <= 1
    if not enable:
        assert placement.bucket == (resolution, resolution)
        return
    assert bucket_w % used == bucket_h % used == 0
    assert max(bucket_w, bucket_h) <= max(maximum, used)
    if no_upscale:
        one_step = min(bucket_w, bucket_h) == used
        if not one_step:
            assert scaled_w <= width
            assert scaled_h <= height
        assert scaled_w - bucket_w < used or scaled_h - bucket_h < used
    else:
        # One side is hit exactly: the image is scaled to cover, not more.
        assert scaled_w == bucket_w or scaled_h == bucket_h


@given(st.integers(64, 6000), st.integers(64, 6000))
def test_keeps_the_aspect_ratio_without_upscale(width: int, height: int) -> None:
    scaled_w, scaled_h = place(width, height, resolution=1024).scaled
    assert abs(scaled_w - scaled_h * width / height) <= max(1.0, width / height)


def test_the_crop_offset_is_on_the_cropped_axis() -> None:
    placement = place(900, 1000, resolution=1024, bucket_no_upscale=False)
    assert (placement.bucket, placement.scaled, placement.crop) == ((960, 1088), (979, 1088), (9, 0))


def test_does_not_scale_a_small_image() -> None:
    placement = place(700, 530, resolution=1024)
    assert (placement.bucket, placement.scaled, placement.crop) == ((640, 512), (700, 530), (30, 9))


def test_scales_a_photo_down_to_the_area() -> None:
    placement = place(4000, 3000, resolution=1024)
    assert (placement.bucket, placement.scaled) == ((1088, 832), (1109, 832))
    assert placement.scaled[0] * 3 == pytest.approx(placement.scaled[1] * 4, abs=4)


def test_enlarges_a_tiny_image_to_one_step() -> None:
    placement = place(40, 900, resolution=1024)
    assert (placement.bucket, placement.scaled, placement.crop) == ((64, 896), (64, 1440), (0, 272))


def test_uses_the_settings_of_the_recipe() -> None:
    recipe = Recipe(resolution=768, enable_bucket=False)
    assert place_for(recipe, 900, 1800).bucket == (768, 768)
    assert place_for(Recipe(resolution=768), 900, 1800).bucket == place(900, 1800, resolution=768).bucket


def test_refuses_impossible_values() -> None:
    with pytest.raises(InputError, match="12") as caught:
        place(100, 100, resolution=512, bucket_reso_steps=12)
    assert caught.value.code == "bucket_step"
    with pytest.raises(InputError, match="0 x 5 px") as caught:
        place(0, 5, resolution=512)
    assert caught.value.code == "empty_image"


def test_bucket_plan_of_three_images() -> None:
    recipe = Recipe.parse({"resolution": 1024, "batch_size": 4})
    images = [("square.png", (1024, 1024), 2), ("wide.png", (1400, 1024), 1), ("large.png", (2048, 2048), 1)]
    square, wide = bucket_plan([(Path(name), size, repeats) for name, size, repeats in images], recipe)
    assert (square.size, square.samples, square.batches, square.empty_slots) == ((1024, 1024), 3, 1, 1)
    assert [one.cropped for one in square.images] == [0, 0]
    assert (wide.samples, wide.empty_slots) == (1, 3)
    (one,) = wide.images
    assert 0 < one.cropped < 0.05
    assert sum(one.frame) > 0


@given(sizes=image_sizes, batch=st.integers(1, 5), repeats=st.integers(1, 12))
def test_bucket_plan_agrees_with_the_step_count(sizes: list[tuple[int, int]], batch: int, repeats: int) -> None:
    recipe = Recipe.parse({"resolution": 512, "batch_size": batch})
    buckets = bucket_plan([(Path(f"{row}.png"), size, repeats) for row, size in enumerate(sizes)], recipe)
    assert sum(len(bucket.images) for bucket in buckets) == len(sizes)
    steps = count_steps({bucket.size: bucket.samples for bucket in buckets}, batch_size=batch, epochs=1)
    assert sum(bucket.batches for bucket in buckets) == steps.batches_per_epoch
    assert sum(bucket.empty_slots for bucket in buckets) == steps.empty_slots
    for bucket in buckets:
        for one in bucket.images:
            left, top, right, bottom = one.frame
            assert min(left, top, right, bottom) >= 0
            assert (1 - left - right) * (1 - top - bottom) == pytest.approx(1 - one.cropped)
