"""The one setting to change in the next run, after the verdict of a test."""

from __future__ import annotations

from typing import Any

from lora_studio.planning.verdicts import Verdict
from lora_studio.settings.choices import Scheduler
from lora_studio.settings.recipe import Recipe

LONGER, SHORTER = 3 / 2, 2 / 3  # of the steps: enough to be seen beyond the noise, and undone by each other
TEXT_RATES = ("text_encoder_lr", "text_encoder_lr2")


def next_change(verdict: Verdict, recipe: Recipe) -> dict[str, Any]:
    """Return the changed settings of a run whose LoRA got this verdict; empty if the remedy is not a setting.

    The learning rates of the two text encoders count as one setting.
    """
    match verdict.code:
        case "undertrained":
            return _scaled_length(recipe, LONGER)
        case "overtrained":
            return _scaled_length(recipe, SHORTER)
        case "leaks":
            return _halved_text_rates(recipe)
    return {}


def _scaled_length(recipe: Recipe, factor: float) -> dict[str, Any]:
    """Return the epochs, or the steps of a run that ends at a step, times a factor; empty if one is left as it is."""
    name = "epochs" if recipe.max_train_steps is None else "max_train_steps"
    length = getattr(recipe, name)
    scaled = max(1, round(length * factor))
    if scaled == length and factor > 1:
        scaled += 1
    return {} if scaled == length else {name: scaled}


def _halved_text_rates(recipe: Recipe) -> dict[str, Any]:
    """Return half of the text encoders' rates; empty if they are not trained or the schedule ignores the rates."""
    if recipe.lr_scheduler is Scheduler.ADAFACTOR:
        return {}
    rates = {name: rate for name in TEXT_RATES if (rate := getattr(recipe, name))}
    return {name: float(f"{rate / 2:.6g}") for name, rate in rates.items()}
