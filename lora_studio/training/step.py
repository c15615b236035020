"""One optimizer step: gradients of its batches, and the update, if all numbers are finite.

Nothing here waits for a GPU, save where an optimizer must be told on the host whether to go ahead: fused AdamW reads
that from the GPU's own memory. What a step measured stays on the device until `Step.read`, so that the loop can launch
the next step first.
"""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lora_studio.training.loss import batch_losses, step_timesteps
from lora_studio.training.optimizers import current_rates

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
    batches = run.batches(run.step)
    samples = sum(map(len, batches))
    step = Step(current_rates(run.optimizer), step_timesteps(run, 0, samples), _backward(run, samples))
    update = _update_on_device if run.decides_on_device else _update_when_finite
    update(run, step)
    with warnings.catch_warnings():
        # torch suspects a mistake where the first step of all was left out
        warnings.filterwarnings("ignore", "Detected call of `lr_scheduler.step", UserWarning)
        run.lr_scheduler.step()
    return step


def _backward(run: Run, samples: int) -> Tensor:
    """Gather the gradients of the step's batches, clipped, and return what was measured; see `Step`."""
    figures = torch.zeros(1 + samples, device=run.device)  # the mean loss, then each sample's
    first = 0
    run.weights.zero_gradients()
    with run.team.together():
        for batch in run.batches(run.step):
            place, share = run.team.share(batch)
            if share:
                begin = first + place
                with run.dropout(begin):
                    losses = batch_losses(run, list(share), begin)
                part = losses.sum() / samples
                run.scaler.scale(part).backward()
                run.weights.collect()
                figures[0] += part.detach()
                figures[1 + begin : 1 + begin + len(share)] = losses.detach()
            first += len(batch)
    run.team.add_up([figures, *run.weights.gradients])
    run.scaler.unscale_(run.optimizer)
    norm = torch.nn.utils.clip_grad_norm_(run.weights.flat, run.job.recipe.max_grad_norm or math.inf)
    return torch.cat([norm.to(run.device).view(1), figures])


def _update_when_finite(run: Run, step: Step) -> None:
    """The update, after a wait for the device."""
    gradient, loss, *_ = step.measured.tolist()
    rescaling = run.scaler.is_enabled() and run.scaler.get_scale() >= 1
    step.good = math.isfinite(loss) and (math.isfinite(gradient) or rescaling)
    if step.good:
        run.updating = True
        run.scaler.step(run.optimizer)
        run.scaler.update()
        run.weights.publish()
        run.averages.update()
        run.updating = False
    elif run.scaler.is_enabled():
        run.scaler.update()


def _update_on_device(run: Run, step: Step) -> None:
    """The update by an optimizer that reads from the device whether to go ahead, as it does for a gradient scaler."""
    run.updating = True
    run.optimizer.found_inf = (~step.measured[:2].isfinite()).any().float()  # type: ignore[attr-defined]
    run.optimizer.step()
    run.weights.publish()
    run.updating = False
