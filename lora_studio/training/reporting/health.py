"""What the studio notices about a run while it goes on: the guide's warning signs, each said once."""

from __future__ import annotations

from typing import Any

from lora_studio.planning.verdicts import Verdict, judge_run


class HealthMonitor:
    """Watches the step events of a run."""

    def __init__(self) -> None:
        self._events: list[dict[str, Any]] = []
        self._said: set[str] = set()
        self._held_out: dict[int, float] = {}

    def watch(self, event: dict[str, Any]) -> None:
        """Take one step event."""
        kept = ("step", "total", "epoch", "loss", "lr")
        self._events.append({"event": "step"} | {name: event[name] for name in kept})

    def add_validation_loss(self, step: int, loss: float) -> None:
        """Take one held-out loss, measured after `step` steps."""
        self._held_out[step] = loss

    def verdict(self) -> Verdict | None:
        """What there is to say about the run so far."""
        return judge_run([*self._events, *self._measured()])

    def hints(self) -> list[dict[str, str]]:
        """Warning signs that were not said before, as the values of a hint event."""
        found = self.verdict()
        if found is None or found.code in self._said:
            return []
        self._said.add(found.code)
        return [{"code": found.code, "message": found.title, "why": f"{found.evidence} {found.next_step}".strip()}]

    def state(self) -> dict[str, Any]:
        """What is needed to go on, as JSON."""
        return {"events": self._events, "said": sorted(self._said), "held_out": sorted(self._held_out.items())}

    def load_state(self, state: dict[str, Any]) -> None:
        """Take back what `state` gave."""
        self._events, self._said = list(state["events"]), set(state["said"])
        self._held_out = dict(state.get("held_out", []))

    def _measured(self) -> list[dict[str, Any]]:
        return [{"event": "validation", "step": step, "loss": loss} for step, loss in self._held_out.items()]
