"""Optimizers, each with the arguments that are known to work for a LoRA."""

from __future__ import annotations

import ast
import importlib
import inspect
import math
import sys
from collections.abc import Callable, Mapping
from contextlib import redirect_stdout
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from lora_studio.errors import ConfigError, InputError
from lora_studio.lora.inject import Adapters
from lora_studio.models.text_encoding import unused_layers
from lora_studio.settings.choices import Optimizer, Scheduler
from lora_studio.settings.recipe import Recipe
from lora_studio.training.optim.flat_params import ParameterLayout

# bitsandbytes keeps the moments of smaller tensors in 32 bits.
TEST_SHAPE = (64, 64)
# Where pip knows a library by another name than Python does.
PIP_NAMES = {"pytorch_optimizer": "pytorch-optimizer", "prodigyplus": "prodigy-plus-schedule-free"}
# What the recipe's own settings say; `optimizer_args` may not say it again. weight_decay is the exception: other
# trainers have it there alone.
RESERVED_ARGUMENTS = {
    "lr": "unet_lr and text_encoder_lr",
    "params": "unet_lr and text_encoder_lr",
    "relative_step": "lr_scheduler (adafactor)",
}


@dataclass(frozen=True)
class OptimizerSpec:
    """An optimizer: where its class is (module.Class), the arguments that it gets for a LoRA, and why these.

    `layout` is how it takes the weights; one that takes stacks calls `rms` for the root mean square of a matrix.
    """

    path: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    why: str = ""
    layout: ParameterLayout = ParameterLayout.FLAT
    rms: str = ""


OPTIMIZER_SPECS: Mapping[Optimizer, OptimizerSpec] = MappingProxyType(
    {
        Optimizer.ADAFACTOR: OptimizerSpec(
            "transformers.optimization.Adafactor",
            {"relative_step": False, "scale_parameter": False, "warmup_init": False},
            "Shazeer and Stern 2018 (arXiv:1804.04235). Its own relative step would discard the recipe's rates.",
            layout=ParameterLayout.STACKED,
            rms="_rms",
        ),
        Optimizer.ADAMW: OptimizerSpec(
            "torch.optim.adamw.AdamW",
            {"fused": True},
            "Loshchilov and Hutter 2019 (arXiv:1711.05101). One kernel for all weights instead of thousands.",
        ),
        Optimizer.ADAMW8BIT: OptimizerSpec(
            "bitsandbytes.optim.adamw.AdamW8bit", why="Dettmers et al. 2022 (arXiv:2110.02861)."
        ),
        Optimizer.PAGED_ADAMW8BIT: OptimizerSpec(
            "bitsandbytes.optim.adamw.PagedAdamW8bit", why="Dettmers et al. 2023 (arXiv:2305.14314), section 3."
        ),
        Optimizer.LION8BIT: OptimizerSpec(
            "bitsandbytes.optim.lion.Lion8bit",
            {"betas": (0.9, 0.99)},
            "Chen et al. 2023 (arXiv:2302.06675), with the paper's betas.",
        ),
        Optimizer.PRODIGY: OptimizerSpec(
            "prodigyopt.prodigy.Prodigy",
            {"decouple": True, "use_bias_correction": True},
            "Mishchenko and Defazio 2023 (arXiv:2306.06101). With a warm-up also safeguard_warmup, without which the "
            "low first rates would count as progress.",
        ),
        Optimizer.CAME: OptimizerSpec(
            "pytorch_optimizer.optimizer.came.CAME",
            {"betas": (0.9, 0.999, 0.9999)},
            "Luo et al. 2023 (arXiv:2307.02047), with the paper's betas.",
            layout=ParameterLayout.STACKED,
            rms="get_rms",
        ),
        Optimizer.SCHEDULE_FREE: OptimizerSpec(
            "pytorch_optimizer.optimizer.schedulefree.ScheduleFreeAdamW",
            {"betas": (0.9, 0.999)},
            "Defazio et al. 2024 (arXiv:2405.15682), with the paper's betas.",
        ),
        Optimizer.PRODIGY_PLUS: OptimizerSpec(
            "prodigyplus.prodigy_plus_schedulefree.ProdigyPlusScheduleFree",
            {"split_groups": True},
            "Prodigy and schedule-free together; UNet and text encoders find a rate each.",
            layout=ParameterLayout.SEPARATE,
        ),
    }
)


