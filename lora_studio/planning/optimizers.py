"""Checks of optimizer, learning rates and schedule against each other: errors and warnings."""

from __future__ import annotations

from collections.abc import Iterator

from lora_studio.guide import OPTIMIZERS, RECIPE
from lora_studio.planning.cautions import Caution
from lora_studio.planning.rates import usual_rate
from lora_studio.settings.choices import Optimizer, Scheduler
from lora_studio.settings.recipe import Recipe
from lora_studio.settings.sections.rates import BLOCK_WEIGHTS, LORAPLUS_RATIOS

MIN_RATE_FACTOR = 0.1  # of the rate that a learning-rate-free optimizer finds; with 1e-4 of it nothing is learned
CONSTANT_SCHEDULES = (Scheduler.CONSTANT, Scheduler.CONSTANT_WITH_WARMUP)
MAX_RATE_RATIO = 2.0  # warn if a rate is more than this multiple of the optimizer's usual one


def optimizer_errors(recipe: Recipe) -> list[str]:
    """Return a sentence with the remedy for each setting that cannot work with the recipe's optimizer."""
    name, advice = recipe.optimizer.value, OPTIMIZERS[recipe.optimizer.value]
    used = recipe.named_rates
    found = []
    if recipe.optimizer_type:
        if recipe.lr_scheduler is Scheduler.ADAFACTOR:
            found.append(
                f"lr_scheduler is adafactor, which {recipe.optimizer_type} does not have. Set lr_scheduler to "
                "constant, or leave optimizer_type empty."
            )
        return found
    if advice.single_rate and len(set(used.values())) > 1:
        rates = " and ".join(f"{setting} {rate:g}" for setting, rate in used.items())
        found.append(f"{rates} differ, and {name} takes one rate only. Set both to 1, or text_encoder_lr to 0.")
    if advice.single_rate and (factors := _rate_factors(recipe)):
        found.append(
            f"{factors[0]}, but {name} takes one rate only. Leave it empty, or use an optimizer like AdamW8bit."
        )
    if advice.learning_rate_free:
        found += [
            f"{setting} is {rate:g}, which is far too low for {name}: it finds the rate itself. Set {setting} to 1."
            for setting, rate in used.items()
            if rate < MIN_RATE_FACTOR
        ]
    if recipe.lr_scheduler is Scheduler.ADAFACTOR and (factors := _rate_factors(recipe)):
        found.append(
            f"{factors[0]}, but with lr_scheduler adafactor Adafactor sets its own rates. Leave it empty, or set "
            "lr_scheduler to cosine."
        )
    if recipe.lr_scheduler is Scheduler.ADAFACTOR and recipe.optimizer is not Optimizer.ADAFACTOR:
        found.append(
            f"lr_scheduler is adafactor, which {name} does not have. Set optimizer to Adafactor, or lr_scheduler to "
            f"{'constant' if advice.schedule_free else 'cosine'}."
        )
    return found


def optimizer_cautions(recipe: Recipe) -> Iterator[Caution]:
    """Yield warnings about the recipe's optimizer, its learning rates and its schedule; none about a class by name."""
    if recipe.optimizer_type:
        return
    name, advice = recipe.optimizer.value, OPTIMIZERS[recipe.optimizer.value]
    used = recipe.named_rates
    if advice.learning_rate_free and not optimizer_errors(recipe) and max(used.values()) != 1:
        yield Caution(
            code="prodigy_rate",
            message=f"{name}'s rate is {max(used.values()):g}; 1 leaves it to {name}.",
            why=advice.why,
        )
    if recipe.lr_scheduler is Scheduler.ADAFACTOR and recipe.optimizer is Optimizer.ADAFACTOR:
        yield Caution(
            code="adafactor_rates",
            message="Adafactor's own schedule ignores unet_lr and text_encoder_lr, except that 0 freezes a model.",
            why="It takes its rate from the number of steps and the size of the weights (Shazeer and Stern 2018).",
        )
    if recipe.optimizer in (Optimizer.LION, Optimizer.LION8BIT):
        yield from _scaled_rates(recipe, name)
    if not advice.learning_rate_free:
        yield from _raised_rates(recipe, advice.rate_factor)
    if advice.schedule_free and recipe.lr_scheduler not in CONSTANT_SCHEDULES:
        yield Caution(
            code="schedule_free",
            message=f"{name} needs no schedule: set lr_scheduler to constant.",
            why="It averages its weights instead of lowering the rate; with both it learns less.",
        )
    if advice.schedule_free and recipe.ema_decay:
        yield Caution(
            code="averaged_twice",
            message=f"ema_decay is {recipe.ema_decay:g}, but {name} averages its weights already. Set it to 0.",
            why="The saved LoRA would be an EMA of the training weights, not the optimizer's own average.",
        )
    if recipe.optimizer is Optimizer.PRODIGY_PLUS and recipe.max_grad_norm:
        yield Caution(
            code="prodigy_clipping",
            message=f"max_grad_norm is {recipe.max_grad_norm:g}; the authors of {name} recommend 0.",
            why="It derives its rate from the size of the gradients, and limits large steps itself.",
        )
    if recipe.lr_scheduler is Scheduler.CONSTANT and recipe.lr_warmup_steps:
        yield Caution(
            code="warmup_ignored",
            message="The constant schedule ignores lr_warmup_steps. Set lr_scheduler to constant_with_warmup.",
            why="As in other trainers, constant means the same rate from the first step.",
        )


def _rate_factors(recipe: Recipe) -> list[str]:
    """Return what makes parts of a model learn at other rates than the model's own, as texts like "mid_lr_weight is 2".

    A block that is not trained is none of them.
    """
    factors = {factor for factor in recipe.block_factors.values() if factor} if recipe.unet_lr else set()
    blocks = [f"{name} is {value}" for name in BLOCK_WEIGHTS if (value := getattr(recipe, name))]
    ratios = [f"{name} is {ratio:g}" for name in LORAPLUS_RATIOS if (ratio := getattr(recipe, name))]
    raised = any(recipe.up_ratio(model) != 1 for model, rate in recipe.model_rates.items() if rate)
    return [*(ratios if raised else ()), *(blocks if factors - {1.0} else ())]


def _raised_rates(recipe: Recipe, share: float) -> Iterator[Caution]:
    """Yield warnings if LoRA+ raises rates above the guide's range, with an optimizer of `share` of AdamW's rates."""
    for setting, model in (("unet_lr", "unet"), ("text_encoder_lr", "te1")):
        rate, ratio, high = recipe.model_rates[model], recipe.up_ratio(model), RECIPE[setting].high
        if high is not None and ratio > 1 and rate * ratio > high * share:
            yield Caution(
                code="loraplus_rate",
                message=f"With LoRA+ the up matrices learn at {ratio:g} times {setting}, {rate * ratio:g}; "
                f"{setting} {high * share / ratio:.2g} would keep them within the guide's range.",
                why="LoRA+ is meant to be used with a lower learning rate (Hayou et al. 2024).",
            )


def _scaled_rates(recipe: Recipe, name: str) -> Iterator[Caution]:
    """Yield warnings about rates far above the usual ones of an optimizer."""
    for setting, rate in recipe.named_rates.items():
        usual = usual_rate(setting, recipe)
        if rate > MAX_RATE_RATIO * usual:
            yield Caution(
                code="lion_rate",
                message=f"{setting} is {rate:g}; with {name} about {usual:g} has the same effect.",
                why="Its steps do not shrink with the gradient, so it needs a third to a tenth of AdamW's rate "
                "(Chen et al. 2023).",
            )
