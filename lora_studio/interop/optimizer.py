"""Optimizers, schedules and learning rates: sd-scripts' arguments, and the settings that mean the same.

sd-scripts makes an optimizer with the defaults of its library, the studio with arguments that suit a LoRA. Import
therefore adds the library's where they differ, and export writes the studio's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from lora_studio.interop.arguments import LeftOut
from lora_studio.interop.pairs import format_number, format_pairs, is_true, parse_pairs, same_value
from lora_studio.settings.choices import Optimizer, Scheduler
from lora_studio.settings.recipe import Recipe

_DEFAULT_RATE = 2e-6  # of sd-scripts
_OPTIMIZER_CLASSES = "pytorch_optimizer"  # the library of classes that sd-scripts has by name and the studio has not


@dataclass(frozen=True)
class OptimizerNames:
    """An optimizer in sd-scripts: its name there, its classes, and what its library uses without arguments.

    `classes` are names without submodules, like `torch.AdamW`. `arguments` has (the library's, the studio's) value of
    those that differ.
    """

    name: str
    classes: tuple[str, ...] = ()
    weight_decay: float = 0.0
    arguments: Mapping[str, tuple[str, str]] = field(default_factory=dict)


OPTIMIZERS = {
    Optimizer.ADAFACTOR: OptimizerNames("Adafactor", ("transformers.Adafactor",)),
    Optimizer.ADAMW: OptimizerNames("AdamW", ("torch.AdamW",), weight_decay=0.01),
    Optimizer.ADAMW8BIT: OptimizerNames("AdamW8bit", ("bitsandbytes.AdamW8bit",), weight_decay=0.01),
    Optimizer.PAGED_ADAMW8BIT: OptimizerNames("PagedAdamW8bit", ("bitsandbytes.PagedAdamW8bit",), weight_decay=0.01),
    Optimizer.LION8BIT: OptimizerNames("Lion8bit", ("bitsandbytes.Lion8bit",)),
    Optimizer.LION: OptimizerNames("Lion", ("lion_pytorch.Lion", "pytorch_optimizer.Lion")),
    Optimizer.PRODIGY: OptimizerNames(
        "Prodigy", ("prodigyopt.Prodigy",), arguments={"use_bias_correction": ("False", "True")}
    ),
    Optimizer.CAME: OptimizerNames("pytorch_optimizer.CAME", ("pytorch_optimizer.CAME",)),
    Optimizer.SCHEDULE_FREE: OptimizerNames(
        "AdamWScheduleFree", ("schedulefree.AdamWScheduleFree", "pytorch_optimizer.ScheduleFreeAdamW")
    ),
    Optimizer.PRODIGY_PLUS: OptimizerNames(
        "prodigyplus.ProdigyPlusScheduleFree", ("prodigyplus.ProdigyPlusScheduleFree",)
    ),
    Optimizer.DADAPT_ADAM: OptimizerNames(
        "DAdaptAdam",
        ("dadaptation.DAdaptAdam", "pytorch_optimizer.DAdaptAdam"),
        arguments={"decouple": ("False", "True")},
    ),
}
_BY_NAME = {name.lower(): optimizer for optimizer, known in OPTIMIZERS.items() for name in (known.name, *known.classes)}
# Optimizers that sd-scripts has by name and the studio by class, with arguments that sd-scripts adds.
CLASSES: Mapping[str, tuple[str, Mapping[str, str]]] = {
    "pagedadamw": ("bitsandbytes.optim.PagedAdamW", {}),
    "pagedadamw32bit": ("bitsandbytes.optim.PagedAdamW32bit", {}),
    "pagedlion8bit": ("bitsandbytes.optim.PagedLion8bit", {}),
    "sgdnesterov": ("torch.optim.SGD", {"nesterov": "True", "momentum": "0.9"}),
    "radamschedulefree": (f"{_OPTIMIZER_CLASSES}.ScheduleFreeRAdam", {}),
    "sgdschedulefree": (f"{_OPTIMIZER_CLASSES}.ScheduleFreeSGD", {}),
    "dadaptadagrad": (f"{_OPTIMIZER_CLASSES}.DAdaptAdaGrad", {}),
    "dadaptadan": (f"{_OPTIMIZER_CLASSES}.DAdaptAdan", {}),
    "dadaptlion": (f"{_OPTIMIZER_CLASSES}.DAdaptLion", {}),
    "dadaptsgd": (f"{_OPTIMIZER_CLASSES}.DAdaptSGD", {}),
}
_ADAM_DECAY = 0.01  # of AdamW in PyTorch and in bitsandbytes
_COSINE_WITH_MINIMUM = "cosine_with_min_lr"


def read_optimizer(given: Mapping[str, Any], warmup: bool) -> tuple[dict[str, Any], list[LeftOut]]:
    """Return the settings of an optimizer and its arguments, and what was left out.

    `given` has optimizer_type, optimizer_args, use_8bit_adam and use_lion_optimizer. `warmup` says whether the learning
    rate warms up. `lr_scheduler` is among the settings if the optimizer determines it.
    """
    name = str(given.get("optimizer_type") or "").strip()
    if not name:
        name = "AdamW8bit" if given.get("use_8bit_adam") else "Lion" if given.get("use_lion_optimizer") else "AdamW"
    arguments = parse_pairs(given.get("optimizer_args"))
    optimizer = _BY_NAME.get(_without_submodules(name).lower())
    if optimizer is None:
        return _read_class(name, arguments)
    values: dict[str, Any] = {"optimizer": optimizer, "optimizer_type": ""}
    values["weight_decay"] = arguments.pop("weight_decay", OPTIMIZERS[optimizer].weight_decay)
    studio = {own: ours for own, (_, ours) in OPTIMIZERS[optimizer].arguments.items()}
    for own, (library, _) in OPTIMIZERS[optimizer].arguments.items():
        arguments.setdefault(own, library)
    if optimizer is Optimizer.PRODIGY:
        arguments.setdefault("safeguard_warmup", "False")
        studio["safeguard_warmup"] = str(warmup)
    if optimizer is Optimizer.ADAFACTOR:
        studio |= _read_adafactor(arguments, values, warmup)
    values["optimizer_args"] = [
        f"{own}={value}" for own, value in arguments.items() if own not in studio or not same_value(value, studio[own])
    ]
    return values, []


def _without_submodules(path: str) -> str:
    package, _, rest = path.partition(".")
    return f"{package}.{rest.rpartition('.')[2]}" if rest else package


def _read_adafactor(arguments: dict[str, str], values: dict[str, Any], warmup: bool) -> dict[str, str]:
    """Complete Adafactor's arguments as transformers and sd-scripts do, and return what the studio uses without them.

    With its relative step, which is the default there, Adafactor sets its own rates.
    """
    arguments.setdefault("scale_parameter", "True")
    arguments.setdefault("warmup_init", "False")
    relative = is_true(arguments.pop("relative_step", "True")) or is_true(arguments["warmup_init"])
    if relative:
        values["lr_scheduler"] = Scheduler.ADAFACTOR
    return {"scale_parameter": str(relative), "warmup_init": str(relative and warmup)}


def _read_class(name: str, arguments: dict[str, str]) -> tuple[dict[str, Any], list[LeftOut]]:
    """Return the settings of an optimizer by its class; one that the studio cannot find becomes AdamW."""
    path, added = CLASSES.get(name.lower(), (name if "." in name else "", {}))
    if not path:
        why = "The studio does not have this optimizer; AdamW is set instead, without its arguments."
        left_out = [LeftOut("optimizer_type", name, why)]
        return {"optimizer": Optimizer.ADAMW, "optimizer_type": "", "optimizer_args": []}, left_out
    weight_decay = arguments.pop("weight_decay", _ADAM_DECAY if "adamw" in path.lower() else 0.0)
    pairs = [f"{own}={value}" for own, value in {**added, **arguments}.items()]
    return {"optimizer_type": path, "weight_decay": weight_decay, "optimizer_args": pairs}, []


def optimizer_arguments(recipe: Recipe) -> dict[str, Any]:
    """Return optimizer_type and optimizer_args with which sd-scripts makes a recipe's optimizer."""
    given = parse_pairs(recipe.optimizer_args)
    if recipe.optimizer_type:
        known = {path: (name, added) for name, (path, added) in CLASSES.items()}
        name, added = known.get(recipe.optimizer_type, (recipe.optimizer_type, {}))
        given = {own: value for own, value in given.items() if own not in added}
        arguments = {"weight_decay": format_number(recipe.weight_decay), **given}
        return {"optimizer_type": name, "optimizer_args": format_pairs(arguments)}
    names = OPTIMIZERS[recipe.optimizer]
    warmup = recipe.lr_warmup_steps > 0
    studio = {own: ours for own, (_, ours) in names.arguments.items()}
    if recipe.optimizer is Optimizer.PRODIGY:
        studio["safeguard_warmup"] = str(warmup)
    if recipe.optimizer is Optimizer.ADAFACTOR:
        relative = recipe.lr_scheduler is Scheduler.ADAFACTOR
        studio |= {
            "relative_step": str(relative),
            "scale_parameter": str(relative),
            "warmup_init": str(relative and warmup),
        }
    arguments = {**studio, "weight_decay": format_number(recipe.weight_decay), **given}
    return {"optimizer_type": names.name, "optimizer_args": format_pairs(arguments)}


