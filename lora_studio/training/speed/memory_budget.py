"""The activation budget: as many of the UNet's blocks are computed twice as the GPU's memory needs, and no more."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel

from lora_studio.models.load import Base
from lora_studio.planning.memory import GIB, optimizer_bytes
from lora_studio.settings.choices import GradientCheckpointing
from lora_studio.settings.recipe import Recipe
from lora_studio.training.optim.flat_params import FlatParameters
from lora_studio.training.speed.recompute import Blocks, choose
from lora_studio.workspace.job_folder import Report

RESERVE = 0.06  # share of a GPU's memory that stays free, since no allocator fills it without gaps


@dataclass(frozen=True)
class Memory:
    """Bytes of a GPU that this process may use, and how many a step takes where every block is computed twice."""

    usable: float
    taken: float


def make_blocks(base: Base, recipe: Recipe, device: torch.device) -> Blocks:
    """Take charge of a base's gradient checkpointing as the recipe has it; for `auto` as far as that is known now.

    That is nothing on a CPU, and everything elsewhere until a step was measured.
    """
    blocks = Blocks(base.unet, repeats_draws=recipe.network_dropout > 0)
    chosen = recipe.gradient_checkpointing
    if chosen is GradientCheckpointing.ON or (chosen is GradientCheckpointing.AUTO and device.type != "cpu"):
        blocks.compute_all_twice()
        compute_texts_twice(base.text_encoders, True, repeats_draws=blocks.repeats_draws)
    return blocks


def compute_texts_twice(encoders: list[PreTrainedModel], twice: bool, *, repeats_draws: bool) -> None:
    """Switch gradient checkpointing of text encoders, which is for all of their layers or none.

    `repeats_draws` is as in `Blocks`: no state of random numbers may be set while a CUDA graph is recorded.
    """
    how = {"use_reentrant": False, "preserve_rng_state": repeats_draws}
    for encoder in encoders:
        if twice:
            encoder.activation_checkpointing_enable(activation_checkpointing_kwargs=how)
        else:
            encoder.activation_checkpointing_disable()


def fit_blocks(
    blocks: Blocks,
    encoders: list[PreTrainedModel],
    forward: Callable[[], Tensor],
    measure: Callable[[], Memory],
    weights: FlatParameters,
    report: Report,
) -> None:
    """Recompute as few blocks as the memory allows that `measure` finds with all recomputed, and report how many.

    `forward` returns the losses of the largest batch. Weights stay as they are.
    """
    blocks.compute_all_twice()
    memory = measure()
    _, costs = blocks.measure(forward, [*weights.flat, *weights.half_copies])
    blocks.compute_twice(choose(costs, memory.usable - memory.taken))
    compute_texts_twice(encoders, bool(blocks.twice), repeats_draws=blocks.repeats_draws)
    report("phase", message=describe_blocks(blocks, memory.usable))


def describe_blocks(blocks: Blocks, usable: float) -> str:
    """Which blocks are computed twice on a GPU with so many usable bytes, in words."""
    count, total, size = len(blocks.twice), len(blocks.order), f"{usable / GIB:.1f} GiB"
    if not count:
        return f"No block of the UNet has to be computed twice: a step fits {size}"
    return f"{count} of {total} blocks of the UNet are computed twice to fit {size}"


def gpu_memory(
    forward: Callable[[], Tensor],
    weights: FlatParameters,
    optimizer: torch.optim.Optimizer,
    recipe: Recipe,
    device: torch.device,
) -> Memory:
    """Measure a forward and backward pass on the GPU, and estimate the optimizer's state if there is none yet."""
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    forward().sum().backward()
    weights.zero_gradients()
    taken = torch.cuda.max_memory_allocated(device)
    if not optimizer.state:
        taken += round(optimizer_bytes(recipe, sum(weight.numel() for weight in weights.flat)))
    torch.cuda.empty_cache()
    free, _ = torch.cuda.mem_get_info(device)
    return Memory(usable=(free + torch.cuda.memory_reserved(device)) * (1 - RESERVE), taken=taken)
