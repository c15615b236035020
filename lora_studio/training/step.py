"""One optimizer step: gradients of its batches, and the update, if all numbers are finite.

Nothing here waits for a GPU, save where an optimizer must be told on the host whether to go ahead: fused AdamW reads
that from the GPU's own memory. What a step measured stays on the device until `Step.read`, so that the loop can launch
the next step first.
"""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lora_studio.training.data.collate import StepInputs, prepare_step, step_timesteps
from lora_studio.training.optim.optimizers import learning_rates
from lora_studio.training.speed.cuda_graph_policy import gradient_pass

if TYPE_CHECKING:
    from lora_studio.training.loop import Run


@dataclass
class Step:
    """A step that was taken: its rates by group, its samples' timesteps, and what it measured.

    `measured` is on the device: the norm of the gradient, the mean loss, then the loss of each sample. `good` is
    whether the weights were changed, None where only `measured` says so.
    """

    rates: dict[str, float]
    timesteps: list[int]
    measured: Tensor
    good: bool | None = None
    losses: list[float] = field(default_factory=list)

    def read(self) -> float | None:
        """The mean loss of the step's samples, each of which `losses` has then; None if the step was left out."""
        gradient, loss, *self.losses = self.measured.tolist()
        if self.good is None:
            self.good = math.isfinite(loss) and math.isfinite(gradient)
        return loss if self.good else None


def train_step(run: Run) -> Step:
    """Take one optimizer step over its batches.

    Each sample counts the same, in a short batch or group too. A step with a loss or gradient that is not finite leaves
    the weights alone; with fp16 an infinite gradient first only lowers the loss scale, as is usual.
    """
    with run.ranks.sync_errors():
        inputs = run.prefetch.take(run.step, run.counts.total_steps, partial(prepare_step, run))
        figures = _backward(run, inputs)
    run.ranks.all_reduce([figures, *run.weights.gradients])
    run.scaler.unscale_(run.optimizer)
    norm = torch.nn.utils.clip_grad_norm_(run.weights.flat, run.job.recipe.max_grad_norm or math.inf)
    measured = torch.cat([norm.to(run.device).view(1), figures])
    step = Step(learning_rates(run.optimizer), step_timesteps(run, run.step, 0, inputs.samples), measured)
    update = _update_on_device if run.decides_on_device else _update_when_finite
    update(run, step)
    with warnings.catch_warnings():
        # torch suspects a mistake where the first step of all was left out
        warnings.filterwarnings("ignore", "Detected call of `lr_scheduler.step", UserWarning)
        run.lr_scheduler.step()
    return step


def _backward(run: Run, inputs: StepInputs) -> Tensor:
    """Gather the gradients of this process's batches; returns their part of the mean loss, then of each sample's.

    If it fails with graphs, it is done once more from the beginning without.
    """
    while True:
        try:
            return _gather(run, inputs)
        except RuntimeError as error:
            if run.replays is None or not run.replays.give_up(error):
                raise


def _gather(run: Run, inputs: StepInputs) -> Tensor:
    losses = torch.zeros(inputs.samples, device=run.device)
    samples = torch.full((), float(inputs.samples), device=run.device)
    run.weights.zero_gradients()
    if run.replays is not None:
        run.replays.consider([batch for _, batch in inputs.batches], samples)
    for begin, batch in inputs.batches:
        with run.dropout(begin):
            if run.replays is not None:
                found = run.replays.take(batch, samples)
            else:
                found = gradient_pass(run, batch.to(run.device), samples)
        losses[begin : begin + len(found)] = found
    return torch.cat([(losses.sum() / samples).view(1), losses])


def _update_when_finite(run: Run, step: Step) -> None:
    """The update, after a wait for the device."""
    gradient, loss, *_ = step.measured.tolist()
    rescaling = run.scaler.is_enabled() and run.scaler.get_scale() >= 1
    step.good = math.isfinite(loss) and (math.isfinite(gradient) or rescaling)
    if step.good:
        run.updating = True
        run.scaler.step(run.optimizer)
        run.scaler.update()
        run.weights.sync_half_copies()
        run.averaged_weights.update()
        run.updating = False
    elif run.scaler.is_enabled():
        run.scaler.update()


def _update_on_device(run: Run, step: Step) -> None:
    """The update by an optimizer that reads from the device whether to go ahead, as it does for a gradient scaler."""
    run.updating = True
    run.optimizer.found_inf = (~step.measured[:2].isfinite()).any().float()  # type: ignore[attr-defined]
    run.optimizer.step()
    run.weights.sync_half_copies()
    run.updating = False
