"""What the scripts share that train runs which are known to be good or bad, for tests/data."""

import json
import shutil
from pathlib import Path
from typing import Any

from lora_studio.events import BaseLossEvent, Event, NanEvent, StartEvent, StepEvent, ValidationEvent


def curves_of(events: list[Event]) -> dict[str, Any]:
    """Return the figures that verdicts are judged by, rounded to 4 digits.

    Losses and relative losses by step, fixed-noise losses by step, and the base's own.
    """
    steps: dict[int, StepEvent | NanEvent] = {
        event.step: event for event in events if isinstance(event, StepEvent | NanEvent)
    }
    ordered = [steps[step] for step in sorted(steps)]
    start = next((event for event in events if isinstance(event, StartEvent)), None)
    fixed = [event for event in events if isinstance(event, ValidationEvent)]
    return {
        "total": start.total if start else 0,
        "steps_per_epoch": start.steps_per_epoch if start else 0,
        "losses": [digits(getattr(event, "loss", None)) for event in ordered],
        "relative_losses": [digits(getattr(event, "relative_loss", None)) for event in ordered],
        "split": fixed[-1].split if fixed else None,
        "fixed_losses": {event.step: digits(event.loss) for event in fixed},
        "fixed_base": digits(fixed[-1].base_loss) if fixed else None,
        "base_loss": next((digits(event.loss) for event in events if isinstance(event, BaseLossEvent)), None),
    }


def digits(value: float | None) -> float | None:
    """Round to 4 significant digits."""
    return None if value is None else float(f"{value:.4g}")


def claim_prediction_type(base: Path, target: Path, prediction: str) -> Path:
    """Copy a base in diffusers layout to TARGET, with a configuration that claims another prediction type."""
    shutil.copytree(base, target, dirs_exist_ok=True)
    file = target / "scheduler" / "scheduler_config.json"
    file.write_text(json.dumps(json.loads(file.read_text("utf-8")) | {"prediction_type": prediction}), "utf-8")
    return target
