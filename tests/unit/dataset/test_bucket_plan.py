"""Which images fall in which bucket, what is cropped, and what a batch size leaves empty."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lora_studio.dataset.bucket_plan import bucket_plan
from lora_studio.planning.steps import count_steps
from lora_studio.settings.recipe import Recipe

sizes = st.lists(st.tuples(st.integers(64, 3000), st.integers(64, 3000)), min_size=1, max_size=12)


def test_buckets_by_hand() -> None:
    recipe = Recipe.parse({"resolution": 1024, "batch_size": 4})
    images = [("square.png", (1024, 1024), 2), ("wide.png", (1400, 1024), 1), ("large.png", (2048, 2048), 1)]
    square, wide = bucket_plan([(Path(name), size, repeats) for name, size, repeats in images], recipe)
    assert (square.size, square.samples, square.batches, square.empty) == ((1024, 1024), 3, 1, 1)
    assert [one.cropped for one in square.images] == [0, 0]
    assert (wide.samples, wide.empty) == (1, 3)
    (one,) = wide.images
    assert 0 < one.cropped < 0.05
    assert sum(one.frame) > 0


@given(sizes=sizes, batch=st.integers(1, 5), repeats=st.integers(1, 12))
def test_every_image_is_in_one_bucket_and_the_steps_are_the_trainers(
    sizes: list[tuple[int, int]], batch: int, repeats: int
) -> None:
    recipe = Recipe.parse({"resolution": 512, "batch_size": batch})
    buckets = bucket_plan([(Path(f"{row}.png"), size, repeats) for row, size in enumerate(sizes)], recipe)
    assert sum(len(bucket.images) for bucket in buckets) == len(sizes)
    steps = count_steps({bucket.size: bucket.samples for bucket in buckets}, batch_size=batch, epochs=1)
    assert sum(bucket.batches for bucket in buckets) == steps.batches_per_epoch
    assert sum(bucket.empty for bucket in buckets) == steps.empty_slots
    for bucket in buckets:
        for one in bucket.images:
            left, top, right, bottom = one.frame
            assert min(left, top, right, bottom) >= 0
            assert (1 - left - right) * (1 - top - bottom) == pytest.approx(1 - one.cropped)
