"""One optimizer step: forward, loss and backward of its micro-batches, then all-reduce, gradient clipping, update.

Nothing here waits for the GPU, except where an optimizer needs to know on the CPU whether the loss is finite: fused
AdamW reads that on the GPU. What a step measured stays on the device until `StepResult.read`, so that the loop can
launch the next step first.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from lora_studio.events import WEIGHT_NORM_STEPS
from lora_studio.lora.norms import delta_norms
from lora_studio.training.data.rng import seeded_dropout
from lora_studio.training.optim.max_norm import limit_weight_norms
from lora_studio.training.optim.optimizers import learning_rates
from lora_studio.training.reporting.step_log import StepResult
from lora_studio.training.trainer import Trainer


def accumulate_gradients(trainer: Trainer, step: int) -> Tensor:
    """Run forward, loss and backward of this rank's micro-batches; return their mean loss and sample losses, [1 + N].

    The gradients are then in `trainer.weights`. All ranks wait for each other, and raise if one of them fails.
    """
    recipe, device, weights = trainer.recipe, trainer.device, trainer.weights
    with trainer.ranks.sync_errors():
        inputs = trainer.prefetch.get(step, trainer.counts.total_steps, trainer.collator.collate_step)
        losses = torch.zeros(inputs.sample_count, device=device)
        weights.zero_gradients()
        for first, batch in inputs.batches:
            with seeded_dropout(recipe, step, first, device=device):
                losses[first : first + len(batch)] = trainer.gradient_pass(batch)
        return torch.cat([(losses.sum() / inputs.sample_count).view(1), losses])


def train_step(
    trainer: Trainer, step: int, retry: Callable[[Callable[[], Tensor]], Tensor] = lambda accumulate: accumulate()
) -> StepResult:
    """Take optimizer step `step`, counted from 0. `retry` computes its gradients again where they can fail.

    Every sample has the same weight, also in a smaller batch or accumulation group. A step whose loss or gradient is
    not finite leaves the weights unchanged; with fp16 an infinite gradient first only lowers the loss scale.
    """
    weights, optimizer, scaler = trainer.weights, trainer.optimizer, trainer.scaler

    # forward, loss and backward
    losses = retry(partial(accumulate_gradients, trainer, step))

    # sums over all ranks, then clipping
    trainer.ranks.all_reduce([losses, *weights.gradients])
    scaler.unscale_(optimizer)
    norm = torch.nn.utils.clip_grad_norm_(weights.flat, trainer.recipe.max_grad_norm or math.inf)
    images, timesteps = trainer.collator.images(step), trainer.collator.timesteps(step, 0, len(losses) - 1)
    measured = torch.cat([norm.to(trainer.device).view(1), losses])
    rates = {name: 0.0 if name in weights.frozen else rate for name, rate in learning_rates(optimizer).items()}
    pixels = trainer.collator.batch_pixels(step)
    result = StepResult(rates, images, timesteps, measured, batch_pixels=pixels)

    # optimizer, max norm, EMA
    if trainer.skips_nonfinite_on_gpu:
        optimizer.found_inf = (~result.measured[:2].isfinite()).any().float()  # type: ignore[attr-defined]
        with weights.update():
            optimizer.step()
            _measure_norms(trainer, step, result)
    elif result.is_finite(rescaling=scaler.is_enabled() and scaler.get_scale() >= 1):
        with weights.update():
            scaler.step(optimizer)
            scaler.update()
            _measure_norms(trainer, step, result)
            trainer.averaged_weights.update()
    elif scaler.is_enabled():
        scaler.update()

    with warnings.catch_warnings():
        # torch suspects a mistake if the very first step was skipped
        warnings.filterwarnings("ignore", "Detected call of `lr_scheduler.step", UserWarning)
        trainer.lr_scheduler.step()
    return result


def _measure_norms(trainer: Trainer, step: int, result: StepResult) -> None:
    """Apply the recipe's max-norm regularisation, if it has one; add the weight norms to the result where they are due.

    Without max-norm regularisation they are measured at the first step, every 25th and the last: at SDXL's size they
    are about 8,000 small operations, as many as a step.
    """
    limit, number = trainer.recipe.scale_weight_norms, step + 1
    if limit:
        result.scaled_layers, *norms = limit_weight_norms(trainer.adapters, limit).unbind()
        result.weight_norms = torch.stack(norms)
    elif number % WEIGHT_NORM_STEPS == 0 or number in (1, trainer.counts.total_steps):
        found = delta_norms(trainer.adapters)
        result.weight_norms = torch.stack([found.mean(), found.max()])
