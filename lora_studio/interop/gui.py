"""Translate the JSON that kohya_ss' form saves to arguments of sd-scripts."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from typing import Any

from lora_studio.errors import InputError
from lora_studio.interop.arguments import LeftOut

MARKS = {"LoRA_type", "max_resolution"}  # fields that only a file of kohya_ss has
_OTHER_MODELS = ("flux1_checkbox", "sd3_checkbox", "hunyuan_image_checkbox", "anima_checkbox", "lumina_checkbox")
_OTHER_PREFIXES = ("flux1_", "sd3_", "hunyuan_", "anima_", "lumina_", "t5xxl", "ggpo_", "dynamo_", "sdxl_")
_OTHER_FIELDS = {
    *("ae", "apply_t5_attn_mask", "blocks_to_swap", "clip_g", "clip_g_dropout_rate", "clip_l", "discrete_flow_shift"),
    *("double_blocks_to_swap", "single_blocks_to_swap", "enable_all_linear", "guidance_scale", "in_dims", "logit_mean"),
    *("logit_std", "mem_eff_save", "mode_scale", "model_prediction_type", "model_type", "pos_emb_random_crop_rate"),
    *("save_clip", "save_t5xxl", "show_timesteps", "show_timesteps_resolution", "single_dim", "single_mod_dim"),
    *("split_mode", "split_qkv", "timestep_sampling", "train_blocks", "train_double_block_indices"),
    *("train_single_block_indices", "train_t5xxl", "train_lora_ggpo", "weighting_scheme"),
    *(f"{part}_{kind}_dim" for part in ("img", "txt") for kind in ("attn", "mlp", "mod")),
}  # of other architectures: the form saves them always
_LAUNCH = {
    *("extra_accelerate_launch_args", "gpu_ids", "main_process_port", "model_list", "multi_gpu", "num_machines"),
    *("num_cpu_threads_per_process", "num_processes", "no_token_padding", "lowvram", "stop_text_encoder_training"),
    *("stop_text_encoder_training_pct", "use_latent_files", "save_as_bool", "caption_metadata_filename"),
}  # of accelerate and of the form: sd-scripts does not get them
_LYCORIS = {
    "LoCon": "locon",
    "LyCORIS/BOFT": "boft",
    "LyCORIS/Diag-OFT": "diag-oft",
    "LyCORIS/DyLoRA": "dylora",
    "LyCORIS/GLoRA": "glora",
    "LyCORIS/iA3": "ia3",
    "LyCORIS/LoCon": "locon",
    "LyCORIS/LoHa": "loha",
    "LyCORIS/LoKr": "lokr",
    "LyCORIS/Native Fine-Tuning": "full",
}
_MODULES = {
    "Kohya DyLoRA": "networks.dylora",
    "Kohya LoCon": "networks.lora",
    "Kohya LoHa": "networks.loha",
    "Kohya LoKr": "networks.lokr",
    "LoRA-FA": "networks.lora_fa",
    "Standard": "networks.lora",
}
_DROPOUTS = ("rank_dropout", "module_dropout")
_BLOCKS = (
    *("down_lr_weight", "mid_lr_weight", "up_lr_weight", "block_lr_zero_threshold"),
    *("block_dims", "block_alphas", "conv_block_dims", "conv_block_alphas"),
)
_PLUS = ("loraplus_lr_ratio", "loraplus_text_encoder_lr_ratio", "loraplus_unet_lr_ratio")
_CONVOLUTIONS = ("conv_dim", "conv_alpha")
_LYCORIS_FIELDS = (
    *("use_tucker", "use_cp", "use_scalar", "bypass_mode", "dora_wd", "rank_dropout_scale", "train_norm"),
    *("decompose_both", "factor", "rescaled", "train_on_input", "constraint"),
)
# Fields that the form passes to one of LyCORIS' types only.
_ONE_TYPE = {
    "constraint": "diag-oft",
    "decompose_both": "lokr",
    "factor": "lokr",
    "rescaled": "diag-oft",
    "train_on_input": "ia3",
    "use_cp": "lokr",
}
_RENAMED = {
    "LyCORIS_preset": "preset",
    "constrain": "constraint",
    "max_resolution": "resolution",
    "optimizer": "optimizer_type",
    "lora_network_weights": "network_weights",
}


def gui_arguments(fields: Mapping[str, Any]) -> tuple[dict[str, Any], list[LeftOut]]:
    """Return the arguments that kohya_ss passes to sd-scripts for the fields of its form, and what was left out.

    Raises InputError for a file of another architecture.
    """
    for name in _OTHER_MODELS:
        if fields.get(name) is True:
            kind = name.partition("_")[0]
            raise InputError(
                f"These settings train a LoRA for another architecture ({kind}).",
                "Choose settings for SDXL.",
                code="not_sdxl",
            )
    given = {_RENAMED.get(name, name): value for name, value in fields.items() if value not in ("", None)}
    left_out = []
    if given.pop("sdxl", True) is False:
        why = "These settings are for Stable Diffusion 1 or 2: rates, resolution and steps may not suit SDXL."
        left_out.append(LeftOut("sdxl", value=False, why=why))
    for name in _OTHER_FIELDS | _LAUNCH:
        given.pop(name, None)
    for name in [name for name in given if name.startswith(_OTHER_PREFIXES)]:
        del given[name]
    arguments = _network(given)
    arguments |= _noise(given)
    arguments |= _rates(given)
    arguments |= _length(given)
    attention = given.pop("xformers", None)
    if attention in (True, "xformers", "sdpa"):
        arguments["sdpa" if attention == "sdpa" else "xformers"] = True
    if given.get("sample_prompts"):
        given["sample_prompts"] = str(given["sample_prompts"]).splitlines()
    for name in ("seed", "max_timestep", "clip_skip"):
        if str(given.get(name)) in ("0", "0.0"):
            del given[name]
    further = _command_line(str(given.pop("additional_parameters", "")))
    arguments = {**given, **arguments, **further}
    return {name: value for name, value in arguments.items() if value is not False}, left_out


def _network(given: dict[str, Any]) -> dict[str, Any]:
    """Remove the fields of the network and return module and arguments: of each field that has a value."""
    kind = str(given.pop("LoRA_type", "Standard"))
    names = (*_BLOCKS, *_DROPOUTS, *_PLUS, *_CONVOLUTIONS, *_LYCORIS_FIELDS, "preset", "unit")
    found = {name: given.pop(name) for name in names if name in given}
    given.pop("conv_dims", None)  # of versions of 2023
    given.pop("conv_alphas", None)
    if algorithm := _LYCORIS.get(kind):
        used = {*_DROPOUTS, *_CONVOLUTIONS, *_LYCORIS_FIELDS, *_PLUS, "preset"}
        used -= {name for name, only in _ONE_TYPE.items() if only != algorithm}
        return {"network_module": "lycoris.kohya", "network_args": {"algo": algorithm, **_set(found, used)}}
    used = {*_DROPOUTS, *_PLUS}
    if kind in ("Kohya LoHa", "Kohya LoKr"):
        used |= {*_CONVOLUTIONS, "use_tucker", "factor"}
    else:
        used |= {*_BLOCKS} | ({*_CONVOLUTIONS} if kind == "Kohya LoCon" else set())
    return {"network_module": _MODULES.get(kind, kind), "network_args": _set(found, used)}


def _set(found: Mapping[str, Any], used: set[str]) -> dict[str, str]:
    return {
        name: str(value)
        for name, value in found.items()
        if name in used and value is not False and str(value) not in ("0", "0.0", "False")
    }


def _noise(given: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments of the kind of noise that is chosen; the form keeps the values of the other kind."""
    kind = str(given.pop("noise_offset_type", "Original"))
    names = {
        "Original": ("noise_offset", "adaptive_noise_scale", "noise_offset_random_strength"),
        "Multires": ("multires_noise_iterations", "multires_noise_discount"),
    }
    found = {name: given.pop(name, None) for chosen in names.values() for name in chosen}
    return {name: value for name, value in found.items() if value and name in names.get(kind, names["Original"])}


