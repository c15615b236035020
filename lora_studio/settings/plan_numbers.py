"""The numbers that a plan is made for, with their bounds; None where a number is unknown or not limited."""

from __future__ import annotations

from pydantic import ValidationError

from lora_studio.errors import InputError, validation_message
from lora_studio.settings.declare import Group, Settings, setting


class PlanNumbers(Settings):
    """The numbers among the questions of the Plan tab and the arguments of `plan`."""

    images: int | None = setting(
        None, label="Images", group=Group.DATA, why="How many you expect to have.", ge=1, le=1_000_000
    )
    vram_gib: float | None = setting(
        None, label="VRAM", unit="GiB", group=Group.MEMORY, why="Empty means unknown.", gt=0, le=1024
    )
    hours: float | None = setting(
        None,
        label="Time budget",
        unit="hours",
        group=Group.SCHEDULE,
        why="Optional. The guide suggests 1 to 3 while you experiment.",
        gt=0,
        le=10_000,
    )


def check_plan_number(name: str, value: float | None) -> None:
    """Raise InputError with the setting, its value and its bound if `value` is out of the bounds of `name`."""
    try:
        PlanNumbers.model_validate({name: value})
    except ValidationError as error:
        [problem] = error.errors()
        raise InputError(
            f"{name} is {value:,}. It {validation_message(problem)}.",
            "Give a number within these bounds, or leave it out.",
            code="no_images" if name == "images" and value is not None and value < 1 else name,
        ) from error
