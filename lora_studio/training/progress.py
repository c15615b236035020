"""The progress of a run: all that changes from step to step except tensors."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from math import isfinite
from typing import Any

from pydantic import BaseModel, Field

from lora_studio.events import SampleMeasuresEvent
from lora_studio.planning.automatic_stop import AutomaticStop
from lora_studio.planning.loss_record import LossRecord
from lora_studio.planning.steps import StepCount
from lora_studio.training.reporting.base_losses import BaseLosses
from lora_studio.training.reporting.loss_by_image import ImageLosses
from lora_studio.training.reporting.loss_by_timestep import TimestepLosses


class ValidationLoss(BaseModel):
    """The fixed-noise loss after `step` optimizer steps and `epoch` finished epochs.

    `base_loss` is that of the base alone at the same `points` evaluation points; None in states of earlier versions.
    """

    step: int
    epoch: int
    loss: float
    base_loss: float | None = None
    points: int = 0


class Continuation(BaseModel):
    """Where a run took over from another one that it continues, and the schedule's factor on the rates there.

    `factor` is None until the first step after `step`.
    """

    step: int
    factor: float | None = None


class Progress(BaseModel):
    """The progress of a run. A resume state stores exactly this, and the tensors of the trainer.

    `step` counts the optimizer steps taken, `epochs_finished` the epochs whose LoRA, samples and resume state are
    saved. `started` is in seconds since 1970. `losses` has the training loss of each reported step, None where it was
    not finite; `relative_losses` the same relative to the base's loss, None also where that was unknown.
    `sample_measures` are those of the samples so far, in order of their steps. `automatic_stops` are the times that the
    run stopped by itself. `continued` is set in a run that continues another one for more epochs.
    """

    step: int = 0
    epochs_finished: int = 0
    started: float = Field(default_factory=time.time)
    losses: list[float | None] = Field(default_factory=list)
    relative_losses: list[float | None] = Field(default_factory=list)
    base_losses: BaseLosses | None = None
    validation_losses: list[ValidationLoss] = Field(default_factory=list)
    timestep_losses: TimestepLosses = Field(default_factory=TimestepLosses)
    image_losses: ImageLosses = Field(default_factory=ImageLosses)
    reported_hints: list[str] = Field(default_factory=list)
    automatic_stops: list[AutomaticStop] = Field(default_factory=list)
    sample_measures: list[SampleMeasuresEvent] = Field(default_factory=list)
    continued: Continuation | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return the progress as JSON values."""
        return self.model_dump()

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Progress:
        """Return the progress that `to_dict` stored. Raises ValueError if a value is missing or of another type."""
        return cls.model_validate(values)

    @property
    def last_loss(self) -> float | None:
        """The last finite training loss; None before the first."""
        return next((loss for loss in reversed(self.losses) if loss is not None), None)

    @property
    def validation_by_step(self) -> dict[int, float]:
        """The finite fixed-noise losses by step, in order; for a step evaluated twice, the last one."""
        found = {entry.step: entry.loss for entry in self.validation_losses if isfinite(entry.loss)}
        return dict(sorted(found.items()))

    def loss_record(self, total_steps: int, *, validates: bool, checkpoints: Mapping[int, str]) -> LossRecord:
        """Return the losses of the run, of `total_steps` steps; it `validates` if it has a validation split."""
        return LossRecord(
            losses=self.losses,
            relative=self.relative_losses,
            fixed=self.validation_by_step,
            base=self.validation_losses[-1].base_loss if self.validation_losses else None,
            validates=validates,
            checkpoints=checkpoints,
            total=total_steps,
        )

    def epoch(self, counts: StepCount) -> int:
        """Return the epoch of the last step, counted from 1."""
        return max(1, -(-self.step // counts.steps_per_epoch))

    def epochs_due(self, counts: StepCount) -> int:
        """Return the number of epochs that the steps so far complete; max_train_steps may cut the last one short."""
        return counts.epochs if self.step >= counts.total_steps else self.step // counts.steps_per_epoch

    def losses_of_epoch(self, counts: StepCount) -> Sequence[float]:
        """Return the finite training losses of the epoch that is not finished yet."""
        return [loss for loss in self.losses[self.epochs_finished * counts.steps_per_epoch :] if loss is not None]