def parameter_groups(adapters: Adapters, recipe: Recipe) -> list[dict[str, Any]]:
    """One group a learning rate: the UNet's and the text encoders', named, in this order; absent where not trained.

    Weights in layers of the first text encoder whose output nobody reads are in none: they stay as they are.
    """
    wanted = (("unet", ("unet",), recipe.unet_lr), ("text_encoder", ("te1", "te2"), recipe.text_encoder_lr))
    unread = unused_layers(adapters.models["te1"], recipe.clip_skip) if "te1" in adapters.models else []
    idle = {id(weight) for layer in unread for weight in layer.parameters()}
    groups = []
    for name, models, rate in wanted:
        weights = [weight for weight in adapters.parameters(*models) if id(weight) not in idle]
        groups.append({"name": name, "params": weights, "lr": rate})
    return [group for group in groups if group["params"]]


def make_optimizer(recipe: Recipe, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
    """The optimizer of a recipe over parameter groups, ready to train.

    Weights of three and more dimensions are stacks of matrices where the optimizer takes such (`parameter_layout`).
    Raises ImportError if the optimizer's library is not installed, ConfigError for `optimizer_args` that it does not
    have.
    """
    kind = _optimizer_class(recipe)
    _check_optimizer_args(recipe, kind)
    with redirect_stdout(sys.stderr):  # Prodigy and its kin print about their settings
        optimizer = kind(groups, **optimizer_arguments(recipe))
    if parameter_layout(recipe) is ParameterLayout.STACKED:
        setattr(optimizer, OPTIMIZER_SPECS[recipe.optimizer].rms, _matrix_rms)
    return optimizer


def parameter_layout(recipe: Recipe) -> ParameterLayout:
    """How the recipe's optimizer takes the weights; a relative step looks at the size of each matrix by itself."""
    own_rate = recipe.optimizer is Optimizer.ADAFACTOR and recipe.lr_scheduler is Scheduler.ADAFACTOR
    return ParameterLayout.SEPARATE if own_rate else OPTIMIZER_SPECS[recipe.optimizer].layout


def _matrix_rms(values: Tensor) -> Tensor:
    """The root mean square of a matrix, or of each one in a stack [n, ...], as [n, 1...]."""
    axes = tuple(range(1, values.dim())) if values.dim() > 2 else tuple(range(values.dim()))
    return values.square().mean(axes, keepdim=values.dim() > 2).sqrt()


def optimizer_arguments(recipe: Recipe) -> dict[str, Any]:
    """All arguments that a recipe's optimizer is made with: the known ones, the recipe's, and `optimizer_args` last.

    Raises ConfigError for a value that is no Python literal.
    """
    arguments: dict[str, Any] = {"weight_decay": recipe.weight_decay, **OPTIMIZER_SPECS[recipe.optimizer].arguments}
    if recipe.optimizer is Optimizer.PRODIGY:
        arguments["safeguard_warmup"] = recipe.lr_warmup_steps > 0
    if recipe.optimizer is Optimizer.ADAFACTOR and recipe.lr_scheduler is Scheduler.ADAFACTOR:
        warms_up = recipe.lr_warmup_steps > 0
        arguments |= {"relative_step": True, "scale_parameter": True, "warmup_init": warms_up}
    return arguments | _parse_optimizer_args(recipe)


def optimizer_name(recipe: Recipe) -> str:
    """Class and arguments as kohya's trainer writes them to a LoRA's metadata."""
    arguments = ",".join(f"{name}={value}" for name, value in optimizer_arguments(recipe).items())
    return f"{OPTIMIZER_SPECS[recipe.optimizer].path}({arguments})"


def _parse_optimizer_args(recipe: Recipe) -> dict[str, Any]:
    found, wrong = {}, []
    for text in recipe.optimizer_args:
        name, _, value = text.partition("=")
        try:
            found[name] = ast.literal_eval({"true": "True", "false": "False", "none": "None"}.get(value, value))
        except (ValueError, SyntaxError):
            wrong.append(
                f"optimizer_args: the value of {text} cannot be read. Write a number, True, False or 0.9,0.99."
            )
    if wrong:
        raise ConfigError(wrong)
    return found


def _optimizer_class(recipe: Recipe) -> Callable[..., torch.optim.Optimizer]:
    module, _, name = OPTIMIZER_SPECS[recipe.optimizer].path.rpartition(".")
    kind: Callable[..., torch.optim.Optimizer] = getattr(importlib.import_module(module), name)
    return kind


def _check_optimizer_args(recipe: Recipe, kind: Callable[..., torch.optim.Optimizer]) -> None:
    """Raise ConfigError for `optimizer_args` that the optimizer does not take, or that are settings of their own."""
    named = inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY
    parameters = inspect.signature(kind).parameters.values()
    known = [item.name for item in parameters if item.kind in named and item.name not in RESERVED_ARGUMENTS]
    found = []
    for name in _parse_optimizer_args(recipe):
        if name in RESERVED_ARGUMENTS:
            found.append(f"optimizer_args: {name} is not given there. Set {RESERVED_ARGUMENTS[name]} instead.")
        elif name not in known:
            found.append(
                f"optimizer_args: {recipe.optimizer.value} has no argument {name}. It has {', '.join(sorted(known))}."
            )
    if found:
        raise ConfigError(found)


def check_optimizer(recipe: Recipe, device: torch.device) -> None:
    """Take one step with the recipe's optimizer on a small weight.

    Raises InputError where it cannot work: its library is missing, or was not built for this device; ConfigError if its
    arguments do not fit.
    """
    weight = nn.Parameter(torch.zeros(TEST_SHAPE, device=device))
    weight.grad = torch.ones_like(weight)
    optimizer = None
    try:
        optimizer = make_optimizer(recipe, [{"params": [weight], "lr": 1.0}])
        optimizer.step()
    except ImportError as error:
        package = PIP_NAMES.get(module := (error.name or "its library").partition(".")[0], module)
        reason, remedy = f"{package} is not installed", f"Run pip install {package}, or choose Adafactor."
    except (torch.OutOfMemoryError, ConfigError):
        raise
    except (RuntimeError, NotImplementedError, AttributeError, OSError, TypeError, ValueError) as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        said = lines[0].rstrip(".")
        if recipe.optimizer_args and (optimizer is None or isinstance(error, TypeError | ValueError)):
            given = " ".join(recipe.optimizer_args)
            raise ConfigError(
                [f"optimizer_args is {given}, which {recipe.optimizer.value} refuses: {said}. Correct or empty it."]
            ) from error
        reason = f"it does not work on this {device.type} device ({said})"
        remedy = "Choose Adafactor, which works everywhere and takes less memory still."
    else:
        return
    raise InputError(f"optimizer is {recipe.optimizer.value}, but {reason}.", remedy, code="optimizer")


def load_optimizer_state(optimizer: torch.optim.Optimizer, saved: dict[str, Any]) -> None:
    """Take back a state dict, bit for bit: torch turns every state into the dtype of its weight, which is undone here.

    Raises KeyError or ValueError if it is another optimizer's.
    """
    optimizer.load_state_dict(saved)
    numbers = [number for group in saved["param_groups"] for number in group["params"]]
    weights = [weight for group in optimizer.param_groups for weight in group["params"]]
    for number, weight in zip(numbers, weights, strict=True):
        for name, value in saved["state"].get(number, {}).items():
            kept = optimizer.state[weight].get(name)
            if isinstance(value, Tensor) and isinstance(kept, Tensor):
                optimizer.state[weight][name] = kept.to(value.dtype)


def learning_rates(optimizer: torch.optim.Optimizer) -> dict[str, float]:
    """The rates of the next step by group.

    For Prodigy the ones that it found, times its factor; for Adafactor's own schedule the relative step, which it still
    multiplies with the size of each weight.
    """
    return {group["name"]: _learning_rate(optimizer, group) for group in optimizer.param_groups}


def _learning_rate(optimizer: torch.optim.Optimizer, group: dict[str, Any]) -> float:
    if group.get("relative_step"):
        steps = 1 + max((int(optimizer.state.get(weight, {}).get("step", 0)) for weight in group["params"]), default=0)
        return min(1e-6 * steps if group["warmup_init"] else 1e-2, 1 / math.sqrt(steps))
    return float(group["lr"]) * float(group.get("d", 1.0))
