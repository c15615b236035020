"""The recipe: every setting of a training that may be shared between projects."""

from __future__ import annotations

import re
import tomllib
from typing import Any, Self

from pydantic import field_validator, model_validator

from lora_studio.errors import InputError
from lora_studio.settings.block_dims import parse_block_dims
from lora_studio.settings.choices import (
    BasePrecision,
    GradientCheckpointing,
    HuberSchedule,
    LossType,
    MaskedLoss,
    NetworkType,
    Optimizer,
    Precision,
    PredictionType,
    SaveFormat,
    Scheduler,
    TimestepSampling,
    TokenLimit,
    TrainLayers,
    ZeroTerminalSnr,
)
from lora_studio.settings.declare import Group, Settings, setting, split_lines

# Between two KEY=VALUE: spaces, lines or a comma, but not those inside a value like 0.9, 0.99.
ARGUMENT_BREAK = re.compile(r"[\s,]+(?=[^\W\d]\w*\s*=)")


class Recipe(Settings):
    """What to learn and how: everything that may be shared between projects. Never holds a path."""

    network_dim: int = setting(
        label="Network dim", group=Group.NETWORK, advice="network_dim", simple=True, ge=1, le=512
    )
    network_alpha: float = setting(
        label="Network alpha", group=Group.NETWORK, advice="network_alpha", simple=True, gt=0, le=1024
    )
    network_type: NetworkType = setting(
        NetworkType.LORA,
        label="Network type",
        group=Group.NETWORK,
        why="LoRA works everywhere. LoCon adds convolutions (styles), DoRA learns length and direction apart, LoHa and "
        "LoKr (LyCORIS) say more in less.",
    )
    train_layers: TrainLayers = setting(
        TrainLayers.ATTENTION_FF,
        label="Layers",
        group=Group.NETWORK,
        why="attention_ff is what kohya trains (attention, feed-forward, projections); linear adds the resnets' linear "
        "layers, all the convolutions too. LoCon always trains all.",
    )
    conv_dim: int | None = setting(
        None,
        label="Conv dim",
        group=Group.NETWORK,
        why="Rank of the 3x3 convolutions; only for LoCon, or where all layers train. Empty: the network dim.",
        ge=1,
        le=512,
    )
    conv_alpha: float | None = setting(
        None,
        label="Conv alpha",
        group=Group.NETWORK,
        why="Alpha of the 3x3 convolutions; only for LoCon, or where all layers train. Empty: the share that network "
        "alpha is of network dim.",
        gt=0,
        le=1024,
    )
    rank_stabilized: bool = setting(
        False,
        label="Rank-stabilised (rsLoRA)",
        group=Group.NETWORK,
        why="Scales by alpha / sqrt(dim) instead of alpha / dim (Kalajdzievski 2023), so that high dims learn as fast "
        "as low ones. The alpha in the file is set so that every program gives the same picture.",
    )
    network_dropout: float = setting(
        0.0,
        label="Network dropout",
        group=Group.NETWORK,
        why="Share of the inputs (LoHa, LoKr: of the output rows) that a step leaves out, against learning by heart; "
        "0.1 is mild, 0 off.",
        ge=0,
        le=0.9,
    )
    block_dims: str = setting(
        "",
        label="Dims by block",
        group=Group.NETWORK,
        why="Other dims for single blocks of the UNet, like in4-5=8, mid=16, out0-2=32, or kohya's 23 numbers; 0 "
        "leaves a block out. Alpha stays. Empty: the network dim everywhere.",
        max_length=500,
    )
    lokr_factor: int = setting(
        -1,
        label="LoKr factor",
        group=Group.NETWORK,
        why="Size of the small matrix of LoKr. -1 makes both as square as can be, which is smallest; 4 to 16 "
        "give the large one more to say.",
        ge=-1,
        le=512,
        only_with="network_type=LoKr",
    )
    save_format: SaveFormat = setting(
        SaveFormat.KOHYA,
        label="File format",
        group=Group.NETWORK,
        why="kohya is read by A1111, Forge, ComfyUI and diffusers; diffusers is for scripts with that library (LoHa "
        "and LoKr have no such form).",
    )

    unet_lr: float = setting(
        label="UNet learning rate", group=Group.OPTIMIZER, advice="unet_lr", simple=True, ge=0, le=10
    )
    text_encoder_lr: float = setting(
        label="Text encoder learning rate",
        group=Group.OPTIMIZER,
        advice="text_encoder_lr",
        simple=True,
        ge=0,
        le=10,
    )
    optimizer: Optimizer = setting(label="Optimizer", group=Group.OPTIMIZER, advice="optimizer", simple=True)
    weight_decay: float = setting(
        0.01,
        label="Weight decay",
        group=Group.OPTIMIZER,
        why="Pulls weights gently towards zero.",
        ge=0,
        le=1,
    )
    max_grad_norm: float = setting(
        1.0,
        label="Max gradient norm",
        group=Group.OPTIMIZER,
        why="Clips a step that is too large, so that one odd batch does no harm; 0 switches it off.",
        ge=0,
    )
    optimizer_args: list[str] = setting(
        [],
        label="Optimizer arguments",
        group=Group.OPTIMIZER,
        why="More of the optimizer's own, as KEY=VALUE, one a line: d_coef=2 or betas=0.9,0.99. Empty: those that are "
        "known to work.",
        max_length=32,
    )
    ema_decay: float = setting(
        0.0,
        label="EMA decay",
        group=Group.OPTIMIZER,
        why="Saves and draws an average of the weights over the last 1 / (1 - decay) steps, which evens out the last "
        "wobbles: 0.99 for hundreds of steps, 0.999 for thousands; 0 switches it off.",
        ge=0,
        lt=1,
    )

    epochs: int = setting(label="Epochs", group=Group.SCHEDULE, advice="epochs", simple=True, ge=1, le=10_000)
    batch_size: int = setting(label="Batch size", group=Group.SCHEDULE, advice="batch_size", simple=True, ge=1, le=256)
    repeats: int | None = setting(
        None,
        label="Repeats",
        group=Group.SCHEDULE,
        why="How often an epoch shows each image. Empty: from the folder name (10_name), else 1.",
        ge=1,
        le=10_000,
    )
    gradient_accumulation_steps: int = setting(
        1,
        label="Gradient accumulation",
        group=Group.SCHEDULE,
        why="Batches that make one step: a larger effective batch without its memory.",
        ge=1,
        le=1024,
    )
    lr_scheduler: Scheduler = setting(
        Scheduler.COSINE,
        label="Learning rate schedule",
        group=Group.SCHEDULE,
        why="Cosine lets the rate fall smoothly, so that the last epochs settle instead of wandering.",
    )
    lr_warmup_steps: float = setting(
        0,
        label="Warm-up",
        group=Group.SCHEDULE,
        unit="steps",
        why="Steps in which the rate rises from zero, or their share of the run if below 1 (0.05); helps Prodigy and "
        "high rates.",
        ge=0,
    )
    lr_scheduler_num_cycles: int = setting(
        3,
        label="Restarts",
        group=Group.SCHEDULE,
        why="Number of cycles of cosine with restarts.",
        only_with="lr_scheduler=cosine_with_restarts",
        ge=1,
        le=100,
    )
    lr_scheduler_power: float = setting(
        1.0,
        label="Schedule power",
        group=Group.SCHEDULE,
        why="Power of the polynomial schedule: 1 is a straight line, 2 falls early and settles slowly.",
        gt=0,
        le=10,
        only_with="lr_scheduler=polynomial",
    )
    max_train_steps: int | None = setting(
        None,
        label="Stop after",
        group=Group.SCHEDULE,
        unit="steps",
        why="Ends the run early at this step. Empty: the epochs decide.",
        ge=1,
    )
    seed: int = setting(
        42, label="Seed", group=Group.SCHEDULE, why="The same seed gives the same run.", ge=0, le=2**32 - 1
    )

    noise_offset: float = setting(label="Noise offset", group=Group.OBJECTIVE, advice="noise_offset", ge=0, le=1)
    min_snr_gamma: float = setting(
        5.0,
        label="Min-SNR gamma",
        group=Group.OBJECTIVE,
        why="Keeps easy timesteps from outweighing the rest (Hang et al. 2023); 0 switches it off.",
        ge=0,
        le=100,
    )
    debiased_estimation_loss: bool = setting(
        False,
        label="Debiased estimation loss",
        group=Group.OBJECTIVE,
        why="Another way to weigh timesteps, instead of Min-SNR gamma: more for noisy ones, which decide the "
        "composition (Yu et al. 2023).",
    )
    prediction_type: PredictionType = setting(
        PredictionType.AUTO,
        label="Prediction type",
        group=Group.OBJECTIVE,
        why="Read from the base model; the wrong one gives washed-out colours.",
    )
    zero_terminal_snr: ZeroTerminalSnr = setting(
        ZeroTerminalSnr.AUTO,
        label="Zero terminal SNR",
        group=Group.OBJECTIVE,
        why="Ends the noise schedule in pure noise, for full black and white (Lin et al. 2023). Read from the base "
        "model, which must predict v for it.",
    )
    multires_noise_iterations: int = setting(
        0,
        label="Multires noise iterations",
        group=Group.OBJECTIVE,
        why="Adds noise of ever coarser grain (pyramid noise), with the aim of a noise offset; 6 is usual, 0 switches "
        "it off.",
        ge=0,
        le=64,
    )
    multires_noise_discount: float = setting(
        0.3,
        label="Multires noise discount",
        group=Group.OBJECTIVE,
        why="How much each coarser grain of multires noise counts of the one before: 0.3 is usual, 0.8 is strong.",
        ge=0,
        le=1,
        only_with="multires_noise_iterations",
    )
    min_timestep: int = setting(
        0,
        label="Min timestep",
        group=Group.OBJECTIVE,
        why="Timesteps below it are left out: those of the last touches, where almost nothing is noise.",
        ge=0,
        le=999,
    )
    max_timestep: int = setting(
        1000,
        label="Max timestep",
        group=Group.OBJECTIVE,
        why="Timesteps from it on are left out: those of the first outlines, where almost all is noise.",
        ge=1,
        le=1000,
    )
    timestep_sampling: TimestepSampling = setting(
        TimestepSampling.UNIFORM,
        label="Timestep sampling",
        group=Group.OBJECTIVE,
        why="Uniform is what SDXL was trained with. logit_normal prefers the middle, high_noise composition and style, "
        "low_noise detail.",
    )
    loss_type: LossType = setting(
        LossType.L2,
        label="Loss type",
        group=Group.OBJECTIVE,
        why="huber and smooth_l1 grow slower for large errors, so that a few odd images do less harm.",
    )
    huber_c: float = setting(
        0.1,
        label="Huber c",
        group=Group.OBJECTIVE,
        why="Where huber and smooth_l1 turn from a square to a straight line: less is more robust.",
        gt=0,
        le=1,
        only_with="loss_type=huber|smooth_l1",
    )
    huber_schedule: HuberSchedule = setting(
        HuberSchedule.SNR,
        label="Huber schedule",
        group=Group.OBJECTIVE,
        why="snr and exponential lower the threshold with the noise, from 1 to its value, and so keep detail.",
        only_with="loss_type=huber|smooth_l1",
    )
    clip_skip: int = setting(label="Clip skip", group=Group.OBJECTIVE, advice="clip_skip", ge=1, le=12)

    resolution: int = setting(
        label="Resolution", group=Group.DATA, unit="px", advice="resolution", ge=64, le=4096, multiple_of=8
    )
    enable_bucket: bool = setting(label="Aspect-ratio buckets", group=Group.DATA, advice="enable_bucket")
    min_bucket_reso: int = setting(
        256,
        label="Smallest bucket side",
        group=Group.DATA,
        unit="px",
        why="kohya's default.",
        ge=64,
        le=4096,
        only_with="enable_bucket",
    )
    max_bucket_reso: int = setting(
        2048,
        label="Largest bucket side",
        group=Group.DATA,
        unit="px",
        why="Wide enough for panoramas at 1024 px.",
        ge=64,
        le=8192,
        only_with="enable_bucket",
    )
    bucket_reso_steps: int = setting(
        64,
        label="Bucket step",
        group=Group.DATA,
        unit="px",
        why="Sides are multiples of this; SDXL was trained on multiples of 64.",
        ge=8,
        le=512,
        multiple_of=8,
        only_with="enable_bucket",
    )
    bucket_no_upscale: bool = setting(
        True,
        label="Never upscale",
        group=Group.DATA,
        why="A small image trains at its own size: enlarging it teaches blur.",
        only_with="enable_bucket",
    )
    flip_aug: bool = setting(
        False,
        label="Mirror at random",
        group=Group.DATA,
        why="Shows every other image mirrored. Off for what is asymmetric: a parting, a scar, letters.",
    )
    random_crop: bool = setting(
        False,
        label="Crop at random",
        group=Group.DATA,
        why="Cuts at one of 8 places of an image instead of its middle; matters where buckets are off or steps large.",
    )
    masked_loss: MaskedLoss = setting(
        MaskedLoss.OFF,
        label="Masked loss",
        group=Group.DATA,
        why="Learns only what a mask shows white: alpha takes the image's transparency, files take mask/NAME.png or "
        "NAME-masklabel.png beside it.",
    )
    prior_loss_weight: float = setting(
        1.0,
        label="Prior loss weight",
        group=Group.DATA,
        why="How much regularisation images count beside the others; 1 is DreamBooth's value.",
        ge=0,
        le=10,
    )
    validation_split: float = setting(
        0.0,
        label="Held-out share",
        group=Group.DATA,
        why="Images that are not trained on, to see when the run begins to learn the others by heart; a tenth of a set "
        "of 300 or more, none of one below 30.",
        ge=0,
        le=0.5,
    )

    shuffle_caption: bool = setting(
        False,
        label="Shuffle tags",
        group=Group.CAPTIONS,
        why="Puts tags into another order each time, so that no tag leans on its place. Off for sentences.",
    )
    keep_tokens: int = setting(
        0,
        label="Tags kept first",
        group=Group.CAPTIONS,
        why="So many tags at the start are neither shuffled nor dropped; the trigger word never is.",
        ge=0,
        le=255,
    )
    caption_dropout_rate: float = setting(
        0.0,
        label="Caption dropout",
        group=Group.CAPTIONS,
        why="Share of samples that train without a caption: helps a style to show unasked; 0.05 to 0.1 where wanted.",
        ge=0,
        le=1,
    )
    caption_tag_dropout_rate: float = setting(
        0.0,
        label="Tag dropout",
        group=Group.CAPTIONS,
        why="Share of tags that is left out each time, so that no tag is needed; those kept first stay.",
        ge=0,
        le=1,
    )
    caption_variants: int = setting(
        8,
        label="Cached variants of a caption",
        group=Group.CAPTIONS,
        why="With frozen text encoders so many shuffled texts of an image are encoded beforehand; more take disk only.",
        ge=1,
        le=100,
    )
    max_token_length: TokenLimit = setting(
        TokenLimit.ONE,
        label="Tokens read",
        group=Group.CAPTIONS,
        why="What of a caption comes later is not read. 150 or 225 for long captions take a little more memory.",
    )

    mixed_precision: Precision = setting(label="Precision", group=Group.MEMORY, advice="mixed_precision")
    gradient_checkpointing: GradientCheckpointing = setting(
        label="Gradient checkpointing", group=Group.MEMORY, advice="gradient_checkpointing"
    )
    base_precision: BasePrecision = setting(
        BasePrecision.FULL,
        label="Base weights",
        group=Group.MEMORY,
        why="The frozen UNet takes 4.8 GiB; int8 makes it 2.8 with hardly a difference, nf4 (QLoRA) 1.9 with a small "
        "one. A step takes longer: weights are expanded where they are used.",
    )

    sample_prompts: list[str] = setting(
        ["{trigger}"],
        label="Sample prompts, one a line",
        group=Group.SAMPLES,
        why="Drawn with one seed as training goes on, so that you see it learn. {trigger} is your trigger word.",
        max_length=16,
    )
    sample_every_n_epochs: int = setting(
        1,
        label="Sample every",
        group=Group.SAMPLES,
        unit="epochs",
        why="The last epoch is drawn in any case; 0 draws no samples.",
        ge=0,
    )
    sample_every_n_steps: int = setting(
        0,
        label="Sample also every",
        group=Group.SAMPLES,
        unit="steps",
        why="Within long epochs; 0 draws at the ends of epochs alone.",
        ge=0,
    )
    sample_steps: int = setting(
        20,
        label="Sampling steps",
        group=Group.SAMPLES,
        why="20 is enough to judge.",
        ge=1,
        le=200,
    )
    sample_guidance: float = setting(
        6.0,
        label="Sampling CFG",
        group=Group.SAMPLES,
        why="Classifier-free guidance of samples.",
        ge=0,
        le=30,
    )
    save_every_n_epochs: int = setting(
        1,
        label="Checkpoint every",
        group=Group.SAMPLES,
        unit="epochs",
        why="Each is a LoRA that you can compare in the sweep: the best is often not the last.",
        ge=1,
    )
    save_every_n_steps: int = setting(
        0,
        label="Checkpoint also every",
        group=Group.SAMPLES,
        unit="steps",
        why="Within long epochs; 0 saves at the ends of epochs alone.",
        ge=0,
    )
    keep_checkpoints: int = setting(
        0, label="Checkpoints kept", group=Group.SAMPLES, why="The newest so many; 0 keeps all.", ge=0
    )

    @field_validator("sample_prompts", mode="before")
    @classmethod
    def _lines(cls, value: Any) -> Any:
        return split_lines(value)

    @field_validator("gradient_checkpointing", mode="before")
    @classmethod
    def _switch(cls, value: Any) -> Any:
        return ("on" if value else "off") if isinstance(value, bool) else value

    @field_validator("optimizer_args", mode="before")
    @classmethod
    def _arguments(cls, value: Any) -> Any:
        return ARGUMENT_BREAK.split(value.strip(" ,\n")) if isinstance(value, str) and value.strip() else value or []

    @field_validator("optimizer_args")
    @classmethod
    def _named(cls, value: list[str]) -> list[str]:
        pairs = [text.partition("=") for text in value]
        for text, (name, _, content) in zip(value, pairs, strict=True):
            if not name.strip().isidentifier() or not content.strip():
                raise ValueError(f"{text!r} is no argument; write KEY=VALUE, like betas=0.9,0.99")
        return [f"{name.strip()}={content.strip()}" for name, _, content in pairs]

    @field_validator("lr_warmup_steps")
    @classmethod
    def _whole(cls, value: float) -> float:
        if value > 1 and value != int(value):
            raise ValueError("give whole steps, or a share of the run below 1")
        return value

    @field_validator("block_dims")
    @classmethod
    def _blocks(cls, value: str) -> str:
        parse_block_dims(value)
        return value

    @property
    def trains_convolutions(self) -> bool:
        """Whether 3x3 convolutions are among the trained layers."""
        return self.network_type is NetworkType.LOCON or self.train_layers is TrainLayers.ALL

    @model_validator(mode="after")
    def _combinations(self) -> Self:
        problems = _network_problems(self)
        if self.min_timestep >= self.max_timestep:
            problems.append(
                f"min_timestep {self.min_timestep} is not below max_timestep {self.max_timestep}: no timestep is left. "
                "Set 0 and 1000 for all."
            )
        if self.unet_lr == 0 and self.text_encoder_lr == 0:
            problems.append("unet_lr and text_encoder_lr are both 0: nothing would learn. Set one above 0.")
        if self.min_bucket_reso > self.max_bucket_reso:
            problems.append(
                f"min_bucket_reso {self.min_bucket_reso} is above max_bucket_reso {self.max_bucket_reso}. Swap them."
            )
        if self.enable_bucket and self.resolution % self.bucket_reso_steps and not self.bucket_no_upscale:
            multiple = max(1, round(self.resolution / self.bucket_reso_steps)) * self.bucket_reso_steps
            problems.append(
                f"resolution {self.resolution} is no multiple of bucket_reso_steps {self.bucket_reso_steps}. "
                f"Use {multiple}."
            )
        if problems:
            raise ValueError(" ".join(problems))
        return self


