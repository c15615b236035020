"""A run learns about as much with any number of images, batch size and GPU."""

from __future__ import annotations

from math import sqrt

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lora_studio import guide
from lora_studio.planning.length import (
    MAX_VIEWS_PER_IMAGE,
    batch_of,
    choose_length,
    split_batch,
    steps_at_batch_one,
    target_steps,
)
from lora_studio.planning.plan import plan
from lora_studio.planning.planned_run import Plan
from lora_studio.settings.choices import LoraKind, Optimizer
from lora_studio.settings.recipe import Recipe


def learned(result: Plan) -> float:
    """Return steps x sqrt(batch), relative to what the guide's batch size takes for this kind."""
    return result.steps.total_steps / target_steps(result.kind, batch_of(result.recipe))


@settings(deadline=None, max_examples=40)
@given(images=st.integers(10, 500), kind=st.sampled_from(LoraKind), vram=st.sampled_from([None, 6, 8, 12, 16, 24, 80]))
def test_every_dataset_and_gpu_learns_about_as_much(images: int, kind: LoraKind, vram: int | None) -> None:
    result = plan(images, kind=kind, vram_gib=vram)
    shortest = images * result.tier.epochs[0] / batch_of(result.recipe) / target_steps(kind, batch_of(result.recipe))
    assert 0.8 <= learned(result) <= max(1.2, shortest)


@pytest.mark.parametrize(("before", "after"), [(50, 51), (300, 301)])
def test_one_more_image_changes_little_at_a_tiers_edge(before: int, after: int) -> None:
    for kind in LoraKind:
        assert learned(plan(after, kind=kind)) == pytest.approx(learned(plan(before, kind=kind)), rel=0.2)


def test_every_gpu_takes_the_same_steps() -> None:
    steps = {plan(150, kind="style", vram_gib=vram).steps.total_steps for vram in (6, 8, 12, 16, 24, 80)}
    assert len(steps) == 1


def test_memory_is_saved_by_accumulation() -> None:
    small, large = plan(150, vram_gib=8).recipe, plan(150, vram_gib=80).recipe
    assert small.batch_size < large.batch_size
    assert batch_of(small) == batch_of(large)
    kept = plan(150, vram_gib=8, overrides={"gradient_accumulation_steps": 1}).recipe
    assert kept.gradient_accumulation_steps == 1


@pytest.mark.parametrize(
    ("batch", "most", "expected"), [(4, 4, (4, 1)), (4, 3, (2, 2)), (4, 1, (1, 4)), (2, 9, (2, 1))]
)
def test_a_step_is_split_into_equal_batches(batch: int, most: int, expected: tuple[int, int]) -> None:
    assert split_batch(batch, most) == expected


@given(images=st.integers(1, 5000), batch=st.integers(1, 16), repeats=st.integers(1, 20), epochs=st.integers(1, 30))
def test_given_lengths_are_kept(images: int, batch: int, repeats: int, epochs: int) -> None:
    tier = guide.tier_for(images)
    both = choose_length(images, batch, 500, tier, repeats=repeats, epochs=epochs)
    assert (both.repeats, both.epochs) == (repeats, epochs)
    assert choose_length(images, batch, 500, tier, repeats=repeats).repeats == repeats
    assert choose_length(images, batch, 500, tier, epochs=epochs).epochs == epochs
    free = choose_length(images, batch, 500, tier)
    assert tier.epochs[0] <= free.epochs <= tier.epochs[1]


def test_larger_batches_take_fewer_steps_by_the_square_root() -> None:
    assert target_steps(LoraKind.STYLE, 8) == pytest.approx(target_steps(LoraKind.STYLE, 2) / 2)


def test_rates_count_relative_to_those_that_suit_the_optimizer() -> None:
    rate = guide.RECIPE["unet_lr"].value
    assert steps_at_batch_one(Recipe(batch_size=4, unet_lr=rate / 2), 100) == pytest.approx(100 * sqrt(4) / 2)
    lion = Recipe(optimizer=Optimizer.LION, unet_lr=rate * guide.OPTIMIZERS["Lion"].rate_factor, batch_size=1)
    assert steps_at_batch_one(lion, 100) == pytest.approx(100)
    assert steps_at_batch_one(Recipe(optimizer=Optimizer.PRODIGY, unet_lr=1, batch_size=1), 100) == pytest.approx(100)


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ({}, set()),
        ({"max_train_steps": 50}, {"few_steps"}),
        ({"unet_lr": 5e-5}, {"few_steps"}),
        ({"repeats": 60}, {"many_steps"}),
    ],
)
def test_far_too_few_and_too_many_steps_are_told(overrides: dict[str, object], expected: set[str]) -> None:
    found = {warning.code for warning in plan(24, overrides=overrides).warnings}
    assert found & {"few_steps", "many_steps"} == expected


@pytest.mark.parametrize("images", [1, 4, 9])
def test_a_few_images_are_not_shown_more_often_than_the_plan_allows(images: int) -> None:
    result = plan(images)
    assert result.repeats * result.recipe.epochs <= MAX_VIEWS_PER_IMAGE
    assert "shown_often" not in {warning.code for warning in result.warnings}
