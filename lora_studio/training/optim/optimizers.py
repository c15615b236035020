"""Make, check and restore optimizers, each with arguments that work for a LoRA."""

from __future__ import annotations

import importlib
import inspect
import math
import sys
from collections.abc import Callable, Mapping
from contextlib import redirect_stdout
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, cast

import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import Tensor, nn

from lora_studio.device import gpu_error
from lora_studio.errors import ConfigError, InputError
from lora_studio.lora.inject import UP, Adapters, layer_tensors
from lora_studio.lora.layers import block_names, block_of
from lora_studio.models.text_encoding import unused_layers
from lora_studio.settings.choices import Optimizer, Scheduler
from lora_studio.settings.recipe import Recipe
from lora_studio.training.optim.arguments import parse_arguments
from lora_studio.training.optim.flat_params import ParameterLayout

# bitsandbytes keeps the moments of tensors below 4,096 numbers in 32 bits, and pages those from 100,000 on.
TEST_SHAPE = (320, 320)
# Distribution names on PyPI that differ from the module's name.
PIP_NAMES = {"pytorch_optimizer": "pytorch-optimizer", "prodigyplus": "prodigy-plus-schedule-free"}
# Arguments that `optimizer_args` may contain only with the value that the settings give them, with these settings.
# Any weight_decay is allowed: in other trainers it has no setting of its own.
RESERVED_ARGUMENTS = {
    "lr": "unet_lr and text_encoder_lr",
    "params": "unet_lr and text_encoder_lr",
    "relative_step": "lr_scheduler (adafactor)",
}


@dataclass(frozen=True)
class OptimizerSpec:
    """An optimizer: `path` of its class (module.Class), its arguments for a LoRA, and the reason for them.

    `layout` is how it gets the weights. `rms` is the method with which an optimizer of stacks computes the root mean
    square of a matrix. `aliases` are other names of its arguments: those of the library that sd-scripts uses.
    """

    path: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    why: str = ""
    aliases: Mapping[str, str] = field(default_factory=dict)
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
        Optimizer.DADAPT_ADAM: OptimizerSpec(
            "pytorch_optimizer.optimizer.dadapt.DAdaptAdam",
            {"weight_decouple": True},
            "Defazio and Mishchenko 2023 (arXiv:2301.07733), with AdamW's weight decay.",
            aliases={"decouple": "weight_decouple", "use_bias_correction": "bias_correction"},
        ),
        Optimizer.LION: OptimizerSpec(
            "pytorch_optimizer.optimizer.lion.Lion",
            {"betas": (0.9, 0.99)},
            "Chen et al. 2023 (arXiv:2302.06675), with the paper's betas.",
        ),
    }
)


def parameter_groups(adapters: Adapters, recipe: Recipe) -> list[dict[str, Any]]:
    """Return a parameter group per learning rate: those of `unet`, then `text_encoder`, each only if it is trained.

    A second text encoder with a rate of its own is `text_encoder_2`. Blocks with a factor on their rate and the up
    matrices of LoRA+ (Hayou et al. 2024, arXiv:2402.12354) have groups of the same name with an `lr_ratio`. Layers of
    the first text encoder whose output `clip_skip` leaves unused are not trained.
    """
    unused_text_layers = unused_layers(adapters.models["te1"], recipe.clip_skip) if "te1" in adapters.models else []
    unused = {id(weight) for layer in unused_text_layers for weight in layer.parameters()}
    unet = adapters.models.get("unet")
    blocks = block_names(cast("UNet2DConditionModel", unet)) if unet is not None else {}
    rates = recipe.model_rates
    groups: dict[tuple[str, float], dict[str, Any]] = {}
    for model, path, layer in adapters.layers:
        name = "unet"
        if model != "unet":
            name = "text_encoder" if rates[model] == rates["te1"] or model == "te1" else "text_encoder_2"
        factor = recipe.block_factors.get(block_of(path, blocks), 1.0) if model == "unet" else 1.0
        for part, weight in layer_tensors(layer).items():
            if id(weight) in unused:
                continue
            ratio = factor * (recipe.up_ratio(model) if part == UP else 1.0)
            group = groups.setdefault((name, ratio), {"name": name, "params": [], "lr": rates[model] * ratio})
            if ratio != 1:
                group["lr_ratio"] = ratio
            group["params"].append(weight)
    return list(groups.values())


