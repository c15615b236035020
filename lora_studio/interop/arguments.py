"""Which argument of sd-scripts is which setting of the recipe, for import and export.

`ARGUMENTS` has those that correspond to one setting alone. Networks, optimizers, rates and the length of a run depend
on several arguments and have modules of their own. `NOT_AVAILABLE` and `NOT_NEEDED` have no setting.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from lora_studio.settings.choices import (
    GradientCheckpointing,
    LossType,
    MaskedLoss,
    Precision,
    PredictionType,
    Sampler,
    SavePrecision,
    TokenLimit,
    Tracker,
    ZeroTerminalSnr,
)

SIDE_MULTIPLE = 8
OURS = object()  # as the default of an argument: the setting then keeps its own


@dataclass(frozen=True)
class LeftOut:
    """An argument or a setting that was not carried over: its name, its value and the reason.

    Without it the LoRA becomes another one if it `matters`; else it only changes how a program runs.
    """

    name: str
    value: Any
    why: str
    matters: bool = True


@dataclass(frozen=True)
class Argument:
    """An argument of sd-scripts, and the setting with the same meaning.

    `default` is the setting's value where the argument is missing. `read` returns the setting's value of an argument,
    `write` the argument of a setting's value; it raises ValueError with the reason if sd-scripts has no such value.
    """

    name: str
    setting: str
    default: Any
    read: Callable[[Any], Any] = lambda value: value
    write: Callable[[Any], Any] = lambda value: value


def _read_resolution(value: Any) -> int:
    """Return the side in px of a square with as many pixels as `1024` or `1024,768`, a multiple of 8."""
    sides = value if isinstance(value, list | tuple) else str(value).strip("()[] ").split(",")
    numbers = [int(float(side)) for side in sides]
    if len(numbers) == 1 or numbers[0] == numbers[-1]:
        return numbers[0]
    return round(math.sqrt(numbers[0] * numbers[1]) / SIDE_MULTIPLE) * SIDE_MULTIPLE


def _read_extension(value: Any) -> str:
    """Return a caption extension; .txt is the one that is read unless another is set."""
    text = str(value).strip()
    return "" if text in (".txt", "txt") else text


def _flag(on: Any, off: Any) -> tuple[Callable[[Any], Any], Callable[[Any], Any]]:
    """Return how a switch is read as one of two values, and written: only `on` turns it on."""
    return (lambda value: on if _is_on(value) else off), (lambda value: value == on)


def _is_on(value: Any) -> bool:
    return value is True or str(value).strip().lower() in ("true", "1")


def _only(*values: Any) -> Callable[[Any], Any]:
    """Return a `write` for a setting with values that sd-scripts has, and others that it does not have."""

    def write(value: Any) -> Any:
        if value not in values:
            raise ValueError(f"sd-scripts has {', '.join(str(known.value) for known in values)} only.")
        return value.value

    return write


def _write_mask(value: Any) -> bool:
    if value is MaskedLoss.FILES:
        raise ValueError("sd-scripts reads masks from another folder: conditioning_data_dir in a dataset_config.")
    return value is MaskedLoss.ALPHA


def _plain(setting: str, default: Any, name: str = "") -> Argument:
    return Argument(name or setting, setting, default)


ARGUMENTS = (
    _plain("dim_from_weights", default=False),
    _plain("max_grad_norm", 1.0),
    _plain("scale_weight_norms", 0.0),
    _plain("batch_size", 1, "train_batch_size"),
    _plain("gradient_accumulation_steps", 1),
    _plain("seed", OURS),
    _plain("noise_offset", 0.0),
    _plain("adaptive_noise_scale", 0.0),
    _plain("noise_offset_random_strength", default=False),
    _plain("ip_noise_gamma", 0.0),
    _plain("ip_noise_gamma_random_strength", default=False),
    _plain("min_snr_gamma", 0.0),
    _plain("debiased_estimation_loss", default=False),
    Argument(
        "v_parameterization",
        "prediction_type",
        PredictionType.AUTO,
        *_flag(PredictionType.V_PREDICTION, PredictionType.AUTO),
    ),
    Argument(
        "zero_terminal_snr", "zero_terminal_snr", ZeroTerminalSnr.AUTO, *_flag(ZeroTerminalSnr.ON, ZeroTerminalSnr.AUTO)
    ),
    _plain("multires_noise_iterations", 0),
    _plain("multires_noise_discount", 0.3),
    _plain("min_timestep", 0),
    _plain("max_timestep", 1000),
    Argument("loss_type", "loss_type", LossType.L2, write=_only(*LossType)),
    _plain("huber_c", 0.1),
    _plain("huber_schedule", "snr"),
    Argument("resolution", "resolution", OURS, _read_resolution, lambda side: f"{side},{side}"),
    _plain("enable_bucket", default=False),
    _plain("min_bucket_reso", 256),
    _plain("max_bucket_reso", 1024),
    _plain("bucket_reso_steps", 64),
    _plain("bucket_no_upscale", default=False),
    _plain("flip_aug", default=False),
    _plain("random_crop", default=False),
    Argument("alpha_mask", "masked_loss", MaskedLoss.OFF, _flag(MaskedLoss.ALPHA, MaskedLoss.OFF)[0], _write_mask),
    _plain("prior_loss_weight", 1.0),
    _plain("validation_split", 0.0),
    Argument("caption_extension", "caption_extension", ".caption", _read_extension, lambda value: value or ".txt"),
    _plain("shuffle_caption", default=False),
    _plain("keep_tokens", 0),
    _plain("keep_tokens_separator", ""),
    _plain("enable_wildcard", default=False),
    _plain("caption_prefix", ""),
    _plain("caption_suffix", ""),
    _plain("token_warmup_min", 1),
    Argument("token_warmup_step", "token_warmup_step", 0, write=lambda steps: steps if steps < 1 else int(steps)),
    _plain("caption_dropout_rate", 0.0),
    _plain("caption_tag_dropout_rate", 0.0),
    Argument(
        "max_token_length",
        "max_token_length",
        TokenLimit.ONE,
        write=lambda limit: None if limit == TokenLimit.ONE else int(limit),
    ),
    Argument(
        "mixed_precision",
        "mixed_precision",
        Precision.FP32,
        lambda value: "fp32" if value == "no" else value,
        lambda value: {Precision.FP32: "no", Precision.AUTO: "bf16"}.get(value, value.value),
    ),
    Argument(
        "gradient_checkpointing",
        "gradient_checkpointing",
        GradientCheckpointing.OFF,
        _flag("on", "off")[0],
        lambda value: value is not GradientCheckpointing.OFF,
    ),
    _plain("sample_every_n_epochs", 0),
    _plain("sample_every_n_steps", 0),
    _plain("sample_at_first", default=False),
    Argument("sample_sampler", "sample_sampler", Sampler.DDIM, write=lambda value: value.value),
    _plain("save_every_n_steps", 0),
    Argument(
        "save_precision",
        "save_precision",
        SavePrecision.AUTO,
        write=lambda value: "float" if value is SavePrecision.FP32 else value.value,
    ),
    _plain("keep_checkpoints", 0, "save_last_n_epochs"),
    Argument("log_with", "log_with", Tracker.NONE, write=_only(Tracker.TENSORBOARD, Tracker.WANDB)),
    _plain("log_tracker_name", ""),
)

# Arguments with an effect on the LoRA that the studio does not have: the reason, and what comes closest.
NOT_AVAILABLE = {
    "alpha_mask": "Masks are set for the whole dataset: see masked_loss.",
    "base_weights": "Merging LoRAs into the base is not available: merge them first, and train on the result.",
    "base_weights_multiplier": "See base_weights.",
    "caption_dropout_every_n_epochs": "Captions are dropped by rate alone: set caption_dropout_rate.",
    "caption_separator": "Tags are separated by commas.",
    "color_aug": "Colours are not augmented.",
    "conditioning_data_dir": "Put the masks into a folder named mask beside the images, and set masked_loss to files.",
    "dataset_class": "Datasets of your own code are not available.",
    "face_crop_aug_range": "Crops around faces are not available.",
    "fp8_base": "Set base_precision to int8, which saves about as much memory.",
    "fp8_base_unet": "Set base_precision to int8, which saves about as much memory.",
    "full_bf16": "The LoRA's own weights are always trained in fp32.",
    "full_fp16": "The LoRA's own weights are always trained in fp32.",
    "huber_scale": "The Huber losses are not scaled.",
    "in_json": "Metadata files of sd-scripts' fine-tuning are not read: write the captions beside the images.",
    "lr_decay_steps": "warmup_stable_decay is not available.",
    "lr_scheduler_timescale": "inverse_sqrt is not available.",
    "masked_loss": "Masks come from the alpha channel (masked_loss alpha) or a folder named mask (masked_loss files).",
    "optimizer_schedulefree_wrapper": "Choose AdamWScheduleFree or ProdigyPlusScheduleFree as the optimizer.",
    "resize_interpolation": "Images are resized with Lanczos.",
    "resume": "Training states of sd-scripts cannot be continued here.",
    "save_last_n_steps": "Set keep_checkpoints, which counts checkpoints.",
    "save_n_epoch_ratio": "Set save_every_n_epochs.",
    "scale_v_pred_loss_like_noise_pred": "Set min_snr_gamma, which weights the timesteps of v-prediction, too.",
    "schedulefree_wrapper_args": "See optimizer_schedulefree_wrapper.",
    "secondary_separator": "Tags are separated by commas alone.",
    "train_inpainting": "Inpainting models cannot be trained.",
    "v2": "The studio trains SDXL alone.",
    "v_pred_like_loss": "A loss like that of v-prediction is not available: debiased_estimation_loss is similar.",
    "validation_seed": "The validation loss is measured with seeds of its own, the same in every epoch.",
    "weighted_captions": "Weights in captions, like (tag:1.2), are read as text.",
}
# Arguments that say how sd-scripts runs, not what the LoRA learns.
_AUTOMATIC = "The studio does this by itself where it helps."
_FOLDERS = "The studio numbers the folders of its runs."
_OTHER_PROGRAM = "This is about running sd-scripts."
NOT_NEEDED = {
    **dict.fromkeys(
        ("cache_latents", "cache_latents_to_disk", "cache_text_encoder_outputs", "cache_text_encoder_outputs_to_disk"),
        _AUTOMATIC,
    ),
    **dict.fromkeys(("no_half_vae", "sdpa", "xformers", "mem_eff_attn", "torch_compile", "dynamo_backend"), _AUTOMATIC),
    **dict.fromkeys(("lowram", "highvram", "fused_backward_pass", "cpu_offload_checkpointing"), _AUTOMATIC),
    **dict.fromkeys(("vae_batch_size", "skip_cache_check", "cache_info", "text_encoder_batch_size"), _AUTOMATIC),
    **dict.fromkeys(("max_data_loader_n_workers", "persistent_data_loader_workers"), _AUTOMATIC),
    **dict.fromkeys(("save_state", "save_state_on_train_end", "save_last_n_epochs_state"), _AUTOMATIC),
    **dict.fromkeys(("save_last_n_steps_state", "validate_every_n_epochs", "validate_every_n_steps"), _AUTOMATIC),
    **dict.fromkeys(("max_validation_steps", "save_model_as", "use_safetensors", "no_metadata"), _AUTOMATIC),
    **dict.fromkeys(("output_dir", "logging_dir", "log_prefix", "wandb_run_name"), _FOLDERS),
    **dict.fromkeys(
        ("config_file", "output_config", "tokenizer_cache_dir", "debug_dataset", "log_config"), _OTHER_PROGRAM
    ),
    **dict.fromkeys(("log_tracker_config", "initial_epoch", "initial_step", "skip_until_initial_step"), _OTHER_PROGRAM),
    **dict.fromkeys(("console_log_level", "console_log_file", "console_log_simple"), _OTHER_PROGRAM),
    **dict.fromkeys(("ddp_timeout", "ddp_gradient_as_bucket_view", "ddp_static_graph"), _OTHER_PROGRAM),
    **dict.fromkeys(("disable_mmap_load_safetensors", "deepspeed", "zero_stage", "async_upload"), _OTHER_PROGRAM),
    "clip_skip": "sd-scripts trains SDXL on the second to last layer, whatever it says; so does clip_skip 2 here.",
    "wandb_api_key": "Log in to wandb instead.",
}
# Values without an effect: sd-scripts' defaults of arguments that have one otherwise.
WITHOUT_EFFECT = {
    "caption_separator": ",",
    "huber_scale": 1.0,
    "v_pred_like_loss": 0.0,
    "base_weights_multiplier": [],
}
