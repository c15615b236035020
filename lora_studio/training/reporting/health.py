"""Warning signs during a run: each verdict of the guide is reported once as a hint."""

from __future__ import annotations

from math import isfinite
from typing import Any

from lora_studio.events import HintEvent, StepEvent
from lora_studio.planning.verdicts import Verdict, judge_losses, read_losses

KEPT_FIELDS = {"step", "total", "epoch", "loss", "lr"}  # of a step event, in the resume state


class HealthMonitor:
    """Collects the step events and validation losses of a run, and judges them."""

    def __init__(self) -> None:
        self._steps: list[StepEvent] = []
        self._reported: set[str] = set()
        self._validation_losses: dict[int, float] = {}

    def add_step(self, event: StepEvent) -> None:
        """Add a step event."""
        self._steps.append(event)

    def add_validation_loss(self, step: int, loss: float) -> None:
        """Add the validation loss after `step` steps."""
        self._validation_losses[step] = loss

    def verdict(self) -> Verdict | None:
        """Return the verdict on the run so far, or None if there is none yet."""
        losses = read_losses(self._steps)
        running = bool(self._steps) and len(losses) < self._steps[-1].total
        validation = {step: loss for step, loss in sorted(self._validation_losses.items()) if isfinite(loss)}
        return judge_losses(losses, running=running, validation=validation)

    def new_hints(self) -> list[HintEvent]:
        """Return the verdict as a hint, unless its code was returned before."""
        found = self.verdict()
        if found is None or found.code in self._reported:
            return []
        self._reported.add(found.code)
        return [HintEvent(code=found.code, message=found.title, why=f"{found.evidence} {found.next_step}".strip())]

    def state(self) -> dict[str, Any]:
        """Return what a resumed run needs, as JSON values."""
        return {
            "events": [{"event": "step"} | event.model_dump(include=KEPT_FIELDS) for event in self._steps],
            "said": sorted(self._reported),
            "held_out": sorted(self._validation_losses.items()),
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Restore what `state` returned."""
        steps = ({name: event[name] for name in KEPT_FIELDS} for event in state["events"])
        self._steps, self._reported = [StepEvent.model_validate(step) for step in steps], set(state["said"])
        self._validation_losses = dict(state.get("held_out", []))
