"""The values that settings can take, named as in other LoRA trainers."""

from __future__ import annotations

from enum import IntEnum, StrEnum


class NetworkType(StrEnum):
    """How the trained weights change a layer of the base model."""

    LORA = "LoRA"
    LOCON = "LoCon"
    DORA = "DoRA"
    LOHA = "LoHa"
    LOKR = "LoKr"


class TrainLayers(StrEnum):
    """Which layers are trained; each choice includes the layers of the one before."""

    ATTENTION = "attention"
    ATTENTION_FF = "attention_ff"
    LINEAR = "linear"
    ALL = "all"


class SaveFormat(StrEnum):
    """Naming scheme of the tensors in a LoRA file."""

    KOHYA = "kohya"
    DIFFUSERS = "diffusers"


class SavePrecision(StrEnum):
    """Data type of the tensors in a LoRA file; `auto` is fp32 after a run in fp32, else fp16. kohya's float is fp32."""

    AUTO = "auto"
    FP16 = "fp16"
    BF16 = "bf16"
    FP32 = "fp32"

    @classmethod
    def _missing_(cls, value: object) -> SavePrecision | None:
        return cls.FP32 if value == "float" else None


class Optimizer(StrEnum):
    """Optimizers that the trainer supports."""

    ADAFACTOR = "Adafactor"
    ADAMW8BIT = "AdamW8bit"
    PRODIGY = "Prodigy"
    ADAMW = "AdamW"
    CAME = "CAME"
    LION8BIT = "Lion8bit"
    PAGED_ADAMW8BIT = "PagedAdamW8bit"
    SCHEDULE_FREE = "AdamWScheduleFree"
    PRODIGY_PLUS = "ProdigyPlusScheduleFree"
    DADAPT_ADAM = "DAdaptAdam"
    LION = "Lion"


class Scheduler(StrEnum):
    """Learning rate schedules over the optimizer steps."""

    CONSTANT = "constant"
    CONSTANT_WITH_WARMUP = "constant_with_warmup"
    LINEAR = "linear"
    COSINE = "cosine"
    COSINE_WITH_RESTARTS = "cosine_with_restarts"
    POLYNOMIAL = "polynomial"
    REX = "rex"
    ADAFACTOR = "adafactor"


class Precision(StrEnum):
    """Data type of the forward and backward pass; the LoRA's own weights are always fp32."""

    AUTO = "auto"
    BF16 = "bf16"
    FP16 = "fp16"
    FP32 = "fp32"


class BasePrecision(StrEnum):
    """Storage format of the frozen weights of the UNet's transformer blocks; `full` is the run's own precision."""

    FULL = "full"
    INT8 = "int8"
    NF4 = "nf4"


class GradientCheckpointing(StrEnum):
    """Which UNet blocks recompute their activations in the backward pass; `auto`: no more than memory requires."""

    AUTO = "auto"
    ON = "on"
    OFF = "off"


class PredictionType(StrEnum):
    """What the UNet predicts; `auto` reads it from the base model."""

    AUTO = "auto"
    EPSILON = "epsilon"
    V_PREDICTION = "v_prediction"


class TokenLimit(IntEnum):
    """Maximum tokens per caption, in multiples of the 75 that the text encoders take at a time."""

    ONE = 75
    TWO = 150
    THREE = 225


class MaskedLoss(StrEnum):
    """Source of the masks that weight the loss: none, the alpha channel or files."""

    OFF = "off"
    ALPHA = "alpha"
    FILES = "files"


class ZeroTerminalSnr(StrEnum):
    """Whether the noise schedule ends in pure noise; `auto` reads it from the base model."""

    AUTO = "auto"
    ON = "on"
    OFF = "off"


class TimestepSampling(StrEnum):
    """Distribution from which timesteps are drawn."""

    UNIFORM = "uniform"
    LOGIT_NORMAL = "logit_normal"
    HIGH_NOISE = "high_noise"
    LOW_NOISE = "low_noise"


class LossType(StrEnum):
    """How the error of a prediction becomes a loss."""

    L2 = "l2"
    HUBER = "huber"
    SMOOTH_L1 = "smooth_l1"


class HuberSchedule(StrEnum):
    """How the threshold of the Huber losses changes over the timesteps."""

    CONSTANT = "constant"
    EXPONENTIAL = "exponential"
    SNR = "snr"


class Sampler(StrEnum):
    """Samplers of images, by kohya's names; those with the prefix `k_` are accepted too."""

    EULER = "euler"
    EULER_A = "euler_a"
    DDIM = "ddim"
    PNDM = "pndm"
    LMS = "lms"
    HEUN = "heun"
    DPM_2 = "dpm_2"
    DPM_2_A = "dpm_2_a"
    DPMSOLVER = "dpmsolver"
    DPMSOLVER_PP = "dpmsolver++"
    DPMSINGLE = "dpmsingle"

    @classmethod
    def _missing_(cls, value: object) -> Sampler | None:
        name = value.removeprefix("k_") if isinstance(value, str) else value
        return next((sampler for sampler in cls if sampler.value == name), None)

    @property
    def supports_zero_snr(self) -> bool:
        """True if it can start at a timestep of pure noise, as a base with zero terminal SNR needs."""
        return self in (Sampler.EULER, Sampler.EULER_A, Sampler.DDIM, Sampler.DPMSOLVER, Sampler.DPMSOLVER_PP)


class LoraKind(StrEnum):
    """What a LoRA is for."""

    CHARACTER = "character"
    STYLE = "style"
    CONCEPT = "concept"


class ExistingCaptions(StrEnum):
    """What tagging does with an existing caption."""

    IGNORE = "ignore"
    APPEND = "append"
    OVERWRITE = "overwrite"


class TagPosition(StrEnum):
    """Where tags are inserted into a caption."""

    FRONT = "front"
    AFTER_TRIGGER = "after-trigger"
    BACK = "back"


class Tracker(StrEnum):
    """Experiment trackers that a run can log to."""

    NONE = "none"
    TENSORBOARD = "tensorboard"
    WANDB = "wandb"
    TRACKIO = "trackio"


class SweepAxis(StrEnum):
    """What varies in a sweep: any two are the rows and columns of its grid, the others its pages."""

    PROMPT = "prompt"
    STRENGTH = "strength"
    SEED = "seed"
    LORA = "lora"
    BASE = "base"
