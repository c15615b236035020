"""The memory of a planned run: estimated, or as runs on this machine measured it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel, ConfigDict

from lora_studio.models.catalogue import KnownBase
from lora_studio.planning.memory import (
    ACTIVATIONS,
    COMMUNICATION,
    DESKTOP_GIB,
    RUNTIME,
    TRAINING,
    estimate_vram_gib,
    estimate_vram_phases,
    training_parts,
    with_largest_phase,
)
from lora_studio.planning.speeds import CPU, MeasuredSpeed
from lora_studio.settings.choices import GradientCheckpointing, Precision
from lora_studio.settings.recipe import Recipe
from lora_studio.settings.sections.memory import MemorySettings
from lora_studio.settings.sections.network import NetworkSettings

ESTIMATED, MEASURED, CALIBRATED = "estimated", "measured in an earlier run", "scaled from a run with other settings"
SAME_PIXELS = 0.05  # by which the largest batches of two runs of the same memory may differ
# Settings on which the memory of a step depends in ways that no estimate scales: equal in a run that calibrates a plan.
_MODEL_SETTINGS = ("network_type", "train_layers", "max_token_length", "masked_loss", *MemorySettings.model_fields)
_SCALED_SETTINGS = ("resolution", "batch_size", "optimizer", "optimizer_type", "optimizer_args", "ema_decay")
_SAVING_SETTINGS = ("save_format", "save_precision")


class PlannedMemory(BaseModel):
    """The memory of a run in GiB, on each GPU.

    `gib` is that of the largest of its `phases`, the sum of its `parts`; `source` says where it is from. `least` and
    `most` are those with all UNet blocks recomputed and with none, which differ if gradient checkpointing is auto and
    the memory was not measured. `ram_gib` is the measured peak of the process's main memory (RSS) in a run on the CPU,
    which uses no GPU memory.
    """

    model_config = ConfigDict(frozen=True)

    gib: float
    least: float
    most: float
    parts: dict[str, float]
    phases: dict[str, float]
    source: str = ESTIMATED
    ram_gib: float | None = None

    @property
    def is_range(self) -> bool:
        """True if the memory depends on how many blocks are recomputed, which the run decides."""
        return self.most > self.least

    def fits(self, vram_gib: float) -> bool:
        """Return whether the run should fit a GPU of `vram_gib` that also drives a desktop."""
        return self.least <= vram_gib - DESKTOP_GIB


def plan_memory(
    recipe: Recipe,
    base: KnownBase | None,
    vram_gib: float | None,
    *,
    processes: int = 1,
    runs: Sequence[MeasuredSpeed] = (),
    pixels: int | None = None,
) -> PlannedMemory:
    """Return the memory of a run whose largest batch on a GPU has `pixels` pixels (None: as many as there can be).

    `runs` are those with the same base on the same device, the latest last; see `_measured_parts`. What is measured
    replaces the estimate of training; encoding images and drawing samples stay estimates.
    """
    phases = estimate_vram_phases(recipe, base, vram_gib, processes=processes)
    runs = [run for run in runs if run.memory_gib is not None and run.processes == processes]
    pixels = pixels or recipe.resolution**2 * recipe.batch_size
    found = None
    if not any(run.device == CPU for run in runs):
        found = _measured_parts(recipe, base, processes, runs, pixels)
    if found is None:
        parts, source = training_parts(recipe, base, vram_gib, processes=processes), ESTIMATED
        least, most = _auto_range(recipe, base, vram_gib, processes)
    else:
        parts, source = found
        phases[TRAINING] = round(sum(parts.values()), 3)
        least = most = round(max(phases.values()), 2)
    return PlannedMemory(
        gib=round(max(phases.values()), 2),
        least=least,
        most=most,
        parts=with_largest_phase(parts, phases),
        phases=phases,
        source=source,
        ram_gib=next((run.memory_gib for run in reversed(runs) if _is_same(run, recipe, pixels, on=CPU)), None),
    )


def _auto_range(recipe: Recipe, base: KnownBase | None, vram_gib: float | None, processes: int) -> tuple[float, float]:
    """Return the memory with all blocks recomputed and with none, if the run decides that; else its memory, twice."""
    choices = [recipe.gradient_checkpointing]
    if choices == [GradientCheckpointing.AUTO]:
        choices = [GradientCheckpointing.ON, GradientCheckpointing.OFF]
    chosen = [recipe.model_copy(update={"gradient_checkpointing": choice}) for choice in choices]
    found = [estimate_vram_gib(item, base, vram_gib, processes=processes) for item in chosen]
    return found[0], found[-1]


def _measured_parts(
    recipe: Recipe, base: KnownBase | None, processes: int, runs: Sequence[MeasuredSpeed], pixels: int
) -> tuple[dict[str, float], str] | None:
    """Return the parts of a training step by what runs on this GPU took, and the source; None without a fitting run.

    A run measures the peak of torch's tensors. Weights, gradients and optimizer state are known from their shapes, so
    that the rest of the peak are activations; CUDA's context and NCCL's buffers are outside of it and stay estimates.

    With the same settings and batches the plan takes the activations as they are. With another resolution, batch size,
    network dim or optimizer it scales them by the ratio of the estimates, in which they are proportional to the pixels
    of a batch: that is sound for the same layers in the same precision (`_MODEL_SETTINGS`), all or none recomputed.
    With gradient checkpointing on auto a run recomputes as much as fills the GPU, which says nothing about others.
    """
    same = [run for run in runs if _is_same(run, recipe, pixels)]
    if same:
        return _with_activations(recipe, base, processes, _activations(same[-1], base)), MEASURED
    if recipe.gradient_checkpointing is GradientCheckpointing.AUTO:
        return None
    alike = [run for run in runs if run.batch_pixels and _model_settings(run.recipe) == _model_settings(recipe)]
    if not alike or (measured := _activations(alike[-1], base)) <= 0:
        return None
    then, now = (
        training_parts(each, base, processes=processes, pixels=size)[ACTIVATIONS]
        for each, size in ((alike[-1].recipe, alike[-1].batch_pixels), (recipe, pixels))
    )
    return _with_activations(recipe, base, processes, measured * now / then), CALIBRATED


def _activations(run: MeasuredSpeed, base: KnownBase | None) -> float:
    """Return what a run's tensors took beside those whose shapes are known."""
    outside = (ACTIVATIONS, RUNTIME, COMMUNICATION)
    known = sum(size for name, size in training_parts(run.recipe, base).items() if name not in outside)
    return (run.memory_gib or 0) - known


