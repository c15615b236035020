"""Settings of the learning rates: of the models, of the UNet's blocks, and of LoRA+."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import field_validator, model_validator

from lora_studio.settings.block_rates import block_rates, parse_block_rates
from lora_studio.settings.blocks import PART_SIZES
from lora_studio.settings.choices import NetworkType
from lora_studio.settings.declare import MAX_STEPS, Group, Settings, setting, whole_steps

BLOCK_WEIGHTS = ("down_lr_weight", "mid_lr_weight", "up_lr_weight")
LORAPLUS_RATIOS = ("loraplus_lr_ratio", "loraplus_unet_lr_ratio", "loraplus_text_encoder_lr_ratio")


def _loraplus_ratio(label: str, why: str) -> Any:
    return setting(None, label=label, group=Group.RATES, why=why, gt=0, le=1000)


def _block_weight(label: str, why: str) -> Any:
    return setting("", label=label, group=Group.RATES, why=why, max_length=500)


class RateSettings(Settings):
    """Learning rates, before the schedule."""

    unet_lr: float = setting(label="UNet learning rate", group=Group.RATES, advice="unet_lr", simple=True, ge=0, le=10)
    text_encoder_lr: float = setting(
        label="Text encoder learning rate",
        group=Group.RATES,
        advice="text_encoder_lr",
        simple=True,
        ge=0,
        le=10,
    )
    text_encoder_lr2: float | None = setting(
        None,
        label="Second text encoder learning rate",
        group=Group.RATES,
        why="Rate of the larger text encoder (OpenCLIP bigG), if it is to differ from that of the first (CLIP L); 0 "
        "leaves it untrained. Empty: the same for both, since they read the same captions.",
        ge=0,
        le=10,
    )
    loraplus_lr_ratio: float | None = _loraplus_ratio(
        "LoRA+ ratio",
        "Multiplies the rate of the LoRA's up matrices (B), which begin at zero and can learn faster (Hayou et al. "
        "2024); 16 is the paper's value, with a lower learning rate. Empty: one rate for all.",
    )
    loraplus_unet_lr_ratio: float | None = _loraplus_ratio(
        "LoRA+ ratio of the UNet", "Another LoRA+ ratio for the UNet. Empty: the LoRA+ ratio."
    )
    loraplus_text_encoder_lr_ratio: float | None = _loraplus_ratio(
        "LoRA+ ratio of the text encoders", "Another LoRA+ ratio for the text encoders. Empty: the LoRA+ ratio."
    )
    down_lr_weight: str = _block_weight(
        "Block rates: down",
        "Factors on the UNet's learning rate for its input blocks in0 to in8: 9 numbers, a curve like cosine+.2 (sine, "
        "linear, reverse_linear, zeros), or single blocks like in7-8=0.5; 0 leaves a block untrained. Empty: 1.",
    )
    mid_lr_weight: str = _block_weight(
        "Block rates: mid",
        "Factors for the middle blocks mid0 to mid2: 3 numbers, or blocks like mid=0.5. Empty: 1.",
    )
    up_lr_weight: str = _block_weight(
        "Block rates: up",
        "Factors for the output blocks out0 to out8: 9 numbers, a curve like sine+.2, or single blocks like out0=0.5. "
        "Content is mostly in out0, style in out1 (B-LoRA, Frenkel et al. 2024). Empty: 1.",
    )
    block_lr_zero_threshold: float = setting(
        0.0,
        label="Block rates: zero below",
        group=Group.RATES,
        why="Leaves blocks untrained whose factor is not above this one: with cosine+.2 and 0.4 the last two. 0 trains "
        "all that have a factor.",
        ge=0,
        le=100,
    )

    stop_text_encoder_training: float = setting(
        0,
        label="Stop text encoder training",
        group=Group.RATES,
        unit="steps",
        why="Step from which the text encoders stay as they are, or a fraction of the run if below 1: 0.5 lets them "
        "learn the trigger word and spares the later steps, which are then faster. 0 trains them until the end.",
        ge=0,
        le=MAX_STEPS,
        only_with="text_encoder_lr",
    )

    @model_validator(mode="before")
    @classmethod
    def _split_text_encoder_rates(cls, values: Any) -> Any:
        """Accept `text_encoder_lr` as a list of one or two rates, as in sd-scripts."""
        rates = values.get("text_encoder_lr") if isinstance(values, dict) else None
        if not isinstance(rates, list):
            return values
        if len(rates) not in (1, 2):
            raise ValueError(f"text_encoder_lr has {len(rates)} rates, but SDXL has two text encoders. Give 1 or 2.")
        return {**values, **dict(zip(("text_encoder_lr", "text_encoder_lr2"), rates, strict=False))}

    @field_validator(*BLOCK_WEIGHTS)
    @classmethod
    def _valid_block_weights(cls, value: str, info: Any) -> str:
        parse_block_rates(dict(zip(BLOCK_WEIGHTS, PART_SIZES, strict=True))[info.field_name], value)
        return value

    @field_validator("stop_text_encoder_training")
    @classmethod
    def _whole_stop_step(cls, value: float) -> float:
        return whole_steps(value)

    @property
    def model_rates(self) -> dict[str, float]:
        """The learning rate of each model, by kohya's names; 0 for one that is not trained."""
        second = self.text_encoder_lr if self.text_encoder_lr2 is None else self.text_encoder_lr2
        return {"unet": self.unet_lr, "te1": self.text_encoder_lr, "te2": second}

    @property
    def named_rates(self) -> dict[str, float]:
        """The learning rates above 0, by their settings' names."""
        rates = {name: getattr(self, name) for name in ("unet_lr", "text_encoder_lr", "text_encoder_lr2")}
        return {name: rate for name, rate in rates.items() if rate}

    @property
    def trains_text_encoders(self) -> bool:
        """True if at least one text encoder is trained."""
        return bool(self.model_rates["te1"] or self.model_rates["te2"])

    @property
    def block_factors(self) -> Mapping[str, float]:
        """The factor on the learning rate of each block of the UNet."""
        return block_rates(self.down_lr_weight, self.mid_lr_weight, self.up_lr_weight, self.block_lr_zero_threshold)

    def layer_rate(self, model: str, block: str = "") -> float:
        """Return the learning rate of a layer of a model and, in the UNet, a block; 0 leaves it untrained."""
        return self.model_rates[model] * (self.block_factors.get(block, 1.0))

    def up_ratio(self, model: str) -> float:
        """Return the factor on the rate of a model's up matrices (LoRA+)."""
        own = self.loraplus_unet_lr_ratio if model == "unet" else self.loraplus_text_encoder_lr_ratio
        return own or self.loraplus_lr_ratio or 1.0

    @property
    def trained_rates(self) -> set[float]:
        """The distinct learning rates of all trained weights."""
        factors = {"unet": set(self.block_factors.values())}
        return {
            rate * factor * up
            for model, rate in self.model_rates.items()
            for factor in factors.get(model, {1.0})
            for up in (1.0, self.up_ratio(model))
            if rate and factor
        }


