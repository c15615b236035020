"""The activation memory budget: recompute just enough UNet blocks to fit in the GPU's memory."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel

from lora_studio.events import PhaseEvent, Report
from lora_studio.models.load import Base
from lora_studio.planning.memory import GIB, optimizer_bytes
from lora_studio.settings.choices import GradientCheckpointing
from lora_studio.settings.recipe import Recipe
from lora_studio.training.optim.flat_params import FlatParameters
from lora_studio.training.speed.recompute import BlockCheckpointing, choose_recomputed

RESERVED_SHARE = 0.06  # of a GPU's memory, left free because no allocator fills it without gaps


@dataclass(frozen=True)
class StepMemory:
    """The GPU memory that this process may use, and the peak of a step with every block recomputed; in bytes."""

    usable: float
    peak: float


def make_block_checkpointing(base: Base, recipe: Recipe, device: torch.device) -> BlockCheckpointing:
    """Set up activation checkpointing of a base's UNet and text encoders as the recipe asks.

    For `auto` that is none on a CPU, and all blocks on other devices until `fit_recomputed_blocks` measures a step.
    """
    checkpointing = BlockCheckpointing(base.unet, preserve_rng_state=recipe.uses_dropout)
    chosen = recipe.gradient_checkpointing
    if chosen is GradientCheckpointing.ON or (chosen is GradientCheckpointing.AUTO and device.type != "cpu"):
        checkpointing.recompute_all()
        checkpoint_text_encoders(base.text_encoders, True, preserve_rng_state=checkpointing.preserve_rng_state)
    return checkpointing


def checkpoint_text_encoders(encoders: list[PreTrainedModel], enabled: bool, *, preserve_rng_state: bool) -> None:
    """Enable or disable activation checkpointing of text encoders, for all of their layers at once.

    `preserve_rng_state` is needed with dropout only: the RNG state cannot be set during CUDA graph capture.
    """
    options = {"use_reentrant": False, "preserve_rng_state": preserve_rng_state}
    for encoder in encoders:
        if enabled:
            encoder.activation_checkpointing_enable(activation_checkpointing_kwargs=options)
        else:
            encoder.activation_checkpointing_disable()


def fit_recomputed_blocks(
    checkpointing: BlockCheckpointing,
    encoders: list[PreTrainedModel],
    forward: Callable[[], Tensor],
    measure: Callable[[], StepMemory],
    weights: FlatParameters,
    report: Report,
) -> None:
    """Recompute as few blocks as fit in memory, and report how many; the weights stay unchanged.

    The text encoders are recomputed unless their activations fit in what the UNet leaves. `forward` returns the losses
    of the largest batch, `measure` the memory of its step.
    """
    preserve_rng_state = checkpointing.preserve_rng_state
    checkpointing.recompute_all()
    checkpoint_text_encoders(encoders, True, preserve_rng_state=preserve_rng_state)
    memory = measure()
    budget = memory.usable - memory.peak
    encoder_tensors = [tensor for encoder in encoders for tensor in (*encoder.parameters(), *encoder.buffers())]
    ignored = [*weights.flat, *weights.half_copies, *encoder_tensors]
    outside, costs = checkpointing.measure(forward, ignored)
    text_bytes = _bytes_outside_blocks(checkpointing, encoders, forward, ignored) - outside if encoders else 0
    chosen = choose_recomputed(costs, budget)
    checkpointing.recompute_only(chosen)
    spare = budget - sum(cost.saved_bytes for index, cost in enumerate(costs) if index not in chosen)
    checkpoint_text_encoders(encoders, text_bytes > spare, preserve_rng_state=preserve_rng_state)
    count, total, size = len(checkpointing.recomputed), len(checkpointing.blocks), f"{memory.usable / GIB:.1f} GiB"
    report(PhaseEvent(message=f"Gradient checkpointing of {count} of {total} UNet blocks, to fit {size}"))


def _bytes_outside_blocks(
    checkpointing: BlockCheckpointing,
    encoders: list[PreTrainedModel],
    forward: Callable[[], Tensor],
    ignored: list[Tensor],
) -> float:
    """Return the bytes saved outside of UNet blocks if the text encoders are not recomputed; infinite if too many."""
    preserve_rng_state = checkpointing.preserve_rng_state
    checkpoint_text_encoders(encoders, False, preserve_rng_state=preserve_rng_state)
    try:
        return checkpointing.measure(forward, ignored)[0]
    except torch.OutOfMemoryError:
        return math.inf
    finally:
        checkpoint_text_encoders(encoders, True, preserve_rng_state=preserve_rng_state)


def measure_step_memory(
    forward: Callable[[], Tensor],
    weights: FlatParameters,
    optimizer: torch.optim.Optimizer,
    recipe: Recipe,
    device: torch.device,
) -> StepMemory:
    """Measure a forward and backward pass on the GPU; add an estimate of the optimizer state if there is none yet."""
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    forward().sum().backward()
    weights.zero_gradients()
    peak = torch.cuda.max_memory_allocated(device)
    if not optimizer.state:
        peak += round(optimizer_bytes(recipe, sum(weight.numel() for weight in weights.flat)))
    torch.cuda.empty_cache()
    free, _ = torch.cuda.mem_get_info(device)
    return StepMemory(usable=(free + torch.cuda.memory_reserved(device)) * (1 - RESERVED_SHARE), peak=peak)
