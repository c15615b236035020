"""The settings in which two recipes differ."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from lora_studio.settings.declare import setting_label
from lora_studio.settings.recipe import Recipe
from lora_studio.settings.values import format_value

MAX_VALUE_LENGTH = 24  # characters


@dataclass(frozen=True)
class SettingChange:
    """A setting with its value in a recipe and in the recipe before."""

    name: str
    before: Any
    value: Any

    @property
    def label(self) -> str:
        """The setting's label in the form."""
        return setting_label(Recipe, self.name)

    @property
    def before_text(self) -> str:
        """The value before, on one line and shortened."""
        return _shortened(format_value(self.before))

    @property
    def value_text(self) -> str:
        """The value, on one line and shortened."""
        return _shortened(format_value(self.value))


def setting_changes(recipe: Recipe, before: Recipe) -> list[SettingChange]:
    """Return the settings that differ, in the order of the form."""
    pairs = ((name, getattr(before, name), getattr(recipe, name)) for name in Recipe.model_fields)
    return [SettingChange(name, old, new) for name, old, new in pairs if old != new]


def _shortened(text: str) -> str:
    flat = " / ".join(text.splitlines())
    return flat if len(flat) <= MAX_VALUE_LENGTH else f"{flat[: MAX_VALUE_LENGTH - 2].rstrip()}…"
