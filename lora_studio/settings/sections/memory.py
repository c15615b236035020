"""Settings that trade memory for precision or speed."""

from __future__ import annotations

from typing import Any

from pydantic import field_validator

from lora_studio.settings.choices import BasePrecision, GradientCheckpointing, Precision
from lora_studio.settings.declare import Group, Settings, setting


class MemorySettings(Settings):
    """Precision of the computation and of the base's weights, and activation checkpointing."""

    mixed_precision: Precision = setting(label="Mixed precision", group=Group.MEMORY, advice="mixed_precision")
    gradient_checkpointing: GradientCheckpointing = setting(
        label="Gradient checkpointing", group=Group.MEMORY, advice="gradient_checkpointing"
    )
    base_precision: BasePrecision = setting(
        BasePrecision.FULL,
        label="Base model precision",
        group=Group.MEMORY,
        why="The frozen UNet takes 4.8 GiB; int8 takes 2.8 GiB with hardly a difference, nf4 (QLoRA) 1.9 GiB with a "
        "small one. Both make a step slower, since the weights are dequantised when they are used.",
    )

    cuda_graphs: bool = setting(
        False,
        label="CUDA graphs (experimental)",
        group=Group.MEMORY,
        why="Replays a captured step, which may save time at batch size 1 on a fast NVIDIA GPU. Off, because it has "
        "not been measured on one yet; each graph is checked against the plain step, and dropped if it is wrong or not "
        "faster.",
    )

    @field_validator("gradient_checkpointing", mode="before")
    @classmethod
    def _from_bool(cls, value: Any) -> Any:
        return ("on" if value else "off") if isinstance(value, bool) else value
