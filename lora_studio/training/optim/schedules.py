"""Learning rate schedules."""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable
from functools import partial

import torch
from diffusers.optimization import get_scheduler
from torch import nn
from torch.optim.lr_scheduler import LambdaLR, LRScheduler

from lora_studio.errors import ConfigError
from lora_studio.planning.steps import warmup_steps
from lora_studio.settings.choices import Scheduler
from lora_studio.settings.recipe import Recipe
from lora_studio.training.optim.arguments import parse_arguments

REWARMED_FACTOR = 0.5  # of the recipe's rates, to which a continued run's rates rise at least
REWARM_SHARE, MAX_REWARM_STEPS = 0.1, 100  # of the steps to come
TORCH_SCHEDULERS = "torch.optim.lr_scheduler"  # the module of a class without one


def make_lr_scheduler(recipe: Recipe, optimizer: torch.optim.Optimizer, total_steps: int) -> LRScheduler:
    """Return a recipe's learning rate scheduler; its warm-up is never longer than the run.

    All except the constant schedules fall to 0, or to their minimum, at `total_steps`, which is one step after the
    last. Adafactor's own schedule is inside Adafactor: the factor here is then 1. A class that the recipe names is made
    with the recipe's arguments alone; raises ConfigError if it is missing or not a scheduler.
    """
    if recipe.lr_scheduler_type:
        arguments = parse_arguments("lr_scheduler_args", recipe.lr_scheduler_args)
        return _scheduler_class(recipe.lr_scheduler_type)(optimizer, **arguments)
    warmup = warmup_steps(recipe.lr_warmup_steps, total_steps)
    match recipe.lr_scheduler:
        case Scheduler.ADAFACTOR:
            return LambdaLR(optimizer, lambda step: 1.0)
        case Scheduler.POLYNOMIAL:
            return LambdaLR(
                optimizer, with_warmup(partial(polynomial, power=recipe.lr_scheduler_power), warmup, total_steps)
            )
        case Scheduler.COSINE if recipe.lr_scheduler_min_lr_ratio:
            decay = partial(cosine, minimum=recipe.lr_scheduler_min_lr_ratio)
            return LambdaLR(optimizer, with_warmup(decay, warmup, total_steps))
        case Scheduler.REX:
            return LambdaLR(optimizer, with_warmup(rex, warmup, total_steps))
    schedule: LambdaLR = get_scheduler(
        recipe.lr_scheduler.value,
        optimizer,
        num_warmup_steps=warmup,
        num_training_steps=total_steps,
        num_cycles=recipe.lr_scheduler_num_cycles,
    )
    return schedule


def with_warmup(decay: Callable[[float], float], warmup: int, total_steps: int) -> Callable[[int], float]:
    """Return a factor that rises linearly from 0 to 1 over `warmup` steps, then is `decay` of the progress in 0..1."""

    def factor(step: int) -> float:
        if step < warmup:
            return step / warmup
        return decay(min(1.0, (step - warmup) / max(1, total_steps - warmup)))

    return factor


def continue_schedule(scheduler: LRScheduler, recipe: Recipe, *, step: int, factor: float, total_steps: int) -> None:
    """Plan the learning rates of a run that continues another one from `step` on, over the steps up to `total_steps`.

    `factor` is that of the other run's schedule at `step`, which the rates start from: there is no jump. A schedule
    that falls rises first, over a tenth of the steps to come and at most 100, to half the recipe's rates, unless the
    rates are higher anyway; from there it falls over the other steps as the recipe's schedule does over a whole run. So
    a run whose rates had fallen to 0 learns again, but less of what the end of its schedule settled is undone than by a
    restart at the full rates (Ibrahim et al. 2024, arXiv:2403.08763, on re-warming). A constant schedule only goes up
    to the recipe's rates, if it was still warming up. A class that the recipe names, and Adafactor's own schedule, go
    on by themselves.
    """
    if recipe.lr_scheduler_type or recipe.lr_scheduler is Scheduler.ADAFACTOR or not isinstance(scheduler, LambdaLR):
        return
    planned = continued_factor(recipe, factor, total_steps - step)
    scheduler.lr_lambdas = [lambda number: planned(number - step)] * len(scheduler.base_lrs)
    factor_now = planned(scheduler.last_epoch - step)
    rates = [rate * factor_now for rate in scheduler.base_lrs]
    for group, rate in zip(scheduler.optimizer.param_groups, rates, strict=True):
        group["lr"] = rate
    scheduler._last_lr = rates  # what `get_last_lr` and the saved state report


