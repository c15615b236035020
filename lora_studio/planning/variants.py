"""Several variants of a recipe: all combinations of the values of one or two settings."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

from lora_studio.errors import ConfigError, InputError
from lora_studio.settings.job_specs import TrainJob
from lora_studio.settings.recipe import Recipe
from lora_studio.settings.values import format_value

MAX_AXES = 2
MAX_VARIANTS = 24
MAX_OWN_NAME, MAX_NAME = 40, 80  # characters of a run's name, without and with what differs
SHORT_NAMES = {
    "unet_lr": "lr",
    "text_encoder_lr": "telr",
    "network_dim": "dim",
    "network_alpha": "alpha",
    "min_snr_gamma": "snr",
    "batch_size": "batch",
}


@dataclass(frozen=True)
class Axis:
    """A setting, and its values; texts are read as in a form."""

    setting: str
    values: Sequence[Any]

    @classmethod
    def of(cls, setting: str, text: str) -> Axis:
        """Return the axis of values that are separated by commas; each counts once."""
        return cls(setting, list(dict.fromkeys(value for part in text.split(",") if (value := part.strip()))))

    @classmethod
    def parse(cls, text: str) -> Axis:
        """Return the axis of a text like `unet_lr=1e-4,2e-4`; raise InputError without `=`."""
        setting, separator, values = text.partition("=")
        if not separator:
            raise InputError(
                f"--vary is {text!r}, expected a setting and its values.",
                "Use for example unet_lr=1e-4,2e-4.",
                code="vary",
            )
        return cls.of(setting.strip(), values)


@dataclass(frozen=True)
class Variant:
    """One combination: its recipe, and a name of its own, like `lr1e-4-dim16`."""

    name: str
    recipe: Recipe


def variants(recipe: Recipe, axes: Sequence[Axis]) -> list[Variant]:
    """Return the variants of a recipe, the last setting changing fastest.

    Raises ConfigError for no values, a setting that occurs twice, too many variants, or a value that cannot work, with
    the variant's name.
    """
    _check(axes)
    found: list[Variant] = []
    problems: list[str] = []
    for values in product(*(axis.values for axis in axes)):
        changes = {axis.setting: value for axis, value in zip(axes, values, strict=True)}
        try:
            changed = Recipe.parse(recipe.model_dump() | changes)
        except ConfigError as error:
            problems += error.problems
            continue
        names = [_part(setting, getattr(changed, setting)) for setting in changes]
        found.append(Variant("-".join(names), changed))
    if problems:
        raise ConfigError(list(dict.fromkeys(problems)))
    return found


def variant_jobs(job: TrainJob, axes: Sequence[Axis]) -> list[TrainJob]:
    """Return a job per variant of a job's recipe, with the variant in its name. Raises ConfigError like `variants`."""
    return [
        TrainJob.parse(
            {
                **dict(job),
                "name": f"{job.name[:MAX_OWN_NAME]}-{variant.name}"[:MAX_NAME].rstrip(" .-"),
                "recipe": variant.recipe,
            }
        )
        for variant in variants(job.recipe, axes)
    ]


def _check(axes: Sequence[Axis]) -> None:
    problems = [f"{axis.setting} has no values. Use for example 16, 32" for axis in axes if not axis.values]
    names = [axis.setting for axis in axes]
    if not names:
        problems.append("No setting is selected. Select one or two, each with values separated by commas")
    if len(names) > MAX_AXES or len(set(names)) < len(names):
        problems.append(f"The settings are {', '.join(names)}. Select at most {MAX_AXES} different ones")
    problems += [f"{name} is not a setting of the recipe" for name in names if name not in Recipe.model_fields]
    count = 1
    for axis in axes:
        count *= len(axis.values)
    if count > MAX_VARIANTS:
        problems.append(f"These are {count} runs. Use at most {MAX_VARIANTS}")
    if problems:
        raise ConfigError([f"{problem}." for problem in problems])


def _part(setting: str, value: object) -> str:
    """Return a setting and its value as part of a file name: `dim16`, `optimizerAdamW`."""
    text = re.sub(r"[^\w.\-]+", "", format_value(value))
    return f"{SHORT_NAMES.get(setting, setting)}{text}"
