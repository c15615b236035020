from __future__ import annotations

from typing import Any

import pytest

from lora_studio.models.catalogue import BASES
from lora_studio.planning.speeds import MeasuredSpeed
from lora_studio.planning.steps import count_steps
from lora_studio.planning.timing import SecondsRange, describe_duration, measured_step, run_seconds, step_seconds
from lora_studio.settings.choices import BasePrecision
from lora_studio.settings.recipe import Recipe


def recipe(**values: Any) -> Recipe:
    return Recipe.parse({"text_encoder_lr": 0, **values})


def test_published_step_times_are_within_the_range() -> None:
    # SDXL at 1024 px, batch 1, on an H100: 0.606 s, with checkpointing 1.080 s.
    for checkpointing, published in ((False, 0.606), (True, 1.08)):
        span = step_seconds(recipe(batch_size=1, gradient_checkpointing=checkpointing), vram_gib=80)
        assert span.low < published < span.high


def test_more_work_takes_longer() -> None:
    plain = step_seconds(recipe(batch_size=2), vram_gib=24)
    for harder in (
        recipe(batch_size=4),
        recipe(batch_size=2, gradient_accumulation_steps=2),
        recipe(batch_size=2, resolution=1536),
        Recipe.parse({"batch_size": 2}),
    ):
        assert step_seconds(harder, vram_gib=24).middle > plain.middle
    assert step_seconds(recipe(batch_size=2, gradient_checkpointing="on"), vram_gib=24).middle > plain.middle
    assert step_seconds(recipe(batch_size=2), vram_gib=8).middle > plain.middle


def test_unknown_gpu_gives_the_widest_range() -> None:
    unknown, known = step_seconds(recipe()), step_seconds(recipe(), vram_gib=24)
    assert unknown.low <= known.low
    assert unknown.high >= known.high


def test_a_measured_step_replaces_the_estimate() -> None:
    measured = SecondsRange(1.8, 2.2, "measured")
    assert step_seconds(recipe(), vram_gib=8, measured=measured) == measured
    count = count_steps({0: 100}, batch_size=2, epochs=10)
    run = run_seconds(recipe(sample_every_n_epochs=0), count, images=100, measured=measured)
    assert run.source == "measured"
    assert 500 * 1.8 < run.low < run.high < 500 * 2.2 + 120


def test_steps_of_other_settings_are_scaled_by_their_work() -> None:
    small = recipe(batch_size=1, resolution=512, gradient_checkpointing="off")
    alike = [MeasuredSpeed(base="SDXL 1.0", device="GPU", recipe=small, seconds=1.0)]
    same = measured_step(alike, small, None, 24)
    larger = measured_step(alike, recipe(batch_size=1, gradient_checkpointing="off"), None, 24)
    assert same is not None
    assert larger is not None
    assert (same.middle, larger.middle) == (pytest.approx(1.0), pytest.approx(4.0))
    assert larger.high / larger.low > same.high / same.low
    assert measured_step([], small, None, 24) is None


def test_a_gpu_that_was_published_about_is_known_by_its_name() -> None:
    known, unknown = (step_seconds(recipe(batch_size=1), vram_gib=24, gpu=gpu) for gpu in ("NVIDIA RTX 4090", "X"))
    assert known.high / known.low < unknown.high / unknown.low
    assert "4090" in known.source
    assert "24 GiB" in unknown.source


def test_samples_during_training_take_time() -> None:
    count = count_steps({0: 100}, batch_size=2, epochs=10)
    without = run_seconds(recipe(sample_every_n_epochs=0), count, images=100, vram_gib=24)
    with_samples = run_seconds(recipe(sample_prompts=["a", "b"]), count, images=100, vram_gib=24)
    rarely = run_seconds(recipe(sample_prompts=["a", "b"], sample_every_n_epochs=5), count, images=100, vram_gib=24)
    assert without.middle < rarely.middle < with_samples.middle


def test_samples_take_time_by_their_number_size_and_steps() -> None:
    count = count_steps({0: 100}, batch_size=2, epochs=10)

    def seconds(**samples: Any) -> float:
        rare = {"sample_prompts": ["a"], "sample_every_n_epochs": 10}
        return run_seconds(recipe(**rare | samples), count, images=100, vram_gib=24).middle

    plain = seconds()
    for more in (
        {"sample_at_first": True},
        {"sample_every_n_steps": 100},
        {"sample_prompts": ["a --s 90"]},
        {"sample_prompts": ["a --w 2048 --h 2048"]},
        {"sample_height": 2048},
    ):
        assert seconds(**more) > 1.005 * plain, more
    assert seconds(sample_prompts=["a", "# b"]) == plain


def test_embedded_base_takes_minutes_without_a_gpu() -> None:
    small = recipe(resolution=128, bucket_reso_steps=32, batch_size=8, gradient_checkpointing=False)
    count = count_steps({0: 240}, batch_size=8, epochs=10)
    span = run_seconds(small, count, images=20, base=BASES["embedded"])
    assert 20 < span.low < span.high < 600


def test_middle_is_the_geometric_mean() -> None:
    assert SecondsRange(100, 400).middle == pytest.approx(200)


@pytest.mark.parametrize(
    ("seconds", "text"), [(40, "40 seconds"), (89, "89 seconds"), (720, "12 minutes"), (9000, "2.5 hours")]
)
def test_describes_durations(seconds: float, text: str) -> None:
    assert describe_duration(seconds) == text


def test_recomputed_blocks_and_quantized_weights_take_longer() -> None:
    off, auto, on = (recipe(batch_size=1, gradient_checkpointing=choice) for choice in ("off", "auto", "on"))
    assert step_seconds(auto, vram_gib=80) == step_seconds(off, vram_gib=80)
    on_12, auto_12, off_12 = (step_seconds(item, vram_gib=12).middle for item in (on, auto, off))
    assert off_12 < auto_12 < on_12
    unknown = step_seconds(auto)
    assert (unknown.low, unknown.high) == (step_seconds(off).low, step_seconds(on).high)
    quantized = step_seconds(recipe(batch_size=1, gradient_checkpointing="off", base_precision="nf4"), vram_gib=80)
    plain = step_seconds(off, vram_gib=80)
    assert plain.low < quantized.low
    assert quantized.high == pytest.approx(2 * plain.high)
    assert quantized.low == pytest.approx(1.3 * plain.low)


def test_a_measured_step_is_scaled_to_other_base_precisions() -> None:
    full = recipe(batch_size=1, gradient_checkpointing="off")
    quantized = full.model_copy(update={"base_precision": BasePrecision.NF4})

    def scaled(measured: Recipe, planned: Recipe, seconds: float) -> float:
        alike = [MeasuredSpeed(base="SDXL 1.0", device="GPU", recipe=measured, seconds=seconds)]
        found = measured_step(alike, planned, None, 24)
        assert found is not None
        return found.middle

    assert 1.3 < scaled(full, quantized, 1.0) < 2
    assert scaled(quantized, full, scaled(full, quantized, 1.0)) == pytest.approx(1.0, abs=2e-3)
    assert scaled(quantized, quantized, 3.0) == pytest.approx(3.0)


def test_runs_of_several_processes_are_not_taken_for_those_of_one() -> None:
    chosen = recipe(batch_size=2, gradient_checkpointing="off")
    together = MeasuredSpeed(base="SDXL 1.0", device="GPU", recipe=chosen, seconds=1.0, processes=2)
    same, other = (measured_step([together], chosen, None, 24, processes=count) for count in (2, 1))
    assert same is not None
    assert other is not None
    assert other.high / other.low > same.high / same.low
