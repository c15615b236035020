"""One optimizer step: forward, loss and backward of its micro-batches, then all-reduce, gradient clipping, update.

Nothing here waits for the GPU, except where an optimizer needs to know on the CPU whether the loss is finite: fused
AdamW reads that on the GPU. What a step measured stays on the device until `StepResult.read`, so that the loop can
launch the next step first.
"""

from __future__ import annotations

import math
import warnings

import torch

from lora_studio.training.data.rng import seeded_dropout
from lora_studio.training.optim.max_norm import limit_weight_norms
from lora_studio.training.optim.optimizers import learning_rates
from lora_studio.training.reporting.step_log import StepResult
from lora_studio.training.trainer import Trainer


def train_step(trainer: Trainer, step: int) -> StepResult:
    """Take optimizer step `step`, counted from 0, over its micro-batches.

    Every sample has the same weight, also in a smaller batch or accumulation group. A step whose loss or gradient is
    not finite leaves the weights unchanged; with fp16 an infinite gradient first only lowers the loss scale.
    """
    recipe, device, ranks = trainer.recipe, trainer.device, trainer.ranks
    weights, optimizer, scaler = trainer.weights, trainer.optimizer, trainer.scaler

    # forward, loss and backward of this rank's micro-batches
    with ranks.sync_errors():
        inputs = trainer.prefetch.get(step, trainer.counts.total_steps, trainer.collator.collate_step)
        losses = torch.zeros(inputs.sample_count, device=device)
        weights.zero_gradients()
        for first, batch in inputs.batches:
            with seeded_dropout(recipe, step, first, device=device):
                losses[first : first + len(batch)] = trainer.gradient_pass(batch)
        measured = torch.cat([(losses.sum() / inputs.sample_count).view(1), losses])

    # sums over all ranks, then clipping
    ranks.all_reduce([measured, *weights.gradients])
    scaler.unscale_(optimizer)
    norm = torch.nn.utils.clip_grad_norm_(weights.flat, recipe.max_grad_norm or math.inf)
    timesteps = trainer.collator.timesteps(step, 0, inputs.sample_count)
    result = StepResult(learning_rates(optimizer), timesteps, torch.cat([norm.to(device).view(1), measured]))

    # optimizer, max norm, EMA
    if trainer.skips_on_device:
        optimizer.found_inf = (~result.measured[:2].isfinite()).any().float()  # type: ignore[attr-defined]
        with weights.update():
            optimizer.step()
            _limit_norms(trainer, result)
    elif result.is_finite(rescaling=scaler.is_enabled() and scaler.get_scale() >= 1):
        with weights.update():
            scaler.step(optimizer)
            scaler.update()
            _limit_norms(trainer, result)
            trainer.averaged_weights.update()
    elif scaler.is_enabled():
        scaler.update()

    with warnings.catch_warnings():
        # torch suspects a mistake if the very first step was skipped
        warnings.filterwarnings("ignore", "Detected call of `lr_scheduler.step", UserWarning)
        trainer.lr_scheduler.step()
    return result


def _limit_norms(trainer: Trainer, result: StepResult) -> None:
    """Apply the recipe's max-norm regularisation, if it has one, and add its measurements to the step's result."""
    if trainer.recipe.scale_weight_norms:
        result.weight_norms = limit_weight_norms(trainer.adapters, trainer.recipe.scale_weight_norms)