def _network_problems(recipe: Recipe) -> list[str]:
    """Settings of the network that contradict each other."""
    kind, problems = recipe.network_type, []
    if kind is NetworkType.LOCON and recipe.train_layers in (TrainLayers.ATTENTION, TrainLayers.LINEAR):
        problems.append(
            f"network_type is LoCon, which trains convolutions, but train_layers is {recipe.train_layers.value}. Set "
            "train_layers to all, or network_type to LoRA."
        )
    for name in ("conv_dim", "conv_alpha"):
        if getattr(recipe, name) is not None and not recipe.trains_convolutions:
            problems.append(
                f"{name} is {getattr(recipe, name):g}, but no convolution is trained. Set network_type to LoCon or "
                f"train_layers to all, or leave {name} empty."
            )
    if recipe.lokr_factor != -1 and kind is not NetworkType.LOKR:
        problems.append(
            f"lokr_factor is {recipe.lokr_factor}, but network_type is {kind.value}. Set it to -1, or network_type to "
            "LoKr."
        )
    if recipe.lokr_factor == 0:
        problems.append("lokr_factor is 0. Use -1, or a factor like 8.")
    if recipe.save_format is SaveFormat.DIFFUSERS and kind in (NetworkType.LOHA, NetworkType.LOKR):
        problems.append(f"save_format is diffusers, which has no {kind.value}. Set save_format to kohya.")
    return problems


def apply_overrides(values: dict[str, Any], overrides: list[str]) -> dict[str, Any]:
    """Apply `KEY=VALUE` texts (as given by `--set`) to plain recipe values and return a new dict.

    Values are read as TOML (numbers, true, lists), else as plain text; an empty value means None.
    Raises InputError for an unknown key or a text without `=`.
    """
    result = dict(values)
    for text in overrides:
        key, separator, value = text.partition("=")
        key = key.strip()
        if not separator or key not in Recipe.model_fields:
            known = ", ".join(sorted(Recipe.model_fields))
            raise InputError(f"--set {text!r}: no such setting.", f"Write KEY=VALUE with one of: {known}.", code="set")
        result[key] = _plain(value.strip())
    return result


def _plain(text: str) -> Any:
    if not text:
        return None
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text
