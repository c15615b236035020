"""All losses of a run that verdicts are judged by: of its steps, and at fixed noise."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from math import isfinite

from lora_studio.events import Event, NanEvent, ResumeEvent, StartEvent, StepEvent, ValidationEvent
from lora_studio.planning.losses import Losses


@dataclass(frozen=True)
class LossRecord:
    """The losses of a run of `total` steps so far.

    `losses` has the training loss of each step, `relative` the same relative to the base's (empty if unknown); None
    where not finite. `fixed` has the fixed-noise losses by step, in order, `base` that of the base alone. They are of
    the validation split if `validates`, else of training images. `checkpoints` has the files that exist, by step.
    """

    losses: Losses
    relative: Losses = ()
    fixed: Mapping[int, float] = field(default_factory=dict)
    base: float | None = None
    validates: bool = True
    checkpoints: Mapping[int, str] = field(default_factory=dict)
    total: int | None = None

    @property
    def curve(self) -> Losses:
        """The relative losses if they are known, else the losses as they are."""
        if len(self.relative) != len(self.losses):
            return self.losses
        known = all(value is not None for value, loss in zip(self.relative, self.losses, strict=True) if loss)
        return self.relative if known else self.losses

    @property
    def length(self) -> int:
        """The number of steps of the whole run; those so far if it is unknown."""
        return max(self.total or 0, len(self.losses), 1)

    @property
    def share(self) -> float:
        """The share of the run that is done."""
        return len(self.losses) / self.length

    def up_to(self, step: int) -> LossRecord:
        """Return the record as it was after a step."""
        return replace(
            self,
            losses=self.losses[:step],
            relative=self.relative[:step],
            fixed={at: loss for at, loss in self.fixed.items() if at <= step},
            checkpoints={at: name for at, name in self.checkpoints.items() if at <= step},
        )

    @classmethod
    def from_events(cls, events: Iterable[Event], *, checkpoints: Mapping[int, str] | None = None) -> LossRecord:
        """Return the record of a run's events; a resume repeats the steps after its own.

        `checkpoints` are the files that still exist, by step: those that the events name may be deleted.
        """
        steps: dict[int, tuple[float | None, float | None]] = {}
        fixed: dict[int, ValidationEvent] = {}
        planned = None
        for event in events:
            match event:
                case StepEvent():
                    steps[event.step], planned = (event.loss, event.relative_loss), event.total
                case NanEvent():
                    steps[event.step] = None, None
                case StartEvent():
                    planned = event.total
                case ValidationEvent():
                    fixed[event.step] = event
                case ResumeEvent():
                    steps = {step: losses for step, losses in steps.items() if step <= event.step}
                    fixed = {step: found for step, found in fixed.items() if step <= event.step}
        ordered = [steps[step] for step in sorted(steps)]
        known = {step: event.loss for step, event in sorted(fixed.items()) if event.loss is not None}
        last = fixed[max(fixed)] if fixed else None
        return cls(
            losses=[loss for loss, _ in ordered],
            relative=[relative for _, relative in ordered],
            fixed={step: loss for step, loss in known.items() if isfinite(loss)},
            base=last.base_loss if last else None,
            validates=last is None or last.split == "validation",
            checkpoints=checkpoints or {},
            total=planned,
        )
