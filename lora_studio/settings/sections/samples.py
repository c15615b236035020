"""Settings of the samples and checkpoints that a run makes."""

from __future__ import annotations

from typing import Any

from pydantic import field_validator

from lora_studio.settings.choices import Sampler
from lora_studio.settings.declare import MAX_STEPS, Group, Settings, setting, split_lines


def _side(label: str) -> Any:
    """Declare the width or height of sample images."""
    return setting(
        None,
        label=label,
        group=Group.SAMPLES,
        unit="px",
        why="Empty: the base model's native resolution, whatever the training resolution is.",
        ge=64,
        le=4096,
        multiple_of=8,
    )


class SampleSettings(Settings):
    """What a run samples, and when it samples and saves."""

    sample_prompts: list[str] = setting(
        ["{trigger}"],
        label="Sample prompts, one per line",
        group=Group.SAMPLES,
        why="Sampled with the same seed throughout the training, so that you can see it learn. {trigger} is your "
        "trigger word. A line can end in options of its own, as in kohya's scripts: --n negative prompt, --w width, "
        "--h height, --d seed, --s steps, --l CFG scale, --ss sampler.",
        max_length=16,
    )
    sample_negative_prompt: str = setting(
        label="Negative prompt of samples",
        group=Group.SAMPLES,
        advice="sample_negative_prompt",
        max_length=2000,
    )
    sample_every_n_epochs: int = setting(
        1,
        label="Sample every",
        group=Group.SAMPLES,
        unit="epochs",
        why="The last epoch is always sampled; 0 draws no samples at the ends of epochs.",
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
    sample_at_first: bool = setting(
        False,
        label="Sample before training",
        group=Group.SAMPLES,
        why="Draws each prompt before the first step: what the base makes of it without the LoRA.",
    )
    sample_width: int | None = _side("Sample width")
    sample_height: int | None = _side("Sample height")
    sample_seed: int | None = setting(
        None,
        label="Sample seed",
        group=Group.SAMPLES,
        why="Empty: the seed of the run.",
        ge=0,
        le=2**32 - 1,
    )
    sample_sampler: Sampler = setting(
        Sampler.EULER,
        label="Sampler",
        group=Group.SAMPLES,
        why="euler is a safe choice; those that end in _a add noise at every step.",
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
    feature_model: str = setting(
        label="Model that compares samples",
        group=Group.SAMPLES,
        default="",
        why="Shows whether samples copy training images or become all the same. Empty: the tagger of the dataset. Or "
        "CLIP, SigLIP or DINOv2 as a folder or a Hub repository that is on this machine: nothing is downloaded.",
        max_length=300,
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

    @field_validator("sample_negative_prompt", "feature_model", mode="before")
    @classmethod
    def _none_is_empty(cls, value: Any) -> Any:
        """Accept None, which an empty form field and `--set sample_negative_prompt=` give, as an empty text."""
        return "" if value is None else value