def rate_problems(settings: RateSettings, network_type: NetworkType) -> list[str]:
    """Return a message for each setting of learning rates that cannot work with the others."""
    problems = []
    rates = settings.model_rates
    if not any(rates.values()):
        problems.append("unet_lr and text_encoder_lr are both 0: nothing would be trained. Set one above 0.")
    if settings.stop_text_encoder_training and not settings.unet_lr:
        problems.append(
            f"stop_text_encoder_training is {settings.stop_text_encoder_training:g}, but unet_lr is 0: nothing would "
            "be trained after it. Set unet_lr above 0, or stop_text_encoder_training to 0."
        )
    ratios = {name: ratio for name in LORAPLUS_RATIOS if (ratio := getattr(settings, name)) is not None}
    if ratios and network_type in (NetworkType.LOHA, NetworkType.LOKR):
        name, ratio = next(iter(ratios.items()))
        problems.append(
            f"{name} is {ratio:g}, but {network_type.value} has no up matrices. Leave it empty, or set network_type "
            "to LoRA."
        )
    if settings.unet_lr and not any(settings.block_factors.values()) and not settings.trains_text_encoders:
        problems.append(
            "down_lr_weight, mid_lr_weight and up_lr_weight leave every block at 0: nothing would be trained. Raise "
            "one, or lower block_lr_zero_threshold."
        )
    return problems
