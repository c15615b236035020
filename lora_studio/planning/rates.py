"""The learning rates to try after a run that diverged."""

from __future__ import annotations

from lora_studio.guide import OPTIMIZERS, RECIPE
from lora_studio.settings.choices import Scheduler
from lora_studio.settings.recipe import Recipe


def lower_rates(recipe: Recipe) -> dict[str, float]:
    """Return the rates to try instead of those with which a run diverged: half of each, or the guide's own.

    The guide's is meant where even half is above the guide's range; an optimizer that finds its rate itself gets half
    of its factor. Empty if the schedule ignores the recipe's rates.
    """
    if recipe.lr_scheduler is Scheduler.ADAFACTOR:
        return {}
    optimizer = OPTIMIZERS[recipe.optimizer.value]
    found = {}
    for name, rate in recipe.named_rates.items():
        advice = RECIPE[name.removesuffix("2")]
        far_too_high = advice.high is not None and rate / 2 > advice.high * optimizer.rate_factor
        if far_too_high and not optimizer.learning_rate_free:
            rate = 2 * advice.value * optimizer.rate_factor
        found[name] = float(f"{rate / 2:.6g}")
    return found


def lower_rates_advice(recipe: Recipe) -> str:
    """Return `lower_rates` as a sentence, like "Set unet_lr to 0.0005 and text_encoder_lr to 0.0001."."""
    rates = lower_rates(recipe)
    if not rates:
        return "Set lr_scheduler to cosine, with which the recipe's learning rates are used."
    return f"Set {' and '.join(f'{name} to {rate:g}' for name, rate in rates.items())}."
