"""The values that settings choose from, named as users of LoRA trainers know them."""

from __future__ import annotations

from enum import IntEnum, StrEnum


class NetworkType(StrEnum):
    """How the trained weights change a layer of the base."""

    LORA = "LoRA"
    LOCON = "LoCon"
    DORA = "DoRA"
    LOHA = "LoHa"
    LOKR = "LoKr"


class TrainLayers(StrEnum):
    """Which layers are trained, each choice with all that the one before has."""

    ATTENTION = "attention"
    ATTENTION_FF = "attention_ff"
    LINEAR = "linear"
    ALL = "all"


class SaveFormat(StrEnum):
    """Whose names the tensors of a LoRA file have."""

    KOHYA = "kohya"
    DIFFUSERS = "diffusers"


class Optimizer(StrEnum):
    """Optimizers that the trainer knows how to set up."""

    ADAFACTOR = "Adafactor"
    ADAMW8BIT = "AdamW8bit"
    PRODIGY = "Prodigy"
    ADAMW = "AdamW"
    CAME = "CAME"
    LION8BIT = "Lion8bit"
    PAGED_ADAMW8BIT = "PagedAdamW8bit"
    SCHEDULE_FREE = "AdamWScheduleFree"
    PRODIGY_PLUS = "ProdigyPlusScheduleFree"


class Scheduler(StrEnum):
    """Learning-rate schedules over the optimizer's steps."""

    CONSTANT = "constant"
    CONSTANT_WITH_WARMUP = "constant_with_warmup"
    LINEAR = "linear"
    COSINE = "cosine"
    COSINE_WITH_RESTARTS = "cosine_with_restarts"
    POLYNOMIAL = "polynomial"
    REX = "rex"
    ADAFACTOR = "adafactor"


class Precision(StrEnum):
    """Arithmetic of the forward and backward pass; the LoRA's own weights are always fp32."""

    AUTO = "auto"
    BF16 = "bf16"
    FP16 = "fp16"
    FP32 = "fp32"


class BasePrecision(StrEnum):
    """How the frozen weights of the UNet's transformer blocks are held; `full` is in the run's own precision."""

    FULL = "full"
    INT8 = "int8"
    NF4 = "nf4"


class GradientCheckpointing(StrEnum):
    """Which blocks of the UNet are computed twice instead of keeping what they gave; `auto`: as many as needed."""

    AUTO = "auto"
    ON = "on"
    OFF = "off"


class PredictionType(StrEnum):
    """What the UNet predicts; `auto` takes it from the base model."""

    AUTO = "auto"
    EPSILON = "epsilon"
    V_PREDICTION = "v_prediction"


class TokenLimit(IntEnum):
    """Tokens of a caption that are read: the text encoders take 75 at a time."""

    ONE = 75
    TWO = 150
    THREE = 225


class MaskedLoss(StrEnum):
    """Where the masks come from that say which parts of an image count."""

    OFF = "off"
    ALPHA = "alpha"
    FILES = "files"


class ZeroTerminalSnr(StrEnum):
    """Whether the noise schedule ends in pure noise; `auto` takes it from the base model."""

    AUTO = "auto"
    ON = "on"
    OFF = "off"


class TimestepSampling(StrEnum):
    """How the timesteps of a range are drawn."""

    UNIFORM = "uniform"
    LOGIT_NORMAL = "logit_normal"
    HIGH_NOISE = "high_noise"
    LOW_NOISE = "low_noise"


class LossType(StrEnum):
    """How an error is measured."""

    L2 = "l2"
    HUBER = "huber"
    SMOOTH_L1 = "smooth_l1"


class HuberSchedule(StrEnum):
    """How the threshold of the Huber losses changes over the timesteps."""

    CONSTANT = "constant"
    EXPONENTIAL = "exponential"
    SNR = "snr"


class LoraKind(StrEnum):
    """What a LoRA teaches."""

    CHARACTER = "character"
    STYLE = "style"
    CONCEPT = "concept"


class ExistingCaptions(StrEnum):
    """What tagging does with a caption that is already there."""

    IGNORE = "ignore"
    APPEND = "append"
    OVERWRITE = "overwrite"


class TagPosition(StrEnum):
    """Where tags are added to a caption."""

    FRONT = "front"
    AFTER_TRIGGER = "after-trigger"
    BACK = "back"
