"""Rough estimates of the duration of a run, as ranges: a GPU's speed is not known before it has trained a step.

Work is counted in TFLOP on SDXL's real shapes; speeds are those that trainers reach with a LoRA at batch size 1 to 4,
far below data sheets, since launching thousands of small kernels takes longer than their arithmetic. A step of an
earlier run on this machine replaces the estimate.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import ceil, sqrt
from types import MappingProxyType
from typing import Any

from lora_studio.models.catalogue import KnownBase
from lora_studio.planning.length import batch_of
from lora_studio.planning.memory import EMBEDDED, architecture_of, recomputed_share
from lora_studio.planning.speeds import MeasuredSpeed
from lora_studio.planning.steps import StepCount
from lora_studio.settings.choices import BasePrecision, GradientCheckpointing
from lora_studio.settings.recipe import Recipe
from lora_studio.settings.sample_prompts import read_sample_prompts

# TFLOP/s by GPU memory: (minimum GiB, low, high). Published for an SDXL LoRA at batch 1 and 1024 px: 0.6 s per step on
# H100 and L40S, about 0.8 on an RTX 4090, 1.2 on a 3090, 3 on a 3060 and 6 on a T4.
_TFLOPS_BY_VRAM = ((40, 15.0, 40.0), (22, 9.0, 25.0), (15, 2.5, 14.0), (11, 3.0, 10.0), (0, 2.5, 8.0))
# TFLOP/s by a part of the GPU's name, from these publications: the work of a step over its seconds.
_TFLOPS_BY_NAME: Mapping[str, float] = MappingProxyType(
    {"H100": 25.0, "L40S": 25.0, "RTX 4090": 18.8, "RTX 3090": 12.5, "RTX 3060": 5.0, "T4": 2.5}
)
_NAME_SPREAD = 1.4
_UNKNOWN_TFLOPS = (2.5, 25.0)
_CPU_TFLOPS = (0.02, 0.08)  # one to four cores, the embedded base
_LAUNCH_SECONDS = (0.15, 0.4)  # per step, on any GPU: kernels are launched one by one
_ENCODE_SECONDS = (0.1, 0.5)  # to encode an image to latents, once
SAME_SPREAD, SCALED_SPREAD = 1.1, 1.4  # of measured times, with the same and with other settings
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
    """A rough duration in seconds, as a range; `source` says where it is from, like "measured in an earlier run"."""

    low: float
    high: float
    source: str = ""

    @property
    def middle(self) -> float:
        """The geometric mean of the bounds."""
        return round(sqrt(self.low * self.high), 3)


def step_seconds(
    recipe: Recipe,
    base: KnownBase | None = None,
    vram_gib: float | None = None,
    *,
    gpu: str = "",
    measured: SecondsRange | None = None,
) -> SecondsRange:
    """Estimate seconds per optimizer step on a GPU of this name and memory; `measured` is used if it is given."""
    if measured is not None:
        return measured
    least, most = _step_tflop(recipe, base, vram_gib)
    low, high, source = _speed(base, vram_gib, gpu)
    fastest, slowest = _dequantizing(recipe)
    overhead = (0.0, 0.0) if architecture_of(base) is EMBEDDED else _LAUNCH_SECONDS
    return SecondsRange(
        fastest * max(least / high, overhead[0] * recipe.gradient_accumulation_steps),
        slowest * (most / low + overhead[1] * recipe.gradient_accumulation_steps),
        source,
    )


def measured_step(
    alike: Sequence[MeasuredSpeed],
    recipe: Recipe,
    base: KnownBase | None,
    vram_gib: float | None,
    *,
    processes: int = 1,
) -> SecondsRange | None:
    """Return seconds per step by runs with the same base on the same device, the latest last; None without any.

    A run with the same speed settings and number of processes is trusted to 10%. One with others is scaled by the work
    of a step, and by the factor of quantized weights if only one of the two has them.
    """
    wanted = (processes, _speed_settings(recipe))
    same = [speed for speed in alike if (speed.processes, _speed_settings(speed.recipe)) == wanted]
    if same:
        seconds = same[-1].seconds
        return SecondsRange(seconds / SAME_SPREAD, seconds * SAME_SPREAD, "measured in an earlier run")
    if not alike:
        return None
    last = alike[-1]
    now, then = (_step_tflop(each, base, vram_gib) for each in (recipe, last.recipe))
    slower, slower_then = (sqrt(low * high) for low, high in map(_dequantizing, (recipe, last.recipe)))
    seconds = last.seconds * sqrt(now[0] * now[1] / then[0] / then[1]) * slower / slower_then
    return SecondsRange(seconds / SCALED_SPREAD, seconds * SCALED_SPREAD, "scaled from a run with other settings")


def _dequantizing(recipe: Recipe) -> tuple[float, float]:
    """Return the least and the most times that a step takes with the recipe's base precision, relative to 16 bits.

    Quantized weights are dequantized in the forward and in the backward pass. 1.3 to 2 is planned for int8 and nf4
    until a run is measured, within what others report of bases that are not compiled: for LoRAs on language models 1.15
    in nf4 (litgpt pull request 275), 1.2 to 2 in nf4 and 2 to 3 in int8 (bitsandbytes issue 465); for an SDXL LoKr 2.6
    to 2.9 with the kernels of SDNQ and torchao (SimpleTuner, documentation/experimental/SEGMENTED_CHECKPOINTING.md).
    """
    return (1.0, 1.0) if recipe.base_precision is BasePrecision.FULL else (1.3, 2.0)


def _speed_settings(recipe: Recipe) -> list[Any]:
    return [recipe.trains_text_encoders, *(getattr(recipe, name) for name in SPEED_SETTINGS)]


def _step_tflop(recipe: Recipe, base: KnownBase | None, vram_gib: float | None) -> tuple[float, float]:
    """Return the least and the most work of an optimizer step in TFLOP, by how much is recomputed."""
    shape = architecture_of(base)
    images = batch_of(recipe)
    text = 1.05 if recipe.trains_text_encoders else 1.0
    least, most = (
        images * text * ((1 + share) * shape.forward_tflop + shape.backward_tflop) * _area(recipe, base)
        for share in _recomputed(recipe, base, vram_gib)
    )
    return least, most


def run_seconds(
    recipe: Recipe,
    count: StepCount,
    *,
    images: int,
    base: KnownBase | None = None,
    vram_gib: float | None = None,
    gpu: str = "",
    measured: SecondsRange | None = None,
    processes: int = 1,
) -> SecondsRange:
    """Estimate seconds of a run: loading, encoding the images once, the steps, and the samples during training.

    Several `processes` share the encoding; one of them draws the samples.
    """
    step = step_seconds(recipe, base, vram_gib, gpu=gpu, measured=measured)
    sampling = _sampling_seconds(recipe, base, vram_gib, step)
    times_sampled = _times_sampled(recipe, count)
    small = architecture_of(base) is EMBEDDED
    start, encoding = ((3.0, 10.0), (0.005, 0.03)) if small else (_LOAD_SECONDS, _ENCODE_SECONDS)
    low, high = (
        round(start[end] + images / processes * encoding[end] + count.total_steps * bound + times_sampled * drawing)
        for end, bound, drawing in ((0, step.low, sampling.low), (1, step.high, sampling.high))
    )
    return SecondsRange(low, high, step.source)


def _recomputed(recipe: Recipe, base: KnownBase | None, vram_gib: float | None) -> tuple[float, float]:
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
    recipe: Recipe, base: KnownBase | None, vram_gib: float | None, step: SecondsRange
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
    images = batch_of(recipe)
    shares = _recomputed(recipe, base, vram_gib)
    low, high = (bound / images / (2 + share) for bound, share in zip((step.low, step.high), shares, strict=True))
    return SecondsRange(work * low, work * high, step.source)


def _area(recipe: Recipe, base: KnownBase | None) -> float:
    return (recipe.resolution / architecture_of(base).resolution) ** 2


def _speed(base: KnownBase | None, vram_gib: float | None, gpu: str) -> tuple[float, float, str]:
    """Return the lowest and the highest speed in TFLOP/s, and what it was taken from."""
    if architecture_of(base) is EMBEDDED:
        return *_CPU_TFLOPS, "estimated for a CPU"
    for name, speed in _TFLOPS_BY_NAME.items():
        if name in gpu:
            return speed / _NAME_SPREAD, speed * _NAME_SPREAD, f"estimated for an {name}"
    if vram_gib is None:
        return *_UNKNOWN_TFLOPS, "estimated for any GPU"
    low, high = next((low, high) for minimum, low, high in _TFLOPS_BY_VRAM if vram_gib >= minimum)
    return low, high, f"estimated for GPUs of {vram_gib:g} GiB"


def describe_duration(seconds: float) -> str:
    """Return a rough duration as "40 seconds", "12 minutes" or "1.5 hours"."""
    if seconds < 90:
        return f"{round(seconds)} seconds"
    if seconds < 5400:
        return f"{round(seconds / 60)} minutes"
    return f"{seconds / 3600:.1f} hours"


def describe_range(seconds: SecondsRange) -> str:
    """Return a rough range of time as "20–60 s", "12–25 min", "1.6–5.3 h"."""
    unit, name = time_unit(seconds.high)
    low, high = (
        f"{bound / unit:.1f}" if unit == 3600 else f"{bound / unit:.0f}" for bound in (seconds.low, seconds.high)
    )
    return f"{low}–{high} {name}"


def time_unit(seconds: float) -> tuple[int, str]:
    """Return the seconds and the name of the unit that suits times of up to `seconds`."""
    return next(((unit, name) for unit, name in ((3600, "h"), (60, "min")) if seconds >= 1.5 * unit), (1, "s"))
