"""Optimizers and learning-rate schedules, each with the arguments that are known to work for a LoRA."""

from __future__ import annotations

import sys
from contextlib import redirect_stdout
from typing import Any

import torch
from diffusers.optimization import get_scheduler
from torch.optim.lr_scheduler import LambdaLR

from lora_studio.config import Optimizer, Recipe
from lora_studio.errors import InputError
from lora_studio.training.adapters import Adapters


def parameter_groups(adapters: Adapters, recipe: Recipe) -> list[dict[str, Any]]:
    """One group a learning rate: the UNet's and the text encoders', named, in this order; absent where not trained."""
    wanted = (("unet", ("unet",), recipe.unet_lr), ("text_encoder", ("te1", "te2"), recipe.text_encoder_lr))
    groups = [{"name": name, "params": adapters.parameters(*models), "lr": rate} for name, models, rate in wanted]
    return [group for group in groups if group["params"]]


def make_optimizer(recipe: Recipe, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
    """The optimizer of a recipe over `parameter_groups`.

    Adafactor (Shazeer and Stern 2018, arXiv:1804.04235) follows the recipe's rates: its own relative step would discard
    them. Prodigy (Mishchenko and Defazio 2023, arXiv:2306.06101) is guarded for warm-up. Raises InputError if the
    optimizer's library is not installed.
    """
    decay = recipe.weight_decay
    match recipe.optimizer:
        case Optimizer.ADAMW:
            return torch.optim.AdamW(groups, weight_decay=decay, fused=True)
        case Optimizer.ADAFACTOR:
            from transformers.optimization import Adafactor

            adafactor: torch.optim.Optimizer = Adafactor(
                groups, weight_decay=decay, relative_step=False, scale_parameter=False, warmup_init=False
            )
            return adafactor
        case Optimizer.ADAMW8BIT:
            try:
                from bitsandbytes.optim import AdamW8bit
            except ImportError as error:
                raise InputError(
                    "optimizer is AdamW8bit, but bitsandbytes is not installed.",
                    "Run pip install bitsandbytes, or choose Adafactor.",
                    code="optimizer",
                ) from error
            return AdamW8bit(groups, weight_decay=decay)
        case Optimizer.PRODIGY:
            from prodigyopt import Prodigy

            with redirect_stdout(sys.stderr):  # it prints a line about its weight decay
                return Prodigy(
                    groups,
                    weight_decay=decay,
                    decouple=True,
                    use_bias_correction=True,
                    safeguard_warmup=recipe.lr_warmup_steps > 0,
                )


def make_lr_scheduler(recipe: Recipe, optimizer: torch.optim.Optimizer, total_steps: int) -> LambdaLR:
    """The learning rates as a function of the optimizer's steps; a warm-up is never longer than the run."""
    return get_scheduler(
        recipe.lr_scheduler.value,
        optimizer,
        num_warmup_steps=min(recipe.lr_warmup_steps, total_steps),
        num_training_steps=total_steps,
        num_cycles=recipe.lr_scheduler_num_cycles,
    )


def current_rates(optimizer: torch.optim.Optimizer) -> dict[str, float]:
    """The rates of the next step by group; for Prodigy the ones that it found, times its factor."""
    return {group["name"]: float(group["lr"]) * float(group.get("d", 1.0)) for group in optimizer.param_groups}
