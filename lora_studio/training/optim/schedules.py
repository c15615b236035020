"""Learning rate schedules."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from diffusers.optimization import get_scheduler
from torch.optim.lr_scheduler import LambdaLR

from lora_studio.planning.steps import warmup_steps
from lora_studio.settings.choices import Scheduler
from lora_studio.settings.recipe import Recipe


def make_lr_scheduler(recipe: Recipe, optimizer: torch.optim.Optimizer, total_steps: int) -> LambdaLR:
    """Return a recipe's learning rate scheduler; its warm-up is never longer than the run.

    All except the constant schedules fall to 0 at `total_steps`, which is one step after the last. Adafactor's own
    schedule is inside Adafactor: the factor here is then 1.
    """
    warmup = warmup_steps(recipe.lr_warmup_steps, total_steps)
    match recipe.lr_scheduler:
        case Scheduler.ADAFACTOR:
            return LambdaLR(optimizer, lambda step: 1.0)
        case Scheduler.POLYNOMIAL:
            return LambdaLR(
                optimizer, with_warmup(partial(polynomial, power=recipe.lr_scheduler_power), warmup, total_steps)
            )
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


def polynomial(progress: float, power: float) -> float:
    """Return (1 - z)^power of a progress z in 0..1."""
    return float((1 - progress) ** power)


def rex(progress: float) -> float:
    """Return the reflected exponential (1 - z) / (1/2 + 1/2 (1 - z)) of a progress z in 0..1.

    It stays high for long and then falls steeply.

    Chen et al. 2021, "REX: Revisiting Budgeted Training with an Improved Schedule" (arXiv:2107.04197).
    """
    return (1 - progress) / (0.5 + 0.5 * (1 - progress))
