"""Settings of the optimizer, of how long it runs and of the learning rate schedule."""

from __future__ import annotations

import re
from typing import Any

from pydantic import field_validator

from lora_studio.settings.choices import Optimizer, Scheduler
from lora_studio.settings.declare import MAX_STEPS, Group, Settings, setting, whole_steps

# Between two KEY=VALUE: spaces, lines or a comma, but not those inside a value like 0.9, 0.99. kohya's presets quote
# each pair: "d0=1e-5" "d_coef=1.0".
ARGUMENT_SEPARATOR = re.compile(r"[\s,]+(?=[\"']?[^\W\d]\w*\s*=)")


class OptimizationSettings(Settings):
    """Optimizer, batches, epochs and the learning rate schedule."""

    optimizer: Optimizer = setting(label="Optimizer", group=Group.OPTIMIZER, advice="optimizer", simple=True)
    optimizer_type: str = setting(
        "",
        label="Optimizer class",
        group=Group.OPTIMIZER,
        why="package.module.Class of an installed library, instead of the optimizer above: torch.optim.RAdam or "
        "pytorch_optimizer.AdEMAMix. It gets the learning rates, and weight decay if it has that. Empty: the optimizer "
        "above.",
        max_length=200,
        pattern=r"^\s*(([^\W\d]\w*\.)+[^\W\d]\w*)?\s*$",
    )
    weight_decay: float = setting(
        0.01,
        label="Weight decay",
        group=Group.OPTIMIZER,
        why="Pulls the weights slightly towards zero at each step; 0.01 is PyTorch's default.",
        ge=0,
        le=1,
    )
    max_grad_norm: float = setting(
        1.0,
        label="Max gradient norm",
        group=Group.OPTIMIZER,
        why="Clips larger gradients, so that one odd batch does no harm; 0 turns clipping off.",
        ge=0,
        le=1e6,
    )
    scale_weight_norms: float = setting(
        0.0,
        label="Max weight norm",
        group=Group.OPTIMIZER,
        why="Scales a layer's change down to this Frobenius norm after each step, so that no single layer burns in: 1 "
        "is strict, 5 mild. 0 is off: at sound learning rates the norms stay low by themselves.",
        ge=0,
        le=1000,
    )
    optimizer_args: list[str] = setting(
        [],
        label="Optimizer arguments",
        group=Group.OPTIMIZER,
        why="Extra arguments as KEY=VALUE, one per line: d_coef=2 or betas=0.9,0.99. Empty: values that are known to "
        "work.",
        max_length=32,
    )
    ema_decay: float = setting(
        0.0,
        label="EMA decay",
        group=Group.OPTIMIZER,
        why="Saves and samples the average of the weights over about the last 1 / (1 - decay) steps, which evens out "
        "fluctuations: 0.99 for hundreds of steps, 0.999 for thousands; 0 is off.",
        ge=0,
        lt=1,
    )

    epochs: int = setting(label="Epochs", group=Group.SCHEDULE, advice="epochs", simple=True, ge=1, le=10_000)
    batch_size: int = setting(label="Batch size", group=Group.SCHEDULE, advice="batch_size", simple=True, ge=1, le=256)
    repeats: int | None = setting(
        None,
        label="Repeats",
        group=Group.SCHEDULE,
        why="How often each image is used per epoch. Empty: from the folder name (10_name), else 1.",
        ge=1,
        le=10_000,
    )
    gradient_accumulation_steps: int = setting(
        1,
        label="Gradient accumulation",
        group=Group.SCHEDULE,
        why="Batches per optimizer step: a larger effective batch size without its memory.",
        ge=1,
        le=1024,
    )
    lr_scheduler: Scheduler = setting(
        Scheduler.COSINE,
        label="Learning rate scheduler",
        group=Group.SCHEDULE,
        why="cosine lowers the rate smoothly to zero, so that the last epochs refine instead of wandering.",
    )
    lr_warmup_steps: float = setting(
        0,
        label="Warmup",
        group=Group.SCHEDULE,
        unit="steps",
        why="Steps over which the rate rises from zero, or a fraction of the run if below 1 (0.05); helps Prodigy and "
        "high rates.",
        ge=0,
        le=MAX_STEPS,
    )
    lr_scheduler_num_cycles: int = setting(
        3,
        label="Scheduler cycles",
        group=Group.SCHEDULE,
        why="How often cosine with restarts starts over at the full rate.",
        only_with="lr_scheduler=cosine_with_restarts",
        ge=1,
        le=100,
    )
    lr_scheduler_power: float = setting(
        1.0,
        label="Polynomial power",
        group=Group.SCHEDULE,
        why="1 falls in a straight line; 2 falls early and levels off slowly.",
        gt=0,
        le=10,
        only_with="lr_scheduler=polynomial",
    )
    lr_scheduler_min_lr_ratio: float = setting(
        0.0,
        label="Cosine minimum",
        group=Group.SCHEDULE,
        why="Fraction of the learning rate at which cosine ends: with 0.1 the last epochs still learn. 0 lets them "
        "settle.",
        ge=0,
        lt=1,
        only_with="lr_scheduler=cosine",
    )
    lr_scheduler_type: str = setting(
        "",
        label="Scheduler class",
        group=Group.SCHEDULE,
        why="A class of torch.optim.lr_scheduler, like CosineAnnealingLR, or package.module.Class of any other "
        "library, instead of the scheduler and the warmup above. Empty: these.",
        max_length=200,
        pattern=r"^\s*(([^\W\d]\w*\.)*[^\W\d]\w*)?\s*$",
    )
    lr_scheduler_args: list[str] = setting(
        [],
        label="Scheduler arguments",
        group=Group.SCHEDULE,
        why="Arguments of the scheduler class as KEY=VALUE, one per line: T_max=1000 or eta_min=1e-6. It is stepped "
        "once per optimizer step.",
        max_length=32,
        only_with="lr_scheduler_type",
    )
    max_train_steps: int | None = setting(
        None,
        label="Max steps",
        group=Group.SCHEDULE,
        unit="steps",
        why="Ends the run at this step, even within an epoch. Empty: all epochs are trained.",
        ge=1,
        le=MAX_STEPS,
    )
    seed: int = setting(
        42, label="Seed", group=Group.SCHEDULE, why="The same seed gives the same run.", ge=0, le=2**32 - 1
    )

    @property
    def schedule_name(self) -> str:
        """The name of the schedule in use, of the class if there is one."""
        return self.lr_scheduler_type.rpartition(".")[2] or self.lr_scheduler.value

    @property
    def optimizer_title(self) -> str:
        """The name of the optimizer in use, with its module if it is a class by name."""
        return self.optimizer_type or self.optimizer.value

    @field_validator("lr_scheduler_type", "optimizer_type")
    @classmethod
    def _stripped(cls, value: str) -> str:
        return value.strip()

    @field_validator("optimizer_args", "lr_scheduler_args", mode="before")
    @classmethod
    def _split_arguments(cls, value: Any) -> Any:
        if isinstance(value, str) and value.strip():
            return ARGUMENT_SEPARATOR.split(unquoted(value.strip(" ,\n")))
        return value or []

    @field_validator("optimizer_args", "lr_scheduler_args")
    @classmethod
    def _named_arguments(cls, value: list[str]) -> list[str]:
        pairs = [unquoted(text.strip()).partition("=") for text in value]
        for text, (name, _, content) in zip(value, pairs, strict=True):
            if not name.strip().isidentifier() or not content.strip():
                raise ValueError(f"{text!r} is not KEY=VALUE; write for example betas=0.9,0.99")
        return [f"{name.strip()}={content.strip()}" for name, _, content in pairs]

    @field_validator("lr_warmup_steps")
    @classmethod
    def _whole_steps(cls, value: float) -> float:
        return whole_steps(value)


def unquoted(text: str) -> str:
    """Return a text without the pair of quotes around the whole of it, if there is one."""
    quoted = len(text) > 1 and text[0] == text[-1] and text[0] in "\"'" and text[0] not in text[1:-1]
    return text[1:-1] if quoted else text