def read_rates(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the learning rates of UNet and text encoders.

    `given` has learning_rate, unet_lr, text_encoder_lr, network_train_unet_only and network_train_text_encoder_only.
    """
    rate = given.get("learning_rate")
    rate = _DEFAULT_RATE if rate is None else _single(rate)
    unet, text = given.get("unet_lr"), given.get("text_encoder_lr")
    rates = [_single(item) for item in text] if isinstance(text, list | tuple) else [_single(text)]
    text = rates[0] if rates and rates[0] is not None else rate
    values = {"unet_lr": rate if unet is None else _single(unet), "text_encoder_lr": text, "text_encoder_lr2": None}
    if len(rates) > 1 and rates[1] != text:
        values["text_encoder_lr2"] = rates[1]
    if given.get("network_train_unet_only"):
        values |= {"text_encoder_lr": 0.0, "text_encoder_lr2": None}
    if given.get("network_train_text_encoder_only"):
        values["unet_lr"] = 0.0
    return values


def _single(value: Any) -> Any:
    """Return a value as it is, one with several parts as text, which is not a rate."""
    return str(value) if isinstance(value, list | tuple | dict) else value


def rate_arguments(recipe: Recipe) -> dict[str, Any]:
    """Return the arguments of the learning rates; a rate of 0 means that this part is not trained."""
    rates = recipe.model_rates
    found: dict[str, Any] = {"learning_rate": next(rate for rate in rates.values() if rate)}
    if recipe.unet_lr:
        found["unet_lr"] = recipe.unet_lr
    else:
        found["network_train_text_encoder_only"] = True
    if recipe.trains_text_encoders:
        found["text_encoder_lr"] = [rates["te1"], rates["te2"]]
    else:
        found["network_train_unet_only"] = True
    return found


def read_schedule(given: Mapping[str, Any]) -> tuple[dict[str, Any], list[LeftOut]]:
    """Return the settings of the learning rate schedule, and what was left out.

    `given` has lr_scheduler, lr_scheduler_type and the other arguments that begin with lr_scheduler, and
    lr_warmup_steps.
    """
    name = str(given.get("lr_scheduler") or Scheduler.CONSTANT.value).partition(":")[0]
    minimum = given.get("lr_scheduler_min_lr_ratio") or 0.0
    left_out = []
    if name == _COSINE_WITH_MINIMUM:
        name = Scheduler.COSINE.value
    else:
        minimum = 0.0
    if name not in list(Scheduler):
        why = "The studio does not have this schedule; constant_with_warmup is set instead. See lr_scheduler_type."
        left_out.append(LeftOut("lr_scheduler", name, why))
        name = Scheduler.CONSTANT_WITH_WARMUP.value
    class_name = str(given.get("lr_scheduler_type") or "")
    pairs = [f"{own}={value}" for own, value in parse_pairs(given.get("lr_scheduler_args")).items()]
    if pairs and not class_name:
        left_out.append(
            LeftOut("lr_scheduler_args", " ".join(pairs), "Only a class of lr_scheduler_type has arguments.")
        )
        pairs = []
    return {
        "lr_scheduler": Scheduler(name),
        "lr_scheduler_num_cycles": given.get("lr_scheduler_num_cycles") or 1,
        "lr_scheduler_power": given.get("lr_scheduler_power") or 1.0,
        "lr_scheduler_min_lr_ratio": minimum,
        "lr_scheduler_type": class_name,
        "lr_scheduler_args": pairs,
        "lr_warmup_steps": given.get("lr_warmup_steps") or 0,
    }, left_out


def schedule_arguments(recipe: Recipe) -> tuple[dict[str, Any], list[LeftOut]]:
    """Return the arguments of a recipe's schedule, and the settings that sd-scripts does not have."""
    schedule, left_out = recipe.lr_scheduler, []
    found: dict[str, Any] = {"lr_scheduler": schedule.value}
    if schedule is Scheduler.REX:
        left_out.append(
            LeftOut("lr_scheduler", schedule.value, "sd-scripts does not have it; cosine is written instead.")
        )
        found["lr_scheduler"] = Scheduler.COSINE.value
    if recipe.lr_scheduler_type:
        found["lr_scheduler_type"] = recipe.lr_scheduler_type
        found["lr_scheduler_args"] = format_pairs(parse_pairs(recipe.lr_scheduler_args))
    elif schedule is Scheduler.COSINE and recipe.lr_scheduler_min_lr_ratio:
        found["lr_scheduler"] = _COSINE_WITH_MINIMUM
        found["lr_scheduler_min_lr_ratio"] = recipe.lr_scheduler_min_lr_ratio
    elif schedule is Scheduler.COSINE_WITH_RESTARTS:
        found["lr_scheduler_num_cycles"] = recipe.lr_scheduler_num_cycles
    elif schedule is Scheduler.POLYNOMIAL:
        found["lr_scheduler_power"] = recipe.lr_scheduler_power
    # sd-scripts stops at a warm-up that the schedule does not use
    uses_warmup = not recipe.lr_scheduler_type and schedule not in (Scheduler.CONSTANT, Scheduler.ADAFACTOR)
    if recipe.lr_warmup_steps and uses_warmup:
        steps = recipe.lr_warmup_steps
        found["lr_warmup_steps"] = steps if steps < 1 else int(steps)
    return found, left_out
