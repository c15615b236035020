"""Settings that end a run before its last step, when its loss says so."""

from __future__ import annotations

from typing import Any

from lora_studio.settings.declare import Group, Settings, setting


def _patience(label: str, why: str) -> Any:
    """Declare after how many evaluations of the fixed-noise loss in a row a run ends."""
    return setting(
        0,
        label=label,
        group=Group.SCHEDULE,
        unit="evaluations",
        why=f"{why} The number is how many evaluations of the fixed-noise loss in a row have to say so; 0 never stops.",
        ge=0,
        le=1000,
    )


class StoppingSettings(Settings):
    """When a run stops by itself. It can be resumed; the same sign does not stop it again."""

    stop_at_plateau: int = _patience(
        "Stop at a plateau after", "Ends the run when its loss has levelled off: more steps would hardly add anything."
    )
    stop_at_rise: int = _patience(
        "Stop at a rise after",
        "Ends the run when its training or validation loss rises, and keeps the best checkpoint as the result: with a "
        "validation split that of the lowest validation loss, else the last one before the rise.",
    )
    stop_at_break: int = _patience(
        "Stop at a break after",
        "Ends the run when its loss has jumped and stayed up, or the LoRA makes the base worse: more steps do not "
        "repair it.",
    )
