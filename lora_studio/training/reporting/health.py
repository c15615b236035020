"""Warning signs during a run: each verdict of the guide is reported once as a hint."""

from __future__ import annotations

from typing import Any

from lora_studio.planning.verdicts import Verdict, judge_run

KEPT_FIELDS = ("step", "total", "epoch", "loss", "lr")


class HealthMonitor:
    """Collects the step events and validation losses of a run, and judges them."""

    def __init__(self) -> None:
        self._events: list[dict[str, Any]] = []
        self._reported: set[str] = set()
        self._validation_losses: dict[int, float] = {}

    def add_step(self, event: dict[str, Any]) -> None:
        """Add a step event."""
        self._events.append({"event": "step"} | {name: event[name] for name in KEPT_FIELDS})

    def add_validation_loss(self, step: int, loss: float) -> None:
        """Add the validation loss after `step` steps."""
        self._validation_losses[step] = loss

    def verdict(self) -> Verdict | None:
        """Return the verdict on the run so far, or None if there is none yet."""
        validations = [
            {"event": "validation", "step": step, "loss": loss} for step, loss in self._validation_losses.items()
        ]
        return judge_run([*self._events, *validations])

    def new_hints(self) -> list[dict[str, str]]:
        """Return the verdict as the values of a hint event, unless its code was returned before."""
        found = self.verdict()
        if found is None or found.code in self._reported:
            return []
        self._reported.add(found.code)
        return [{"code": found.code, "message": found.title, "why": f"{found.evidence} {found.next_step}".strip()}]

    def state(self) -> dict[str, Any]:
        """Return what a resumed run needs, as JSON values."""
        return {
            "events": self._events,
            "said": sorted(self._reported),
            "held_out": sorted(self._validation_losses.items()),
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Restore what `state` returned."""
        self._events, self._reported = list(state["events"]), set(state["said"])
        self._validation_losses = dict(state.get("held_out", []))
