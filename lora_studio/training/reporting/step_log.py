"""The step log: one event per optimizer step, in order, without waiting for the GPU after each step."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import psutil
import torch
from torch import Tensor

from lora_studio.events import NanEvent, Report, StepEvent
from lora_studio.training.reporting.health import HealthMonitor
from lora_studio.training.reporting.loss_by_timestep import TimestepLosses

FLUSH_SECONDS = 0.25  # between two reports, where the CPU runs ahead of the GPU


@dataclass
class StepResult:
    """What one optimizer step used and measured.

    `rates` are the learning rates by parameter group, `timesteps` those of the samples. `measured` stays on the device
    until `read`: the gradient norm, the mean loss, then the loss of each sample. `valid` is False if the step was
    skipped because they were not finite, None if the CPU does not know yet; `losses` are those of the samples, once
    read.
    """

    rates: dict[str, float]
    timesteps: list[int]
    measured: Tensor
    valid: bool | None = None
    losses: list[float] = field(default_factory=list)

    def read(self) -> float | None:
        """Copy the measurements from the device; return the mean loss, or None if the step was skipped."""
        gradient_norm, loss, *self.losses = self.measured.tolist()
        if self.valid is None:
            self.valid = math.isfinite(loss) and math.isfinite(gradient_norm)
        return loss if self.valid else None


@dataclass
class StepLog:
    """Collects step results and reports them as events.

    `on_loss` is called with the loss of each step, or None if the step was skipped. With `deferred`, several steps are
    reported together; without, each step is due for a report at once.
    """

    report: Report
    total_steps: int
    device: torch.device
    health: HealthMonitor
    timestep_losses: TimestepLosses
    on_loss: Callable[[float | None], None]
    deferred: bool
    started_at: float = field(default_factory=time.monotonic)
    flushed_at: float = 0.0
    step_count: int = 0
    pending: list[tuple[int, int, StepResult]] = field(default_factory=list)

    def add(self, step: int, epoch: int, result: StepResult) -> None:
        """Add the result of a step; step and epoch are counted from 1."""
        self.pending.append((step, epoch, result))
        self.step_count += 1

    @property
    def due(self) -> bool:
        """True if the pending steps are to be reported now."""
        return not self.deferred or time.monotonic() - self.flushed_at >= FLUSH_SECONDS

    def start_clock(self) -> None:
        """Start timing the next step, so that work since the last report does not count."""
        if not self.pending:
            self.flushed_at = time.monotonic()

    def flush(self) -> None:
        """Report all pending steps; the time since the last report is divided equally among them."""
        now = time.monotonic()
        seconds = (now - self.flushed_at) / max(1, len(self.pending))
        pace = (now - self.started_at) / max(1, self.step_count)
        memory = memory_gib(self.device)
        while self.pending:
            step, epoch, result = self.pending.pop(0)
            loss = result.read()
            seconds_left = round(pace * (self.total_steps - step), 1)
            if loss is None:
                self.report(NanEvent(step=step, total=self.total_steps, epoch=epoch, seconds_left=seconds_left))
                self.on_loss(None)
                continue
            self.timestep_losses.add(result.timesteps, result.losses)
            self.on_loss(loss)
            event = StepEvent(
                step=step,
                total=self.total_steps,
                epoch=epoch,
                seconds_left=seconds_left,
                loss=loss,
                lr=result.rates.get("unet", 0.0),
                text_encoder_lr=result.rates.get("text_encoder", 0.0),
                seconds=round(seconds, 4),
                memory_gib=memory,
            )
            self.report(event)
            self.health.add_step(event)
        self.flushed_at = now


def memory_gib(device: torch.device) -> float:
    """Return the peak memory that tensors took on a GPU so far, else this process's memory now; in GiB."""
    used = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else psutil.Process().memory_info().rss
    return round(used / 2**30, 2)
