"""The recipe: every setting of a training that can be shared between projects."""

from __future__ import annotations

import tomllib
from typing import Any, Self

from pydantic import model_validator

from lora_studio.errors import InputError
from lora_studio.settings.choices import MaskedLoss, Scheduler
from lora_studio.settings.sections.captions import CaptionSettings
from lora_studio.settings.sections.data import DataSettings
from lora_studio.settings.sections.memory import MemorySettings
from lora_studio.settings.sections.network import NetworkSettings, network_problems
from lora_studio.settings.sections.objective import ObjectiveSettings
from lora_studio.settings.sections.optimization import OptimizationSettings
from lora_studio.settings.sections.rates import RateSettings, rate_problems
from lora_studio.settings.sections.samples import SampleSettings
from lora_studio.settings.sections.stopping import StoppingSettings
from lora_studio.settings.sections.tracking import TrackingSettings


# pydantic puts the fields of the last base first: the network comes first in forms and files.
class Recipe(
    TrackingSettings,
    SampleSettings,
    MemorySettings,
    CaptionSettings,
    DataSettings,
    ObjectiveSettings,
    StoppingSettings,
    OptimizationSettings,
    RateSettings,
    NetworkSettings,
):
    """What to train and how: all settings that can be shared between projects. Never holds a path."""

    @model_validator(mode="after")
    def _valid_combinations(self) -> Self:
        problems = [*network_problems(self), *rate_problems(self, self.network_type)]
        if self.min_timestep >= self.max_timestep:
            problems.append(
                f"min_timestep {self.min_timestep} is not below max_timestep {self.max_timestep}: no timestep is left. "
                "Set 0 and 1000 for all."
            )
        if self.adaptive_noise_scale and not self.noise_offset:
            problems.append(
                f"adaptive_noise_scale is {self.adaptive_noise_scale:g}, but noise_offset, to which it adds, is 0. Set "
                "noise_offset to for example 0.05, or adaptive_noise_scale to 0."
            )
        if self.unmasked_weight and self.masked_loss is MaskedLoss.OFF:
            problems.append(
                f"unmasked_weight is {self.unmasked_weight:g}, but masked_loss is off. Set masked_loss to files or "
                "alpha, or unmasked_weight to 0."
            )
        if self.lr_scheduler_type and self.lr_scheduler is Scheduler.ADAFACTOR:
            problems.append(
                f"lr_scheduler_type is {self.lr_scheduler_type}, but lr_scheduler is adafactor, with which Adafactor "
                "sets its own rates. Set lr_scheduler to constant, or leave lr_scheduler_type empty."
            )
        if self.lr_scheduler_args and not self.lr_scheduler_type:
            problems.append(
                f"lr_scheduler_args is {' '.join(self.lr_scheduler_args)}, but lr_scheduler_type is empty. Name the "
                "class that takes them, or leave both empty."
            )
        if self.min_bucket_reso > self.max_bucket_reso:
            problems.append(
                f"min_bucket_reso {self.min_bucket_reso} is above max_bucket_reso {self.max_bucket_reso}. Swap them."
            )
        if self.enable_bucket and self.resolution % self.bucket_reso_steps and not self.bucket_no_upscale:
            multiple = max(1, round(self.resolution / self.bucket_reso_steps)) * self.bucket_reso_steps
            problems.append(
                f"resolution {self.resolution} is not a multiple of bucket_reso_steps {self.bucket_reso_steps}. "
                f"Use {multiple}."
            )
        if problems:
            raise ValueError(" ".join(problems))
        return self


def apply_overrides(values: dict[str, Any], overrides: list[str]) -> dict[str, Any]:
    """Return plain recipe values with `KEY=VALUE` texts (as given by `--set`) applied.

    A value is parsed as TOML (numbers, true, lists), else taken as plain text; an empty value means None.
    Raises InputError for an unknown key or a text without `=`.
    """
    result = dict(values)
    for text in overrides:
        key, separator, value = text.partition("=")
        key = key.strip()
        if not separator or key not in Recipe.model_fields:
            known = ", ".join(sorted(Recipe.model_fields))
            raise InputError(f"--set {text!r}: no such setting.", f"Write KEY=VALUE with one of: {known}.", code="set")
        result[key] = _parse_value(value.strip())
    return result


def _parse_value(text: str) -> Any:
    if not text:
        return None
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text
