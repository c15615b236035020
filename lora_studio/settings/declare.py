"""Declarations of settings: type, bounds, unit, default and reason of each, in one place.

The form in the browser, the job file, the command line's options, the defaults of the Python functions, the metadata
in the LoRA and the documentation are all derived from them. Values outside the bounds cannot work; values that are only
unwise are left to the guide's checks.
"""

from __future__ import annotations

import tomllib
from enum import StrEnum
from typing import Any, Self, cast

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from pydantic.config import JsonDict

from lora_studio import guide
from lora_studio.errors import ConfigError, InputError

MAX_STEPS = 10_000_000


class Group(StrEnum):
    """The sections of the form."""

    BASICS = "Basics"
    NETWORK = "Network"
    RATES = "Learning rates"
    OPTIMIZER = "Optimizer"
    SCHEDULE = "Schedule"
    OBJECTIVE = "Objective"
    DATA = "Data"
    CAPTIONS = "Captions"
    MEMORY = "Memory"
    SAMPLES = "Samples"
    LOGGING = "Logging"


def setting(
    default: Any = ...,
    *,
    label: str,
    group: Group,
    why: str = "",
    advice: str = "",
    unit: str = "",
    simple: bool = False,
    only_with: str = "",
    **bounds: Any,
) -> Any:
    """Declare a setting; with `advice`, default and reason come from `guide.RECIPE[advice]`.

    `simple` puts it into the first part of the form, which is always open. `only_with` hides it unless another setting
    is set (`NAME`: true, not 0, not empty) or has one of the given values (`NAME=VALUE|VALUE`). `bounds` are
    pydantic's (gt, ge, lt, le, min_length...).
    """
    if advice:
        known = guide.RECIPE[advice]
        default, why = (known.value if default is ... else default), why or known.why
    extra: JsonDict = {"label": label, "group": group.value, "unit": unit, "simple": simple, "advice": advice}
    extra["only_with"] = only_with
    return Field(default=default, description=why, json_schema_extra=extra, **bounds)


class Settings(BaseModel):
    """Base class of all configurations: unknown names are errors, values are checked on assignment."""

    model_config = ConfigDict(extra="forbid", validate_assignment=True, validate_default=True, allow_inf_nan=False)

    @classmethod
    def parse(cls, values: dict[str, Any]) -> Self:
        """Build from plain values; raise ConfigError with all problems at once."""
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            raise ConfigError.from_validation(error) from error

    @classmethod
    def defaults(cls) -> Self:
        """Return an object whose attributes are the fields' defaults; a required field has no attribute."""
        return cast("Self", cls.model_construct())

    def non_defaults(self) -> dict[str, Any]:
        """Return the fields that differ from their defaults, as plain values."""
        return self.model_dump(mode="json", exclude_defaults=True)


def setting_label(model: type[Settings], name: str) -> str:
    """Return a setting's label with its unit, like "Width (px)"; the label alone if it names the unit already."""
    extra = cast("dict[str, str]", model.model_fields[name].json_schema_extra)
    label, unit = extra["label"], extra["unit"]
    return f"{label} ({unit})" if unit and unit not in label.lower().split() else label


def setting_group(model: type[Settings], name: str) -> Group:
    """Return the section of the form that a setting is in."""
    return Group(cast("dict[str, str]", model.model_fields[name].json_schema_extra)["group"])


def split_commas(value: Any) -> Any:
    """Return the non-empty parts of a text between commas, and any other value unchanged."""
    return [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else value


CommaSeparated = BeforeValidator(split_commas)  # of a list which can also be given as one text


def split_lines(value: Any) -> Any:
    """Return the non-empty lines of a text, and any other value unchanged."""
    return [line.strip() for line in value.splitlines() if line.strip()] if isinstance(value, str) else value


def whole_steps(value: float) -> float:
    """Return a number of steps, or a share of the run below 1; raise ValueError for anything else."""
    if value > 1 and value != int(value):
        raise ValueError("should be whole steps, or a fraction of the run below 1")
    return value


def parse_toml(text: str, source: str) -> dict[str, Any]:
    """Return the plain values of a TOML text; raise InputError that names the line."""
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise InputError(f"{source} is not valid TOML: {error}.", "Correct that line.", code="toml") from error
