"""The memory of a plan: estimated, measured with the same settings, or scaled from a run where that is sound."""

from __future__ import annotations

from typing import Any

import pytest

from lora_studio.planning.memory import COMMUNICATION_GIB, RUNTIME_GIB, estimate_vram_gib, training_parts
from lora_studio.planning.planned_memory import CALIBRATED, ESTIMATED, MEASURED, PlannedMemory, plan_memory
from lora_studio.planning.speeds import MeasuredSpeed
from lora_studio.settings.recipe import Recipe

SETTINGS: dict[str, Any] = {"batch_size": 2, "text_encoder_lr": 0, "gradient_checkpointing": "on"}
FULL = 2 * 1024**2  # pixels of two images
TENSORS = 9.1  # measured GiB


def recipe(**changes: Any) -> Recipe:
    return Recipe.parse(SETTINGS | changes)


def measured(chosen: Recipe | None = None, **changes: Any) -> MeasuredSpeed:
    fields = {"base": "SDXL 1.0", "device": "GPU", "seconds": 1.0, "memory_gib": TENSORS, "batch_pixels": FULL}
    return MeasuredSpeed(recipe=chosen or recipe(), **fields | changes)


def planned(chosen: Recipe, *runs: MeasuredSpeed, **changes: Any) -> PlannedMemory:
    return plan_memory(chosen, None, 24, runs=runs, **changes)


def test_without_a_run_it_is_the_estimate() -> None:
    memory = planned(recipe())
    assert (memory.gib, memory.source) == (estimate_vram_gib(recipe()), ESTIMATED)
    assert memory.least == memory.most == memory.gib
    assert sum(memory.parts.values()) == pytest.approx(memory.gib, abs=0.02)
    assert memory.fits(memory.gib + 1)
    assert not memory.fits(memory.gib)


def test_auto_checkpointing_has_a_least_and_a_most() -> None:
    memory = planned(recipe(gradient_checkpointing="auto"))
    assert memory.least == estimate_vram_gib(recipe(gradient_checkpointing="on"))
    assert memory.most == estimate_vram_gib(recipe(gradient_checkpointing="off"))
    assert memory.is_range


@pytest.mark.parametrize("checkpointing", ["on", "off", "auto"])
def test_a_run_with_the_same_settings_replaces_the_estimate_of_training(checkpointing: str) -> None:
    chosen = recipe(gradient_checkpointing=checkpointing)
    memory = planned(chosen, measured(chosen, memory_gib=5.0), measured(chosen), pixels=FULL)
    assert memory.phases["Training"] == pytest.approx(TENSORS + RUNTIME_GIB, abs=2e-3)
    assert (memory.gib, memory.source) == (pytest.approx(TENSORS + RUNTIME_GIB, abs=0.01), MEASURED)
    assert memory.least == memory.most == memory.gib
    assert sum(memory.parts.values()) == pytest.approx(memory.gib, abs=0.02)
    estimate = planned(chosen)
    assert memory.phases["Encoding images"] == estimate.phases["Encoding images"]
    assert memory.phases["Drawing a sample"] == pytest.approx(planned(recipe()).phases["Drawing a sample"], abs=1e-3)


def test_settings_that_take_no_memory_do_not_matter() -> None:
    other = {"epochs": 3, "seed": 7, "unet_lr": 1e-5, "gradient_accumulation_steps": 4, "sample_prompts": []}
    assert planned(recipe(**other), measured(), pixels=FULL).source == MEASURED


@pytest.mark.parametrize(
    "changes",
    [{"batch_size": 4}, {"network_dim": 64}, {"resolution": 768}, {"optimizer": "AdamW"}, {"ema_decay": 0.99}],
)
def test_other_batches_and_networks_are_scaled_by_the_estimates(changes: dict[str, Any]) -> None:
    chosen = recipe(**changes)
    pixels = chosen.batch_size * chosen.resolution**2
    before, now = (training_parts(each, None, pixels=size) for each, size in ((recipe(), FULL), (chosen, pixels)))
    known = sum(before.values()) - before["Activations"] - before["Runtime"]
    memory = planned(chosen, measured(), pixels=pixels)
    assert memory.source == CALIBRATED
    ratio = now["Activations"] / before["Activations"]
    assert memory.parts["Activations"] == pytest.approx((TENSORS - known) * ratio, abs=5e-3)
    unchanged = set(now) - {"Activations"}
    assert {name: memory.parts[name] for name in unchanged} == {name: now[name] for name in unchanged}


def test_smaller_images_are_scaled_too() -> None:
    half, full = (planned(recipe(), measured(), pixels=pixels).parts["Activations"] for pixels in (FULL // 2, FULL))
    assert half == pytest.approx(full / 2, abs=2e-3)
    assert planned(recipe(), measured(), pixels=round(0.97 * FULL)).source == MEASURED
    assert planned(recipe(), measured(), pixels=FULL // 2).source == CALIBRATED


@pytest.mark.parametrize(
    "changes",
    [
        {"gradient_checkpointing": "off"},
        {"gradient_checkpointing": "auto"},
        {"base_precision": "nf4"},
        {"mixed_precision": "fp32"},
        {"network_type": "LoHa"},
        {"network_dropout": 0.1},
        {"text_encoder_lr": 1e-4},
        {"train_layers": "attention"},
        {"max_token_length": 225},
        {"mid_lr_weight": "0,0,0"},
    ],
)
def test_other_layers_and_precisions_are_not_scaled(changes: dict[str, Any]) -> None:
    assert planned(recipe(**changes), measured(), pixels=FULL).source == ESTIMATED


def test_a_run_that_filled_the_gpu_tells_nothing_about_others() -> None:
    auto = recipe(gradient_checkpointing="auto")
    assert planned(recipe(gradient_checkpointing="auto", batch_size=4), measured(auto)).source == ESTIMATED
    assert planned(auto, measured(auto), pixels=FULL // 2).source == ESTIMATED


@pytest.mark.parametrize(
    "changes", [{"memory_gib": None}, {"batch_pixels": None}, {"processes": 2}, {"device": "CPU"}, {"memory_gib": 1.0}]
)
def test_runs_that_measured_something_else_are_left_out(changes: dict[str, Any]) -> None:
    assert planned(recipe(network_dim=64), measured(**changes), pixels=FULL).source == ESTIMATED


def test_buffers_of_several_gpus_come_on_top() -> None:
    memory = planned(recipe(), measured(processes=2), pixels=FULL, processes=2)
    assert memory.source == MEASURED
    assert memory.gib == pytest.approx(TENSORS + RUNTIME_GIB + COMMUNICATION_GIB, abs=0.01)


def test_memory_measured_on_a_cpu_is_ram_and_no_estimate_of_a_gpu() -> None:
    run = measured(device="CPU", memory_gib=1.5)
    memory = planned(recipe(), run, pixels=FULL)
    assert (memory.ram_gib, memory.gib, memory.source) == (1.5, estimate_vram_gib(recipe()), ESTIMATED)
    assert planned(recipe(network_dim=8), run, pixels=FULL).ram_gib is None
    assert planned(recipe(), measured(), pixels=FULL).ram_gib is None