def make_optimizer(recipe: Recipe, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
    """Return a recipe's optimizer over parameter groups.

    Weights of three and more dimensions are stacks of matrices if `parameter_layout` is STACKED. Raises ImportError if
    the optimizer's library is not installed, ConfigError for `optimizer_args` that it does not accept.
    """
    optimizer_class = _optimizer_class(recipe)
    _check_optimizer_args(recipe, optimizer_class)
    with redirect_stdout(sys.stderr):  # Prodigy and its variants print their settings
        optimizer = optimizer_class(groups, **optimizer_arguments(recipe))
    if parameter_layout(recipe) is ParameterLayout.STACKED:
        setattr(optimizer, _spec(recipe).rms, _matrix_rms)
    return optimizer


def parameter_layout(recipe: Recipe) -> ParameterLayout:
    """Return how the recipe's optimizer gets the weights.

    Adafactor needs separate matrices if it scales its steps by the RMS of each weight. Raises ConfigError for a value
    in `optimizer_args` that is not a Python literal.
    """
    spec = _spec(recipe)
    by_weight = spec is OPTIMIZER_SPECS[Optimizer.ADAFACTOR] and optimizer_arguments(recipe)["scale_parameter"]
    return ParameterLayout.SEPARATE if by_weight else spec.layout


def _spec(recipe: Recipe) -> OptimizerSpec:
    """Return the recipe's optimizer; a class by its name gets separate matrices, since it may use rows and columns."""
    if recipe.optimizer_type:
        return OptimizerSpec(recipe.optimizer_type, layout=ParameterLayout.SEPARATE)
    return OPTIMIZER_SPECS[recipe.optimizer]


def _matrix_rms(values: Tensor) -> Tensor:
    """Return the root mean square of a matrix, or of each matrix in a stack [n, ...], as [n, 1...]."""
    axes = tuple(range(1, values.dim())) if values.dim() > 2 else tuple(range(values.dim()))
    return values.square().mean(axes, keepdim=values.dim() > 2).sqrt()


def optimizer_arguments(recipe: Recipe) -> dict[str, Any]:
    """Return all arguments of a recipe's optimizer: our defaults, the recipe's settings, then `optimizer_args`.

    Raises ConfigError for a value that is not a Python literal.
    """
    given = {name: value for name, value in _parse_optimizer_args(recipe).items() if name not in RESERVED_ARGUMENTS}
    return _settings_arguments(recipe) | given


def _settings_arguments(recipe: Recipe) -> dict[str, Any]:
    if recipe.optimizer_type:
        accepts = "weight_decay" in inspect.signature(_optimizer_class(recipe)).parameters
        return {"weight_decay": recipe.weight_decay} if accepts else {}
    arguments: dict[str, Any] = {"weight_decay": recipe.weight_decay, **OPTIMIZER_SPECS[recipe.optimizer].arguments}
    if recipe.optimizer is Optimizer.PRODIGY:
        arguments["safeguard_warmup"] = recipe.lr_warmup_steps > 0
    if recipe.optimizer is Optimizer.ADAFACTOR and recipe.lr_scheduler is Scheduler.ADAFACTOR:
        warms_up = recipe.lr_warmup_steps > 0
        arguments |= {"relative_step": True, "scale_parameter": True, "warmup_init": warms_up}
    return arguments


def optimizer_name(recipe: Recipe) -> str:
    """Return class and arguments as kohya's trainer writes them to a LoRA's metadata."""
    arguments = ",".join(f"{name}={value}" for name, value in optimizer_arguments(recipe).items())
    return f"{_spec(recipe).path}({arguments})"


def _parse_optimizer_args(recipe: Recipe) -> dict[str, Any]:
    aliases = _spec(recipe).aliases
    given = parse_arguments("optimizer_args", recipe.optimizer_args)
    return {aliases.get(name, name): value for name, value in given.items()}


def _optimizer_class(recipe: Recipe) -> Callable[..., torch.optim.Optimizer]:
    """Return the class of the recipe's optimizer. Raises ImportError, or ConfigError if it is not an optimizer."""
    module, _, name = _spec(recipe).path.rpartition(".")
    found = getattr(importlib.import_module(module), name, None)
    if not (isinstance(found, type) and issubclass(found, torch.optim.Optimizer)):
        raise ConfigError(
            [
                f"optimizer_type is {recipe.optimizer_type}, which is not an optimizer class of torch. Use one like "
                "torch.optim.RAdam, or leave it empty."
            ]
        )
    return found


def _check_optimizer_args(recipe: Recipe, optimizer_class: Callable[..., torch.optim.Optimizer]) -> None:
    """Raise ConfigError for `optimizer_args` that the optimizer does not accept or that belong in other settings."""
    named = inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY
    parameters = list(inspect.signature(optimizer_class).parameters.values())
    known = [item.name for item in parameters if item.kind in named and item.name not in RESERVED_ARGUMENTS]
    takes_any = recipe.optimizer_type and any(item.kind is inspect.Parameter.VAR_KEYWORD for item in parameters)
    from_settings = _settings_arguments(recipe)
    if len(recipe.trained_rates) == 1:
        (from_settings["lr"],) = recipe.trained_rates
    found = []
    for name, value in _parse_optimizer_args(recipe).items():
        if name in RESERVED_ARGUMENTS:
            if name not in from_settings or value != from_settings[name]:
                found.append(f"optimizer_args: {name} is not allowed there. Set {RESERVED_ARGUMENTS[name]} instead.")
        elif name not in known and not takes_any:
            found.append(
                f"optimizer_args: {recipe.optimizer_title} has no argument {name}. It has {', '.join(sorted(known))}."
            )
    if found:
        raise ConfigError(found)


def check_optimizer(recipe: Recipe, device: torch.device) -> None:
    """Take one step with the recipe's optimizer on a small weight, in the layout that it gets in training.

    A class by its name gets one for each of the recipe's rates, since it may accept a single rate only.

    Raises InputError if its library is missing, if it does not work on this device, or if torch cannot use the device;
    ConfigError if the optimizer rejects an argument.
    """
    optimizer = None
    try:
        stacked = parameter_layout(recipe) is ParameterLayout.STACKED
        groups: list[dict[str, Any]] = []
        for rate in sorted(recipe.trained_rates) if recipe.optimizer_type else (1.0,):
            weight = nn.Parameter(torch.zeros((2, *TEST_SHAPE) if stacked else TEST_SHAPE, device=device))
            weight.grad = torch.ones_like(weight)
            groups.append({"params": [weight], "lr": rate})
        optimizer = make_optimizer(recipe, groups)
        optimizer.step()
    except ImportError as error:
        package = PIP_NAMES.get(module := (error.name or "its library").partition(".")[0], module)
        reason, remedy = f"{package} is not installed", f"Run pip install {package}, or choose Adafactor."
    except (torch.OutOfMemoryError, ConfigError):
        raise
    except (AssertionError, AttributeError, OSError, RuntimeError, TypeError, ValueError) as error:
        if (unusable := gpu_error(error)) is not None:
            raise unusable from error
        lines = str(error).strip().splitlines() or [type(error).__name__]
        detail = lines[0].rstrip(".")
        if recipe.optimizer_args and (optimizer is None or isinstance(error, TypeError | ValueError)):
            given = " ".join(recipe.optimizer_args)
            raise ConfigError(
                [f"optimizer_args is {given}, which {recipe.optimizer_title} rejects: {detail}. Correct or empty it."]
            ) from error
        reason = f"it does not work on this {device.type} device ({detail})"
        remedy = "Choose Adafactor, which works on every device and needs even less memory."
    else:
        return
    raise InputError(f"optimizer is {recipe.optimizer_title}, but {reason}.", remedy, code="optimizer")


def load_optimizer_state(optimizer: torch.optim.Optimizer, saved: dict[str, Any]) -> None:
    """Load a state dict bit for bit: torch casts states to the dtype of their weight, which is undone here.

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
    """Return the learning rate of the next step per name of a group, without an `lr_ratio`.

    For Prodigy it is d times the group's rate; for Adafactor's own schedule the relative step, which Adafactor still
    multiplies by the RMS of each weight.
    """
    found: dict[str, float] = {}
    for group in optimizer.param_groups:
        found.setdefault(group["name"], _learning_rate(optimizer, group) / group.get("lr_ratio", 1.0))
    return found


def _learning_rate(optimizer: torch.optim.Optimizer, group: dict[str, Any]) -> float:
    if group.get("relative_step"):
        steps = 1 + max((int(optimizer.state.get(weight, {}).get("step", 0)) for weight in group["params"]), default=0)
        return min(1e-6 * steps if group["warmup_init"] else 1e-2, 1 / math.sqrt(steps))
    return float(group["lr"]) * float(group.get("d", 1.0))
