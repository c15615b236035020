"""The step log: one event per optimizer step, in order, without waiting for the GPU after each step."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from lora_studio.device import peak_rss_bytes
from lora_studio.events import NanEvent, Report, StepEvent
from lora_studio.planning.steps import StepCount
from lora_studio.training.progress import Progress

FLUSH_SECONDS = 0.25  # between two reports, where the CPU runs ahead of the GPU


@dataclass
class StepResult:
    """What one optimizer step used and measured.

    `rates` are the learning rates by parameter group, `images` and `timesteps` those of the samples. `measured` stays
    on the device until `read`: the gradient norm, the mean loss, then the loss of each sample. `valid` is False if the
    step was skipped because they were not finite, None if the CPU does not know yet. Once read, `gradient_norm` is the
    norm before clipping, and `losses` are those of the samples. `weight_norms` are the mean and maximum of the norms of
    the layers' weight deltas [2], on the device; None where they were not measured. `scaled_layers` is the number that
    max-norm regularisation scaled down; None without it. `batch_pixels` are those of the largest batch.
    """

    rates: dict[str, float]
    images: list[str | None]
    timesteps: list[int]
    measured: Tensor
    valid: bool | None = None
    gradient_norm: float = math.nan
    losses: list[float] = field(default_factory=list)
    weight_norms: Tensor | None = None
    scaled_layers: Tensor | None = None
    batch_pixels: int | None = None

    def read(self) -> float | None:
        """Copy the measurements from the device; return the mean loss, or None if the step was skipped."""
        self.gradient_norm, loss, *self.losses = self.measured.tolist()
        if self.valid is None:
            self.valid = math.isfinite(loss) and math.isfinite(self.gradient_norm)
        return loss if self.valid else None

    def is_finite(self, *, rescaling: bool) -> bool:
        """Return True if loss and gradient norm are finite, after waiting for the device, and set `valid` accordingly.

        With `rescaling` an infinite gradient is valid: the gradient scaler skips the step and lowers its scale.
        """
        gradient_norm, loss, *_ = self.measured.tolist()
        self.valid = math.isfinite(loss) and (math.isfinite(gradient_norm) or rescaling)
        return self.valid


@dataclass
class StepLog:
    """Collects step results, records their losses in the progress of the run, and reports them as events.

    `on_nan` is called after each step that was skipped, `on_seconds` with the time of every step.
    `prior_loss_weight` is the loss weight of regularisation images. With `deferred`, several steps are reported
    together; without, each step is due for a report at once.
    """

    report: Report
    progress: Progress
    counts: StepCount
    device: torch.device
    on_nan: Callable[[], None]
    deferred: bool
    on_seconds: Callable[[float], None] = lambda seconds: None
    prior_loss_weight: float = 1.0
    started_at: float = field(default_factory=time.monotonic)
    flushed_at: float = 0.0
    step_count: int = 0
    pending: list[tuple[int, int, StepResult]] = field(default_factory=list)

    def add(self, result: StepResult) -> None:
        """Add the result of the last step."""
        self.pending.append((self.progress.step, self.progress.epoch(self.counts), result))
        self.step_count += 1

    @property
    def due(self) -> bool:
        """True if the pending steps are to be reported now."""
        return not self.deferred or time.monotonic() - self.flushed_at >= FLUSH_SECONDS

    def start_clock(self) -> None:
        """Start timing the next step, so that work since the last report does not count.

        The peak of the GPU's memory counts from the first step on: loading and encoding are left out.
        """
        if not self.step_count and self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        if not self.pending:
            self.flushed_at = time.monotonic()

    def flush(self) -> None:
        """Report all pending steps; the time since the last report is divided equally among them."""
        now = time.monotonic()
        seconds = (now - self.flushed_at) / max(1, len(self.pending))
        pace = (now - self.started_at) / max(1, self.step_count)
        memory = memory_gib(self.device)
        total = self.counts.total_steps
        while self.pending:
            step, epoch, result = self.pending.pop(0)
            loss = result.read()
            relative = None if loss is None else self._relative_loss(result)
            self.progress.losses.append(loss)
            self.progress.relative_losses.append(relative)
            self.on_seconds(seconds)
            seconds_left = round(pace * (total - step), 1)
            if loss is None:
                self.report(NanEvent(step=step, total=total, epoch=epoch, seconds_left=seconds_left))
                self.on_nan()
                continue
            self.progress.timestep_losses.add(result.timesteps, result.losses)
            bins = self.progress.timestep_losses.bins_of(result.timesteps)
            base = self.progress.base_losses
            expected = None if base is None else base.expected(result.timesteps).tolist()
            self.progress.image_losses.add(result.images, bins, result.losses, expected)
            self.report(
                StepEvent(
                    step=step,
                    total=total,
                    epoch=epoch,
                    seconds_left=seconds_left,
                    loss=loss,
                    **({} if relative is None else {"relative_loss": relative}),
                    lr=result.rates.get("unet", 0.0),
                    text_encoder_lr=result.rates.get("text_encoder", 0.0),
                    seconds=round(seconds, 4),
                    memory_gib=memory,
                    batch_pixels=result.batch_pixels,
                    gradient_norm=result.gradient_norm if math.isfinite(result.gradient_norm) else None,
                    **_second_rate(result),
                    **_norm_fields(result),
                )
            )
        self.flushed_at = now

    def _relative_loss(self, result: StepResult) -> float | None:
        """Return the mean of the samples' losses relative to the base's; None if that is unknown."""
        base = self.progress.base_losses
        if base is None:
            return None
        factors = [self.prior_loss_weight if image is None else 1.0 for image in result.images]
        return base.relative(result.timesteps, result.losses, factors)


def memory_gib(device: torch.device) -> float:
    """Return the peak memory that tensors took on a GPU so far, else that of this process's main memory; in GiB."""
    used = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else peak_rss_bytes()
    return round(used / 2**30, 2)


def _second_rate(result: StepResult) -> dict[str, float]:
    """Return the field of a step event about the second text encoder; none unless it has a rate of its own."""
    rate = result.rates.get("text_encoder_2")
    return {} if rate is None else {"text_encoder_lr2": rate}


def _norm_fields(result: StepResult) -> dict[str, float]:
    """Return the fields of a step event about the weight norms and max-norm regularisation that it has."""
    if result.weight_norms is None:
        return {}
    mean, largest = result.weight_norms.tolist()
    scaled = {} if result.scaled_layers is None else {"scaled_layers": int(result.scaled_layers)}
    return scaled | {"mean_weight_norm": mean, "max_weight_norm": largest}
