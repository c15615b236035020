"""What the steps of a run measured, told in order, without a wait for the GPU after each."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import psutil
import torch

from lora_studio.training.step import Step
from lora_studio.workspace.job_folder import Report

if TYPE_CHECKING:
    from lora_studio.training.loop import Run

TELL_SECONDS = 0.25  # so long may a step that a GPU took stay untold


@dataclass
class Journal:
    """Collects steps and reports them, one event each; `on_bad` is called for a step without a finite loss.

    Where a step waits for the device anyway, each is due at once.
    """

    run: Run
    report: Report
    on_bad: Callable[[Run], None]
    begun: float = field(default_factory=time.monotonic)
    told_at: float = 0.0
    taken: int = 0
    untold: list[tuple[int, int, Step]] = field(default_factory=list)

    def add(self, step: Step) -> None:
        """Take the step that was just counted."""
        self.untold.append((self.run.step, self.run.epoch, step))
        self.taken += 1

    @property
    def due(self) -> bool:
        """Whether it is time to tell."""
        return not self.run.decides_on_device or time.monotonic() - self.told_at >= TELL_SECONDS

    def start_clock(self) -> None:
        """The next step begins now: what was done since the last one was told is not its time."""
        if not self.untold:
            self.told_at = time.monotonic()

    def tell(self) -> None:
        """Report all steps that were not told; each has the same share of the time that they took together."""
        run, total = self.run, self.run.counts.total_steps
        now = time.monotonic()
        seconds = (now - self.told_at) / max(1, len(self.untold))
        pace = (now - self.begun) / max(1, self.taken)
        memory = memory_gib(run.device)
        while self.untold:
            number, epoch, step = self.untold.pop(0)
            loss = step.read()
            left = pace * (total - number)
            position = {"step": number, "total": total, "epoch": epoch, "seconds_left": round(left, 1)}
            if loss is None:
                self.report("nan", **position)
                self.on_bad(run)
                continue
            run.timestep_losses.add(step.timesteps, step.losses)
            run.nan_streak = 0
            run.last_loss = loss
            run.epoch_losses.append(loss)
            event = {
                **position,
                "loss": loss,
                "lr": step.rates.get("unet", 0.0),
                "text_encoder_lr": step.rates.get("text_encoder", 0.0),
                "seconds": round(seconds, 4),
                "memory_gib": memory,
            }
            self.report("step", **event)
            run.health.watch(event)
        self.told_at = now


def memory_gib(device: torch.device) -> float:
    """The most memory that training took on a GPU so far, else this process's; in GiB."""
    used = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else psutil.Process().memory_info().rss
    return round(used / 2**30, 2)
