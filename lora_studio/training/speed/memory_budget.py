"""The activation budget: as many of the UNet's blocks are computed twice as the GPU's memory needs, and no more."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from transformers import PreTrainedModel

from lora_studio.planning.memory import GIB, optimizer_bytes
from lora_studio.settings.choices import GradientCheckpointing
from lora_studio.training.data.collate import Prepared, prepare
from lora_studio.training.data.dataset import Batch, epoch_steps
from lora_studio.training.loss import batch_losses
from lora_studio.training.speed.recompute import Blocks, choose
from lora_studio.training.step import Step, train_step
from lora_studio.workspace.job_folder import Report

if TYPE_CHECKING:
    from lora_studio.models.load import Base
    from lora_studio.settings.recipe import Recipe
    from lora_studio.training.loop import Run

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


def fit_blocks(run: Run, measure: Callable[[Run, Prepared], Memory], report: Report) -> None:
    """For `auto`: compute as few blocks twice as the memory that `measure` finds allows, and say how many these are.

    The batch of most pixels counts. Weights stay as they are. Does nothing for other choices.
    """
    if run.job.recipe.gradient_checkpointing is not GradientCheckpointing.AUTO:
        return
    report("phase", message="Measuring the memory of a step")
    batch = prepare(run, 0, largest_batch(run), 0).to(run.device)
    run.blocks.compute_all_twice()
    memory = measure(run, batch)
    with run.dropout(0):
        _, costs = run.blocks.measure(lambda: batch_losses(run, batch), [*run.weights.flat, *run.weights.half_copies])
    run.blocks.compute_twice(choose(costs, memory.usable - memory.taken))
    draws = run.blocks.repeats_draws
    compute_texts_twice(run.base.text_encoders, bool(run.blocks.twice), repeats_draws=draws)
    report("phase", message=describe_blocks(run.blocks, memory.usable))


def describe_blocks(blocks: Blocks, usable: float) -> str:
    """Which blocks are computed twice on a GPU with so many usable bytes, in words."""
    count, total, size = len(blocks.twice), len(blocks.order), f"{usable / GIB:.1f} GiB"
    if not count:
        return f"No block of the UNet has to be computed twice: a step fits {size}"
    return f"{count} of {total} blocks of the UNet are computed twice to fit {size}"


def largest_batch(run: Run) -> Batch:
    """The batch of the first epoch that has most pixels, or this process's share of it."""

    def pixels(batch: Batch) -> int:
        return sum(item.placement.bucket[0] * item.placement.bucket[1] for item in batch)

    batches = [batch for step in epoch_steps(run.dataset, run.job.recipe, 0) for batch in step]
    largest = max(batches, key=pixels)
    return list(run.ranks.shard(largest)[1]) or largest[:1]


def gpu_memory(run: Run, batch: Prepared) -> Memory:
    """Measure a step of a batch on the GPU, without the step of the optimizer, whose state is reckoned instead."""
    device = run.device
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    with run.dropout(0):
        batch_losses(run, batch).sum().backward()
    run.weights.zero_gradients()
    taken = torch.cuda.max_memory_allocated(device)
    if not run.optimizer.state:
        taken += round(optimizer_bytes(run.job.recipe, sum(weight.numel() for weight in run.weights.flat)))
    torch.cuda.empty_cache()
    free, _ = torch.cuda.mem_get_info(device)
    return Memory(usable=(free + torch.cuda.memory_reserved(device)) * (1 - RESERVE), taken=taken)


def patient_step(run: Run, report: Report) -> Step:
    """A `train_step`; where the GPU's memory runs out in it, again with more blocks computed twice, if that is auto.

    The weights are as before then. Raises torch.OutOfMemoryError when nothing is left to save.
    """
    auto = run.job.recipe.gradient_checkpointing is GradientCheckpointing.AUTO and run.ranks.world_size == 1
    while True:
        try:
            return train_step(run)
        except torch.OutOfMemoryError:
            if run.updating or not auto or not run.blocks.compute_more_twice():
                raise
        run.weights.zero_gradients()
        torch.cuda.empty_cache()
        report(
            "warning",
            code="memory_short",
            message=f"The memory was not enough for a step: {len(run.blocks.twice)} of {len(run.blocks.order)} blocks "
            "of the UNet are computed twice from here on.",
        )
