"""What each way to save memory leaves and costs, one after the other."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict

from lora_studio.errors import InputError
from lora_studio.guide import MEMORY_SAVINGS, MemorySaving
from lora_studio.models.catalogue import KnownBase
from lora_studio.planning.length import batch_of, split_batch
from lora_studio.planning.memory import (
    DESKTOP_GIB,
    apply_saving,
    estimate_vram_gib,
    has_effect,
    next_saving,
    saving_advice,
)
from lora_studio.planning.timing import step_seconds
from lora_studio.settings.choices import GradientCheckpointing
from lora_studio.settings.job_specs import TrainJob
from lora_studio.settings.recipe import Recipe


class Rung(BaseModel):
    """The memory in GiB after a saving and all before it, and the time of an image relative to the first rung's.

    `fits` is None if the GPU's memory is not known.
    """

    model_config = ConfigDict(frozen=True)

    advice: str
    setting: str
    value: Any
    vram_gib: float
    time_factor: float
    fits: bool | None


def memory_ladder(recipe: Recipe, base: KnownBase | None, vram_gib: float | None, *, processes: int = 1) -> list[Rung]:
    """Return what each saving leaves of a recipe's memory, in the guide's order; the first recomputes nothing."""
    recipe = recipe.model_copy(update={"gradient_checkpointing": GradientCheckpointing.OFF})
    fastest = _seconds_per_image(recipe, base)

    def rung(advice: str, setting: str) -> Rung:
        needed = estimate_vram_gib(recipe, base, processes=processes)
        return Rung(
            advice=advice,
            setting=setting,
            value=getattr(recipe, setting),
            vram_gib=needed,
            time_factor=round(_seconds_per_image(recipe, base) / fastest, 2),
            fits=None if vram_gib is None else needed <= vram_gib - DESKTOP_GIB,
        )

    rungs = [rung("Recompute nothing", "gradient_checkpointing")]
    for saving in MEMORY_SAVINGS:
        if not has_effect(recipe, saving):
            continue
        recipe = with_rung(recipe, saving)
        if saving.setting == "gradient_checkpointing":  # auto recomputes as much as the GPU needs, here everything
            recipe = recipe.model_copy(update={"gradient_checkpointing": GradientCheckpointing.ON})
        rungs.append(rung(saving.advice, saving.setting))
    return rungs


def with_rung(recipe: Recipe, saving: MemorySaving) -> Recipe:
    """Return the recipe with a saving; a smaller batch is accumulated, so that a step has as many images as before."""
    if saving.setting != "batch_size":
        return apply_saving(recipe, saving)
    size, count = split_batch(batch_of(recipe), 1)
    return recipe.model_copy(update={"batch_size": size, "gradient_accumulation_steps": count})


def smaller_job(job: TrainJob) -> tuple[TrainJob, MemorySaving]:
    """Return a job that ran out of memory with the next rung of the ladder, and that rung.

    Raises InputError if its settings are the smallest.
    """
    saving = next_saving(job.recipe)
    if saving is None:
        raise InputError(f"{job.name} has the smallest settings.", saving_advice(job.recipe), code="smallest")
    return job.model_copy(update={"recipe": with_rung(job.recipe, saving), "continues": False}), saving


def _seconds_per_image(recipe: Recipe, base: KnownBase | None) -> float:
    return step_seconds(recipe, base).middle / batch_of(recipe)
