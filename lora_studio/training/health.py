"""What the studio notices about a run while it goes on: the guide's warning signs, each said once."""

from __future__ import annotations

from typing import Any

from lora_studio.planning.verdicts import Verdict, verdict


class Health:
    """Watches the step events of a run."""

    def __init__(self) -> None:
        self._events: list[dict[str, Any]] = []
        self._said: set[str] = set()

    def watch(self, event: dict[str, Any]) -> None:
        """Take one step event."""
        kept = ("step", "total", "epoch", "loss", "lr")
        self._events.append({"event": "step"} | {name: event[name] for name in kept})

    def verdict(self) -> Verdict | None:
        """What there is to say about the run so far."""
        return verdict(self._events)

    def hints(self) -> list[dict[str, str]]:
        """Warning signs that were not said before, as the values of a hint event."""
        found = self.verdict()
        if found is None or found.code in self._said:
            return []
        self._said.add(found.code)
        return [{"code": found.code, "message": found.title, "why": f"{found.evidence} {found.next_step}".strip()}]

    def state(self) -> dict[str, Any]:
        """What is needed to go on, as JSON."""
        return {"events": self._events, "said": sorted(self._said)}

    def load_state(self, state: dict[str, Any]) -> None:
        """Take back what `state` gave."""
        self._events, self._said = list(state["events"]), set(state["said"])
