"""Rough estimates of the duration of a run, as ranges: a GPU's speed is not known before it has trained a step.

Work is counted in TFLOP on SDXL's real shapes; speeds are those that trainers reach with a LoRA at batch size 1 to 4,
far below data sheets, since launching thousands of small kernels takes longer than their arithmetic. A measured step
replaces the estimate.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, sqrt
from statistics import median
from typing import Any

from lora_studio.errors import InputError
from lora_studio.events import StepEvent
from lora_studio.guide import BaseModel, find_base
from lora_studio.planning.memory import EMBEDDED, architecture_of, recomputed_share
from lora_studio.planning.steps import StepCount
from lora_studio.settings.choices import BasePrecision, GradientCheckpointing
from lora_studio.settings.job_specs import TrainJob
from lora_studio.settings.recipe import Recipe
from lora_studio.settings.sample_prompts import read_sample_prompts
from lora_studio.workspace.job_folder import JobFolder

# TFLOP/s by GPU memory: (minimum GiB, low, high). Published for an SDXL LoRA at batch 1 and 1024 px: 0.6 s per step on
# H100 and L40S, about 0.8 on an RTX 4090, 1.2 on a 3090, 3 on a 3060 and 6 on a T4.
_TFLOPS_BY_VRAM = ((40, 15.0, 40.0), (22, 9.0, 25.0), (15, 2.5, 14.0), (11, 3.0, 10.0), (0, 2.5, 8.0))
_UNKNOWN_TFLOPS = (2.5, 25.0)
_CPU_TFLOPS = (0.02, 0.08)  # one to four cores, the embedded base
_LAUNCH_SECONDS = (0.15, 0.4)  # per step, on any GPU: kernels are launched one by one
_DEQUANTIZE_FACTOR = (1.05, 1.5)  # slow-down where quantized weights are dequantized twice per step
_ENCODE_SECONDS = (0.1, 0.5)  # to encode an image to latents, once
WARMUP_STEPS = 5  # left out of measured times
SPEED_SETTINGS = (
    "resolution",
    "batch_size",
    "gradient_accumulation_steps",
    "gradient_checkpointing",
    "base_precision",
    "mixed_precision",
    "optimizer",
    "network_dim",
    "network_type",
    "train_layers",
)
_LOAD_SECONDS = (10.0, 60.0)  # to load a base


@dataclass(frozen=True)
class SecondsRange:
    """A rough duration in seconds, as a range."""

    low: float
    high: float

    @property
    def middle(self) -> float:
        """The geometric mean of the bounds."""
        return round(sqrt(self.low * self.high), 3)


def step_seconds(
    recipe: Recipe, base: BaseModel | None = None, vram_gib: float | None = None, measured: float | None = None
) -> SecondsRange:
    """Estimate seconds per optimizer step; `measured`, from an earlier run with these settings, is trusted to 10%."""
    if measured is not None:
        return SecondsRange(0.9 * measured, 1.1 * measured)
    shape = architecture_of(base)
    images = recipe.batch_size * recipe.gradient_accumulation_steps
    least, most = (
        images
        * (1.05 if recipe.trains_text_encoders else 1.0)
        * ((1 + share) * shape.forward_tflop + shape.backward_tflop)
        * _area(recipe, base)
        for share in _recomputed(recipe, base, vram_gib)
    )
    low, high = _speed(base, vram_gib)
    quantized = recipe.base_precision is not BasePrecision.FULL
    fastest, slowest = _DEQUANTIZE_FACTOR if quantized else (1.0, 1.0)
    overhead = (0.0, 0.0) if shape is EMBEDDED else _LAUNCH_SECONDS
    return SecondsRange(
        fastest * max(least / high, overhead[0] * recipe.gradient_accumulation_steps),
        slowest * (most / low + overhead[1] * recipe.gradient_accumulation_steps),
    )


def measured_step_seconds(runs: Sequence[JobFolder], recipe: Recipe, base: str) -> float | None:
    """Return seconds per step of the latest of `runs` with this base and the same speed settings, or None.

    It is the median without the first steps, which set up kernels and caches.
    """
    for folder in reversed(runs):
        try:
            job = folder.job()
        except InputError:
            continue
        if (
            not isinstance(job, TrainJob)
            or _speed_settings(job.recipe) != _speed_settings(recipe)
            or _catalogue_name(job.base) != base
        ):
            continue
        steps = [
            event.seconds for event in folder.events()[0] if isinstance(event, StepEvent) and event.seconds is not None
        ]
        if len(steps) > 2 * WARMUP_STEPS:
            return float(median(steps[WARMUP_STEPS:]))
    return None


def _speed_settings(recipe: Recipe) -> list[Any]:
    return [recipe.trains_text_encoders, *(getattr(recipe, name) for name in SPEED_SETTINGS)]


def _catalogue_name(name: str) -> str:
    known = find_base(name)
    return known.name if known else name


def run_seconds(
    recipe: Recipe,
    count: StepCount,
    *,
    images: int,
    base: BaseModel | None = None,
    vram_gib: float | None = None,
    measured: float | None = None,
) -> SecondsRange:
    """Estimate seconds of a run: loading, encoding the images once, the steps, and the samples during training."""
    step = step_seconds(recipe, base, vram_gib, measured)
    sampling = _sampling_seconds(recipe, base, vram_gib, step)
    times_sampled = _times_sampled(recipe, count)
    small = architecture_of(base) is EMBEDDED
    start, encoding = ((3.0, 10.0), (0.005, 0.03)) if small else (_LOAD_SECONDS, _ENCODE_SECONDS)
    return SecondsRange(
        *(
            round(start[end] + images * encoding[end] + count.total_steps * bound + times_sampled * drawing)
            for end, bound, drawing in ((0, step.low, sampling.low), (1, step.high, sampling.high))
        )
    )


def _recomputed(recipe: Recipe, base: BaseModel | None, vram_gib: float | None) -> tuple[float, float]:
    """Return the minimum and maximum share of the forward pass that is recomputed."""
    if architecture_of(base) is EMBEDDED and recipe.gradient_checkpointing is GradientCheckpointing.AUTO:
        return 0.0, 0.0  # fits every GPU
    share = recomputed_share(recipe, base, vram_gib)
    return (0.0, 1.0) if share is None else (share, share)


def _times_sampled(recipe: Recipe, count: StepCount) -> int:
    """Return how often a run draws its sample prompts."""
    epochs, steps = recipe.sample_every_n_epochs, recipe.sample_every_n_steps
    within_epochs = count.total_steps // steps if steps else 0
    return recipe.sample_at_first + (ceil(count.epochs / epochs) if epochs else 0) + within_epochs


def _sampling_seconds(
    recipe: Recipe, base: BaseModel | None, vram_gib: float | None, step: SecondsRange
) -> SecondsRange:
    """Estimate seconds to draw all sample prompts once.

    A sampling step is a forward pass over two images with classifier-free guidance, else over one.
    """
    native = architecture_of(base).resolution
    work = 0.0  # forward passes of one image of the training resolution
    for prompt in read_sample_prompts(recipe):
        settings = prompt.settings
        area = (settings.sample_width or native) * (settings.sample_height or native) / recipe.resolution**2
        work += settings.sample_steps * (2 if settings.sample_guidance > 1 else 1) * area
    images = recipe.batch_size * recipe.gradient_accumulation_steps
    shares = _recomputed(recipe, base, vram_gib)
    forward = [bound / images / (2 + share) for bound, share in zip((step.low, step.high), shares, strict=True)]
    return SecondsRange(*(work * bound for bound in forward))


def _area(recipe: Recipe, base: BaseModel | None) -> float:
    return (recipe.resolution / architecture_of(base).resolution) ** 2


def _speed(base: BaseModel | None, vram_gib: float | None) -> tuple[float, float]:
    if architecture_of(base) is EMBEDDED:
        return _CPU_TFLOPS
    if vram_gib is None:
        return _UNKNOWN_TFLOPS
    return next((low, high) for minimum, low, high in _TFLOPS_BY_VRAM if vram_gib >= minimum)


def describe_duration(seconds: float) -> str:
    """Return a rough duration as "40 seconds", "12 minutes" or "1.5 hours"."""
    if seconds < 90:
        return f"{round(seconds)} seconds"
    if seconds < 5400:
        return f"{round(seconds / 60)} minutes"
    return f"{seconds / 3600:.1f} hours"
