"""Translate the training metadata of a LoRA file (`ss_*`) to arguments of sd-scripts."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from lora_studio.interop.arguments import LeftOut
from lora_studio.settings.sections.optimization import ARGUMENT_SEPARATOR

PREFIX = "ss_"
# Entries whose name is not that of the argument.
_RENAMED = {
    "batch_size_per_device": "train_batch_size",
    "debiased_estimation": "debiased_estimation_loss",
}
# Entries that describe a run or its data, not a setting.
_RECORDS = {
    *("base_model_version", "bucket_info", "cache_latents", "dataset_dirs", "epoch", "lowram", "new_sd_model_hash"),
    *("new_vae_hash", "num_batches_per_epoch", "num_reg_images", "num_train_images", "num_validation_images"),
    *("reg_dataset_dirs", "sd_model_hash", "sd_scripts_commit_hash", "session_id", "steps", "tag_frequency"),
    *("total_batch_size", "training_finished_at", "training_started_at", "vae_hash"),
    "optimizer_args",
}
_CLASS = re.compile(r"([\w.]+)(?:\((.*)\))?", re.DOTALL)
_TIMESTEPS = re.compile(r"(\d+), *(\d+)")
_NOT_AN_ARGUMENT = {"fused", "foreach", "split_groups"}  # that the studio passes to a class by itself
_LIBRARY_NAMES = {"weight_decouple": "decouple", "bias_correction": "use_bias_correction"}  # of pytorch_optimizer


def metadata_arguments(metadata: Mapping[str, str]) -> tuple[dict[str, Any], list[LeftOut]]:
    """Return the arguments that a LoRA's metadata records, None for those that were not used, and what was left out.

    An argument that is not recorded is missing.
    """
    entries = {name.removeprefix(PREFIX): value for name, value in metadata.items() if name.startswith(PREFIX)}
    left_out = []
    for name, why in (("sd_model_name", "Choose the base model."), ("vae_name", "Choose the VAE.")):
        if (value := entries.pop(name, "None")) != "None":
            left_out.append(LeftOut(f"{PREFIX}{name}", value, why))
    arguments: dict[str, Any] = {}
    if optimizer := entries.pop("optimizer", ""):
        arguments |= _optimizer(optimizer)
    arguments |= _length(entries)
    if datasets := entries.pop("datasets", ""):
        arguments |= _datasets(datasets, left_out)
    for name, text in entries.items():
        if name in _RECORDS or not text:
            continue
        value = _value(text)
        arguments.setdefault(_RENAMED.get(name, name), value)
    if word := metadata.get("modelspec.trigger_phrase", "").strip():
        arguments["metadata_trigger_phrase"] = word
    if (match := _TIMESTEPS.fullmatch(metadata.get("modelspec.timestep_range", ""))) is not None:
        arguments |= {"min_timestep": match[1], "max_timestep": match[2]}
    return arguments, left_out


def _value(text: str) -> Any:
    """Return None, a truth value, a list or a mapping; numbers stay text, so that they are exact."""
    known = {"None": None, "True": True, "False": False, "": None}
    if text in known:
        return known[text]
    if text[0] in "[{":
        try:
            return json.loads(text)
        except ValueError:
            return text
    return text


def _optimizer(text: str) -> dict[str, Any]:
    """Return optimizer_type and optimizer_args of a class with its arguments: torch.optim.AdamW(weight_decay=0.1)."""
    match = _CLASS.fullmatch(text.strip())
    if match is None:
        return {"optimizer_type": text}
    path, inside = match[1], match[2] or ""
    pairs = [pair for pair in ARGUMENT_SEPARATOR.split(inside) if "=" in pair]
    split = [pair.partition("=") for pair in pairs]
    arguments = [
        f"{_LIBRARY_NAMES.get(name, name)}={value}" for name, _, value in split if name not in _NOT_AN_ARGUMENT
    ]
    return {"optimizer_type": path, "optimizer_args": arguments}


def _length(entries: dict[str, str]) -> dict[str, Any]:
    """Return the epochs, or the steps if they end the run within an epoch."""
    epochs, steps = entries.pop("num_epochs", ""), entries.pop("max_train_steps", "")
    if not epochs.isdecimal():
        return {"max_train_steps": steps} if steps.isdecimal() else {}
    batches, accumulated = (entries.get(name, "") for name in ("num_batches_per_epoch", "gradient_accumulation_steps"))
    if steps.isdecimal() and batches.isdecimal() and accumulated.isdecimal() and int(accumulated):
        whole = -(-int(batches) // int(accumulated)) * int(epochs)
        if int(steps) < whole:
            return {"max_train_steps": steps}
    return {"max_train_epochs": epochs}


def _datasets(text: str, left_out: list[LeftOut]) -> dict[str, Any]:
    """Return the arguments of the datasets of a dataset_config, whose values are recorded together."""
    try:
        datasets = json.loads(text)
        described: list[dict[str, Any]] = [
            {**{name: value for name, value in dataset.items() if name in _DATASET}, **_known(subset, _SUBSET)}
            for dataset in datasets
            for subset in dataset.get("subsets", [{}])
            if not subset.get("is_reg")
        ]
    except (ValueError, TypeError, AttributeError):
        left_out.append(LeftOut("ss_datasets", text[:80], "It cannot be read."))
        return {}
    first = dict(described[0] if described else {})
    for name in dict.fromkeys(name for other in described for name in other):
        values = [other.get(name) for other in described]
        if any(value != values[0] for value in values):
            first.pop(name, None)
            left_out.append(LeftOut(name, values, "Its subsets differ in it."))
    renamed = {"batch_size_per_device": "train_batch_size"}
    return {renamed.get(name, name): value for name, value in first.items()}


_DATASET = (
    *("batch_size_per_device", "resolution", "enable_bucket", "min_bucket_reso", "max_bucket_reso"),
    *("bucket_no_upscale",),
)
_SUBSET = (
    *("shuffle_caption", "keep_tokens", "keep_tokens_separator", "enable_wildcard", "flip_aug", "random_crop"),
    *("caption_prefix", "caption_suffix"),
)


def _known(values: Mapping[str, Any], names: tuple[str, ...]) -> dict[str, Any]:
    return {name: values[name] for name in names if name in values}
