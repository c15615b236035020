"""Settings of the samples and checkpoints that a run makes."""

from __future__ import annotations

from typing import Any

from pydantic import field_validator

from lora_studio.settings.declare import MAX_STEPS, Group, Settings, setting, split_lines


class SampleSettings(Settings):
    """What a run samples, and when it samples and saves."""

    sample_prompts: list[str] = setting(
        ["{trigger}"],
        label="Sample prompts, one per line",
        group=Group.SAMPLES,
        why="Sampled with the same seed throughout the training, so that you can see it learn. {trigger} is your "
        "trigger word.",
        max_length=16,
    )
    sample_every_n_epochs: int = setting(
        1,
        label="Sample every",
        group=Group.SAMPLES,
        unit="epochs",
        why="The last epoch is always sampled; 0 turns samples off.",
        ge=0,
        le=MAX_STEPS,
    )
    sample_every_n_steps: int = setting(
        0,
        label="Also sample every",
        group=Group.SAMPLES,
        unit="steps",
        why="For long epochs; 0 samples only at the end of an epoch.",
        ge=0,
        le=MAX_STEPS,
    )
    sample_steps: int = setting(
        20,
        label="Sampling steps",
        group=Group.SAMPLES,
        why="20 are enough to judge.",
        ge=1,
        le=200,
    )
    sample_guidance: float = setting(
        6.0,
        label="Sampling CFG scale",
        group=Group.SAMPLES,
        why="Classifier-free guidance scale; 5 to 7 suits SDXL.",
        ge=0,
        le=30,
    )
    save_every_n_epochs: int = setting(
        1,
        label="Save every",
        group=Group.SAMPLES,
        unit="epochs",
        why="Each checkpoint is a LoRA that you can compare in the Test tab: the best is often not the last.",
        ge=1,
        le=MAX_STEPS,
    )
    save_every_n_steps: int = setting(
        0,
        label="Also save every",
        group=Group.SAMPLES,
        unit="steps",
        why="For long epochs; 0 saves only at the end of an epoch.",
        ge=0,
        le=MAX_STEPS,
    )
    keep_checkpoints: int = setting(
        0,
        label="Checkpoints to keep",
        group=Group.SAMPLES,
        why="Keeps only the N most recent; 0 keeps all.",
        ge=0,
        le=MAX_STEPS,
    )

    @field_validator("sample_prompts", mode="before")
    @classmethod
    def _lines(cls, value: Any) -> Any:
        return split_lines(value)