def _rates(given: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments of the learning rates, as numbers; a rate of 0 beside another trains one part alone."""
    rates = {name: given.pop(name, None) for name in ("learning_rate", "unet_lr", "text_encoder_lr")}
    found = {name: rate for name, rate in rates.items() if rate is not None and not _is_zero(rate)}
    unet, text = "unet_lr" in found, "text_encoder_lr" in found
    if unet and not text:
        found["network_train_unet_only"] = True
    if text and not unet:
        found["network_train_text_encoder_only"] = True
    return found


def _length(given: dict[str, Any]) -> dict[str, Any]:
    """Return epochs or steps, and the warm-up, which the form has as a percentage of the run."""
    epochs, steps, epoch = (given.pop(name, 0) for name in ("max_train_epochs", "max_train_steps", "epoch"))
    found: dict[str, Any] = {}
    if not _is_zero(epochs):
        found["max_train_epochs"] = epochs
    elif not _is_zero(steps):
        found["max_train_steps"] = steps
    elif not _is_zero(epoch):
        found["max_train_epochs"] = epoch
    percent, warmup = given.pop("lr_warmup", 0), given.pop("lr_warmup_steps", 0)
    if not _is_zero(warmup):
        found["lr_warmup_steps"] = warmup
    elif not _is_zero(percent):
        number = _number(percent)
        found["lr_warmup_steps"] = percent if number is None else number / 100
    return found


def _command_line(text: str) -> dict[str, Any]:
    """Return the arguments of a command line: --name value, --name=value, or a switch."""
    try:
        words = shlex.split(text)
    except ValueError:
        words = text.split()
    found: dict[str, Any] = {}
    name = ""
    for word in words:
        if word.startswith("--"):
            name, separator, value = word.removeprefix("--").partition("=")
            found[name] = value if separator else True
        elif name:
            known = found[name]
            found[name] = word if known is True else [*(known if isinstance(known, list) else [known]), word]
    return found


def _number(value: Any) -> float | None:
    try:
        return float(value)
    except (TypeError, ValueError):
        return None


def _is_zero(value: Any) -> bool:
    """Return True for 0, as which the form saves many settings that are off; what is not a number is not."""
    return _number(value) == 0
