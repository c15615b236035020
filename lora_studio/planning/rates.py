"""The learning rates that suit a recipe, and those to try after a run that diverged."""

from __future__ import annotations

from math import sqrt

from lora_studio.guide import OPTIMIZERS, RECIPE
from lora_studio.settings.choices import NetworkType, Scheduler
from lora_studio.settings.recipe import Recipe

# Learning rate times alpha of LyCORIS' own LoHa: example_configs/training_configs/kohya/loha_config.toml.
LOHA_STEP = 2e-4 * 4


def rate_factor(recipe: Recipe, setting: str) -> float:
    """Return the multiple of the guide's rate, which is for AdamW and a LoRA, that suits optimizer and network.

    A LoHa begins with factors of about 1, so that a step of size r changes each weight by about 0.1 alpha r, some
    twenty times more than in a LoRA: its rate is inversely proportional to alpha. With LoRA+ the geometric mean of the
    rates of down and up matrices stays that of a LoRA.
    """
    factor = OPTIMIZERS[recipe.optimizer.value].rate_factor
    factor /= sqrt(recipe.up_ratio("unet" if setting == "unet_lr" else "te1"))
    if recipe.network_type is NetworkType.LOHA:
        alpha = recipe.network_alpha * (sqrt(recipe.network_dim) if recipe.rank_stabilized else 1)
        factor *= LOHA_STEP / alpha / RECIPE["unet_lr"].value
    return factor


def usual_rate(setting: str, recipe: Recipe) -> float:
    """Return the rate that suits a recipe as the value of a setting: unet_lr, text_encoder_lr or text_encoder_lr2."""
    return float(f"{RECIPE[setting.removesuffix('2')].value * rate_factor(recipe, setting):.6g}")


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
        high = RECIPE[name.removesuffix("2")].high
        far_too_high = high is not None and rate / 2 > high * rate_factor(recipe, name)
        if far_too_high and not optimizer.learning_rate_free:
            rate = 2 * usual_rate(name, recipe)
        found[name] = float(f"{rate / 2:.6g}")
    return found


def lower_rates_advice(recipe: Recipe) -> str:
    """Return `lower_rates` as a sentence, like "Set unet_lr to 0.0005 and text_encoder_lr to 0.0001."."""
    rates = lower_rates(recipe)
    if not rates:
        return "Set lr_scheduler to cosine, with which the recipe's learning rates are used."
    return f"Set {' and '.join(f'{name} to {rate:g}' for name, rate in rates.items())}."
