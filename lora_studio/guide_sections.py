"""The guide's sections in our words: a short summary of each, which a recommendation can link to.

The figures come from `guide`. docs/guide.md is generated from this module by tools/build_guide_page.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from lora_studio.guide import (
    CORRECTIONS,
    EXPERIMENTS,
    KINDS,
    MEMORY_SAVINGS,
    MIN_IMAGES,
    MIN_SIDE,
    ONE_CHANGE,
    OPTIMIZERS,
    RECIPE,
    SUCCESS_INDICATORS,
    TIERS,
    TRIGGER_RULES,
    WARNING_SIGNS,
    WORKFLOW,
)


@dataclass(frozen=True)
class GuideSection:
    """A section of the guide. `anchor` is its id in docs/guide.md; `settings` and `cautions` (codes) are
    those that it is about."""

    anchor: str
    title: str
    text: tuple[str, ...]
    points: tuple[str, ...] = ()
    settings: tuple[str, ...] = ()
    cautions: tuple[str, ...] = ()


SECTIONS = (
    GuideSection(
        "images",
        "Images",
        (MIN_IMAGES.why, MIN_SIDE.why, WORKFLOW["dataset"].thought),
        WORKFLOW["dataset"].todo,
        ("enable_bucket",),
        cautions=("few_images", "small_images", "mixed_resolution", "bucket_waste", "unreadable"),
    ),
    GuideSection(
        "base-model",
        "Base model",
        (
            "Train on the model that the LoRA will be used with, or on the one that its family was trained from. Draw "
            "a few images with it before you train.",
            "What it predicts, noise or v, is a property of the model: a LoRA that is trained for the other one looks "
            "washed out.",
        ),
        tuple(f"{kind.capitalize()}: {advice.base}" for kind, advice in KINDS.items()),
        ("prediction_type", "zero_terminal_snr"),
        cautions=("base_unchecked", "prediction_type_set"),
    ),
    GuideSection(
        "learning-rates",
        "Learning rates",
        (
            f"UNet: {RECIPE['unet_lr'].value:g}. {RECIPE['unet_lr'].why}",
            f"Text encoders: {RECIPE['text_encoder_lr'].value:g}. {RECIPE['text_encoder_lr'].why}",
            *(f"{item.says} {item.holds}" for item in CORRECTIONS if item.setting == "text_encoder_lr"),
        ),
        settings=("unet_lr", "text_encoder_lr", "text_encoder_lr2", "lr_scheduler"),
        cautions=("unet_lr_range", "text_encoder_lr_range", "text_encoder_rate"),
    ),
    GuideSection(
        "network",
        "Network dimension and alpha",
        (
            f"Dimension: {RECIPE['network_dim'].value}. {RECIPE['network_dim'].why}",
            f"Alpha: {RECIPE['network_alpha'].value}. {RECIPE['network_alpha'].why}",
            "A larger dimension makes a larger file and holds more detail; it is not always better.",
        ),
        settings=("network_dim", "network_alpha", "network_type"),
        cautions=("network_dim_range", "alpha_above_dim"),
    ),
    GuideSection(
        "optimizer",
        "Optimizer",
        (
            "Three are recommended: Adafactor, AdamW8bit and Prodigy. Plain AdamW is to be avoided on large datasets.",
            *(f"{item.says} {item.holds}" for item in CORRECTIONS if item.setting == "optimizer"),
        ),
        tuple(f"{name}: {OPTIMIZERS[name].why}" for name in ("Adafactor", "AdamW8bit", "Prodigy", "AdamW", "CAME")),
        ("optimizer",),
        cautions=("optimizer_large",),
    ),
    GuideSection(
        "dataset-size",
        "Dataset size, batch size and epochs",
        (
            f"Batch size: {RECIPE['batch_size'].why}",
            f"Epochs: {RECIPE['epochs'].why}",
            "The studio chooses repeats and epochs within these ranges so that a run has enough steps.",
        ),
        tuple(
            f"{tier.name.capitalize()}, {tier.describe()}: batch size {tier.batch_size[0]} to {tier.batch_size[1]}, "
            f"{tier.epochs[0]} to {tier.epochs[1]} epochs, for {tier.good_for}. {tier.focus}"
            for tier in TIERS
        ),
        ("batch_size", "gradient_accumulation_steps", "epochs", "repeats", "validation_split", "max_train_steps"),
        cautions=("epochs_tier", "batch_size_tier", "held_out_few", "few_steps", "many_steps", "shown_often"),
    ),
    GuideSection(
        "noise-and-clip-skip",
        "Noise offset and clip skip",
        (f"Noise offset: {RECIPE['noise_offset'].why}", f"Clip skip: {RECIPE['clip_skip'].why}"),
        settings=("noise_offset", "clip_skip"),
        cautions=("noise_offset_range", "clip_skip_range"),
    ),
    GuideSection(
        "memory",
        "Memory",
        (RECIPE["gradient_checkpointing"].why, RECIPE["mixed_precision"].why),
        tuple(f"{saving.advice}. {saving.why}" for saving in MEMORY_SAVINGS if saving.guide),
        ("gradient_checkpointing", "mixed_precision"),
        cautions=("memory", "checkpointing"),
    ),
    GuideSection(
        "resolution",
        "Resolution",
        (f"{RECIPE['resolution'].value} px. {RECIPE['resolution'].why}", RECIPE["enable_bucket"].why),
        settings=("resolution",),
    ),
    GuideSection(
        "trigger-word",
        "Trigger word",
        ("A word that the base does not know, which is in every caption and calls what the LoRA learned.",),
        tuple(f"{rule.rule} {rule.why}" for rule in TRIGGER_RULES),
        cautions=("trigger_missing", "trigger_characters", "trigger_style", "trigger_unique", "trigger_memorable"),
    ),
    GuideSection(
        "captions",
        "Captions",
        ("What is in a caption stays changeable in prompts; what is in every image and in no caption is learned.",),
        tuple(f"{kind.capitalize()}: {advice.tagging}" for kind, advice in KINDS.items()),
        cautions=("captions_missing", "trigger_not_in_captions"),
    ),
    GuideSection(
        "time",
        "Time",
        (RECIPE["training_hours"].why, WORKFLOW["plan"].thought),
        WORKFLOW["plan"].todo,
        cautions=("time", "hours"),
    ),
    GuideSection(
        "experiments",
        "What to change first",
        (ONE_CHANGE, WORKFLOW["train"].thought),
        tuple(f"{item.rule}: {item.why}" for item in EXPERIMENTS),
    ),
    GuideSection(
        "warning-signs",
        "Warning signs",
        ("What to do when a run goes wrong.",),
        tuple(f"{sign.sign}: {sign.cause} {sign.remedy}" for sign in WARNING_SIGNS.values()),
    ),
    GuideSection(
        "testing",
        "Testing",
        (RECIPE["strengths"].why, WORKFLOW["test"].thought),
        (*WORKFLOW["test"].todo, *(f"{item.rule} {item.why}" for item in SUCCESS_INDICATORS)),
        ("sample_prompts",),
    ),
)
SECTION_OF_SETTING: Mapping[str, GuideSection] = MappingProxyType(
    {setting: section for section in SECTIONS for setting in section.settings}
)
SECTION_OF_CAUTION: Mapping[str, GuideSection] = MappingProxyType(
    {code: section for section in SECTIONS for code in section.cautions}
)
