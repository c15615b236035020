"""Optimizers and learning-rate schedules, each with the arguments that are known to work for a LoRA."""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import redirect_stdout
from typing import Any

import torch
from diffusers.optimization import get_scheduler
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from lora_studio.config import Optimizer, Recipe
from lora_studio.errors import InputError
from lora_studio.training.adapters import Adapters

# bitsandbytes keeps the moments of smaller tensors in 32 bits.
TRIAL_SHAPE = (64, 64)


def parameter_groups(adapters: Adapters, recipe: Recipe) -> list[dict[str, Any]]:
    """One group a learning rate: the UNet's and the text encoders', named, in this order; absent where not trained."""
    wanted = (("unet", ("unet",), recipe.unet_lr), ("text_encoder", ("te1", "te2"), recipe.text_encoder_lr))
    groups = [{"name": name, "params": adapters.parameters(*models), "lr": rate} for name, models, rate in wanted]
    return [group for group in groups if group["params"]]


def make_optimizer(recipe: Recipe, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
    """The optimizer of a recipe over `parameter_groups`.

    Adafactor (Shazeer and Stern 2018, arXiv:1804.04235) follows the recipe's rates: its own relative step would discard
    them. Prodigy (Mishchenko and Defazio 2023, arXiv:2306.06101) is guarded for warm-up. Raises ImportError if the
    optimizer's library is not installed.
    """
    kind, options = _kind(recipe)
    with redirect_stdout(sys.stderr):  # Prodigy prints a line about its weight decay
        return kind(groups, weight_decay=recipe.weight_decay, **options)


def _kind(recipe: Recipe) -> tuple[Callable[..., torch.optim.Optimizer], dict[str, Any]]:
    """The optimizer's class and the arguments that are its own."""
    match recipe.optimizer:
        case Optimizer.ADAMW:
            return torch.optim.AdamW, {"fused": True}
        case Optimizer.ADAFACTOR:
            from transformers.optimization import Adafactor

            return Adafactor, {"relative_step": False, "scale_parameter": False, "warmup_init": False}
        case Optimizer.ADAMW8BIT:
            from bitsandbytes.optim import AdamW8bit

            return AdamW8bit, {}
        case Optimizer.PRODIGY:
            from prodigyopt import Prodigy

            warms_up = recipe.lr_warmup_steps > 0
            return Prodigy, {"decouple": True, "use_bias_correction": True, "safeguard_warmup": warms_up}


def try_optimizer(recipe: Recipe, device: torch.device) -> None:
    """Take one step with the recipe's optimizer on a small weight.

    Raises InputError where it cannot work: its library is missing, or was not built for this device.
    """
    weight = nn.Parameter(torch.zeros(TRIAL_SHAPE, device=device))
    weight.grad = torch.ones_like(weight)
    try:
        make_optimizer(recipe, [{"params": [weight], "lr": 1.0}]).step()
    except ImportError as error:
        package = (error.name or "its library").partition(".")[0]
        reason, remedy = f"{package} is not installed", f"Run pip install {package}, or choose Adafactor."
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, NotImplementedError, AttributeError, OSError) as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        reason = f"it does not work on this {device.type} device ({lines[0].rstrip('.')})"
        remedy = "Choose Adafactor, which works everywhere and takes less memory still."
    else:
        return
    raise InputError(f"optimizer is {recipe.optimizer.value}, but {reason}.", remedy, code="optimizer")


def make_lr_scheduler(recipe: Recipe, optimizer: torch.optim.Optimizer, total_steps: int) -> LambdaLR:
    """The learning rates as a function of the optimizer's steps; a warm-up is never longer than the run."""
    schedule: LambdaLR = get_scheduler(
        recipe.lr_scheduler.value,
        optimizer,
        num_warmup_steps=min(recipe.lr_warmup_steps, total_steps),
        num_training_steps=total_steps,
        num_cycles=recipe.lr_scheduler_num_cycles,
    )
    return schedule


def current_rates(optimizer: torch.optim.Optimizer) -> dict[str, float]:
    """The rates of the next step by group; for Prodigy the ones that it found, times its factor."""
    return {group["name"]: float(group["lr"]) * float(group.get("d", 1.0)) for group in optimizer.param_groups}