def continued_factor(recipe: Recipe, factor: float, steps: int) -> Callable[[int], float]:
    """Return the factor on the recipe's rates by step, over `steps` steps that begin at `factor`."""
    constant = recipe.lr_scheduler in (Scheduler.CONSTANT, Scheduler.CONSTANT_WITH_WARMUP)
    peak = 1.0 if constant else max(factor, REWARMED_FACTOR)
    warmup = min(MAX_REWARM_STEPS, max(1, int(REWARM_SHARE * steps))) if peak > factor else 0
    minimum = min(peak, recipe.lr_scheduler_min_lr_ratio) if recipe.lr_scheduler is Scheduler.COSINE else 0.0
    shape = _decay(recipe)

    def at(number: int) -> float:
        if number < warmup:
            return factor + (peak - factor) * (number + 1) / (warmup + 1)
        return minimum + (peak - minimum) * shape(min(1.0, (number - warmup) / max(1, steps - warmup)))

    return at


def _decay(recipe: Recipe) -> Callable[[float], float]:
    """Return the factor of a recipe's schedule by its progress in 0..1, from 1 to 0, or 1 for a constant one."""
    match recipe.lr_scheduler:
        case Scheduler.LINEAR:
            return partial(polynomial, power=1.0)
        case Scheduler.POLYNOMIAL:
            return partial(polynomial, power=recipe.lr_scheduler_power)
        case Scheduler.COSINE:
            return partial(cosine, minimum=0.0)
        case Scheduler.COSINE_WITH_RESTARTS:
            return partial(cosine_with_restarts, cycles=recipe.lr_scheduler_num_cycles)
        case Scheduler.REX:
            return rex
    return lambda progress: 1.0


def cosine_with_restarts(progress: float, cycles: int) -> float:
    """Return the cosine from 1 to 0 that is repeated `cycles` times over a progress z in 0..1."""
    return 0.0 if progress >= 1 else cosine(cycles * progress % 1, 0.0)


def cosine(progress: float, minimum: float) -> float:
    """Return m + (1 - m) (1 + cos(pi z)) / 2 of a progress z in 0..1: from 1 to the minimum m."""
    return minimum + (1 - minimum) * 0.5 * (1 + math.cos(math.pi * progress))


def polynomial(progress: float, power: float) -> float:
    """Return (1 - z)^power of a progress z in 0..1."""
    return float((1 - progress) ** power)


def rex(progress: float) -> float:
    """Return the reflected exponential (1 - z) / (1/2 + 1/2 (1 - z)) of a progress z in 0..1.

    It stays high for long and then falls steeply.

    Chen et al. 2021, "REX: Revisiting Budgeted Training with an Improved Schedule" (arXiv:2107.04197).
    """
    return (1 - progress) / (0.5 + 0.5 * (1 - progress))


def _scheduler_class(name: str) -> Callable[..., LRScheduler]:
    """Return the scheduler class of this name, of torch's module unless it has one. Raises ConfigError."""
    module, _, class_name = name.rpartition(".")
    remedy = "Use a class like CosineAnnealingLR, or leave lr_scheduler_type empty."
    try:
        found = getattr(importlib.import_module(module or TORCH_SCHEDULERS), class_name, None)
    except ImportError as error:
        raise ConfigError(
            [f"lr_scheduler_type is {name}, but {error}. Install its library, or leave it empty."]
        ) from error
    if not (isinstance(found, type) and issubclass(found, LRScheduler)):
        raise ConfigError([f"lr_scheduler_type is {name}, which is not a learning rate scheduler. {remedy}"])
    return found


def check_lr_scheduler(recipe: Recipe) -> None:
    """Take two steps with the scheduler class that a recipe names, if it names one.

    Raises ConfigError if it is missing, or if it rejects its arguments or a step without a loss.
    """
    if not recipe.lr_scheduler_type:
        return
    weight = nn.Parameter(torch.zeros(1))
    weight.grad = torch.zeros(1)
    optimizer = torch.optim.SGD([weight], lr=1.0, momentum=0.9)
    try:
        scheduler = make_lr_scheduler(recipe, optimizer, 2)
        for _ in range(2):
            optimizer.step()
            scheduler.step()
    except ConfigError:
        raise
    except Exception as error:  # a class of any library
        lines = str(error).strip().splitlines() or [type(error).__name__]
        given = " ".join(recipe.lr_scheduler_args) or "empty"
        raise ConfigError(
            [
                f"lr_scheduler_args is {given}, with which {recipe.lr_scheduler_type} does not work: "
                f"{lines[0].rstrip('.')}. Correct it, or leave lr_scheduler_type empty."
            ]
        ) from error