def _with_activations(recipe: Recipe, base: KnownBase | None, processes: int, gib: float) -> dict[str, float]:
    return training_parts(recipe, base, processes=processes) | {ACTIVATIONS: round(max(0.0, gib), 3)}


def _is_same(run: MeasuredSpeed, recipe: Recipe, pixels: int, *, on: str = "") -> bool:
    """Return whether a run had the settings and the batches of a plan; `on` is the device that it must have used."""
    if not run.batch_pixels or abs(run.batch_pixels / pixels - 1) > SAME_PIXELS or (on and run.device != on):
        return False
    recipes = (run.recipe, recipe) if on != CPU else (recipe_on_cpu(run.recipe), recipe_on_cpu(recipe))
    return _memory_settings(recipes[0]) == _memory_settings(recipes[1])


def recipe_on_cpu(recipe: Recipe) -> Recipe:
    """Return a recipe with the precision that auto means on a CPU."""
    if recipe.mixed_precision is not Precision.AUTO:
        return recipe
    return recipe.model_copy(update={"mixed_precision": Precision.FP32})


def _memory_settings(recipe: Recipe) -> dict[str, Any]:
    """Return all settings on which the memory of a step depends."""
    network = [name for name in NetworkSettings.model_fields if name not in _SAVING_SETTINGS]
    return _model_settings(recipe) | {name: getattr(recipe, name) for name in (*network, *_SCALED_SETTINGS)}


def _model_settings(recipe: Recipe) -> dict[str, Any]:
    """Return the settings on which the memory of a step depends in ways that no estimate scales."""
    found = {name: getattr(recipe, name) for name in _MODEL_SETTINGS}
    blocks = [name for name, factor in recipe.block_factors.items() if factor]
    return found | {"trained": list(recipe.named_rates), "blocks": blocks, "dropout": recipe.uses_dropout}
