"""The network settings that a LoRA file was trained with, read from its tensors' shapes and alphas, without torch."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from lora_studio.errors import ConfigError, InputError
from lora_studio.lora.header import LoraFile, read_lora_header
from lora_studio.settings.choices import NetworkType, TrainLayers
from lora_studio.settings.job_specs import TrainJob
from lora_studio.settings.recipe import Recipe

CONTRADICTIONS = ("network_type", "network_dim", "conv_dim")  # with which no file can be continued
RANK_STABILIZED = ("rank_stabilized", "network_alpha", "conv_alpha")
_LINEAR_OF_RESNETS = re.compile(r"emb_layers|time_emb_proj|skip_connection|conv_shortcut")
_BEYOND_ATTENTION = re.compile(r"_ff_net_|\.ff\.net\.|proj_in$|proj_out$|_mlp_fc|\.mlp\.fc")


@dataclass(frozen=True)
class _FileLayer:
    """A layer of a file: its name, dim and alpha, and whether it is a 3x3 convolution."""

    name: str
    dim: int
    alpha: float
    is_convolution: bool


def settings_of_file(path: Path) -> dict[str, Any]:
    """Return the recipe settings with which a training continues a LoRA file: network type, layers, dims and alphas.

    If layers of a kind differ in dim or alpha, `dim_from_weights` is on instead. Raises InputError if the file is not a
    LoRA for SDXL.
    """
    lora = read_lora_header(path)
    check_trainable(lora)
    layers = _layers(lora)
    network_type = _network_type(lora, layers)
    found: dict[str, Any] = {"network_type": network_type, "train_layers": _train_layers(layers)}
    linear = [layer for layer in layers if not layer.is_convolution]
    convolutions = [layer for layer in layers if layer.is_convolution]
    uniform = all(len({(layer.dim, layer.alpha) for layer in kind}) <= 1 for kind in (linear, convolutions))
    if network_type is NetworkType.LOKR or not uniform or not linear:
        return found | {"dim_from_weights": True, **_UNSET}
    found |= {"dim_from_weights": False, "block_dims": "", "rank_stabilized": False}
    found |= {"network_dim": linear[0].dim, "network_alpha": linear[0].alpha}
    if convolutions:
        return found | {"conv_dim": convolutions[0].dim, "conv_alpha": convolutions[0].alpha}
    return found | {"conv_dim": None, "conv_alpha": None}


def check_trainable(lora: LoraFile) -> None:
    """Raise InputError for a file that changes whole weights, biases or norms, which no network of a recipe has."""
    has_weights = any({"diff", "on_input"} & parts.keys() for parts in lora.modules.values())
    if has_weights or lora.has_vectors:
        raise InputError(
            f"LoRA {lora.path.name} changes whole weights, biases or norms, which cannot be trained further.",
            "Start from a LoRA, LoCon, DoRA, LoHa or LoKr.",
            code="network_weights",
        )


_UNSET: Mapping[str, Any] = {"block_dims": "", "conv_dim": None, "conv_alpha": None, "rank_stabilized": False}


def different_settings(path: Path, recipe: Recipe) -> dict[str, Any]:
    """Return those settings of a LoRA file that differ from a recipe's. Raises InputError if it is not a LoRA.

    A dim or alpha of convolutions that the recipe leaves to the network's own counts by its value. Alphas of a
    rank-stabilised recipe are not compared: files have them multiplied.
    """
    found, values = settings_of_file(path), _effective(recipe)
    if recipe.dim_from_weights or found["dim_from_weights"]:
        found = {name: found[name] for name in ("network_type", "dim_from_weights")}
    if recipe.dim_from_weights:
        del found["dim_from_weights"]
    if recipe.rank_stabilized:
        found = {name: value for name, value in found.items() if name not in RANK_STABILIZED}
    return {name: value for name, value in found.items() if values[name] != value}


def check_file_settings(job: TrainJob) -> None:
    """Raise ConfigError if a job's network type or dims contradict the LoRA file that it starts from.

    The check before a training compares everything, layer by layer of the base: see `training.warm_start`.
    """
    if job.network_weights is None:
        return
    values, different = _effective(job.recipe), different_settings(job.network_weights, job.recipe)
    if problems := [
        f"{name} is {values[name] or 'empty'}, but {job.network_weights.name} was trained with {value}. "
        f"Set {name} to {value}."
        for name, value in different.items()
        if name in CONTRADICTIONS and value is not None
    ]:
        raise ConfigError(problems, "Take the settings of the file, or start without it.")


def file_overrides(job: TrainJob) -> dict[str, Any]:
    """Return the file's settings that a job's recipe was not given; none without a file to start from."""
    if job.network_weights is None or job.recipe.dim_from_weights:
        return {}
    given = job.recipe.model_fields_set
    return {name: value for name, value in settings_of_file(job.network_weights).items() if name not in given}


def describe_file(settings: Mapping[str, Any]) -> str:
    """Return a file's settings as text: "LoCon, dim 16, alpha 8, convolutions dim 8, alpha 4"."""
    kind = str(settings["network_type"])
    if settings["dim_from_weights"]:
        return f"{kind}, with dims that differ between layers"
    text = f"{kind}, dim {settings['network_dim']}, alpha {settings['network_alpha']:g}"
    if settings["conv_dim"] is not None:
        text += f", convolutions dim {settings['conv_dim']}, alpha {settings['conv_alpha']:g}"
    return text


def _effective(recipe: Recipe) -> dict[str, Any]:
    """Return the recipe's settings, with the dim and alpha of convolutions that are trained at the network's own."""
    values = recipe.model_dump()
    if recipe.trains_convolutions:
        dim = recipe.conv_dim or recipe.network_dim
        values["conv_dim"] = dim
        if recipe.conv_alpha is None:
            values["conv_alpha"] = recipe.network_alpha * dim / recipe.network_dim
        values["train_layers"] = TrainLayers.ALL
    return values


def _layers(lora: LoraFile) -> list[_FileLayer]:
    found = []
    alphas = _alphas(lora)
    for name, parts in lora.modules.items():
        shapes = {part: lora.tensors[full][1] for part, full in parts.items()}
        dim = _dim(shapes)
        found.append(_FileLayer(name, dim, alphas.get(name, float(dim)), _is_convolution(shapes)))
    return found


def _dim(shapes: Mapping[str, Sequence[int]]) -> int:
    """Return the rank of a layer; 0 for a LoKr of two full matrices."""
    for part, side in (("lora_down.weight", 0), ("hada_w1_b", 0), ("lokr_w2_b", 0), ("lokr_w1_b", 0)):
        if part in shapes:
            return int(shapes[part][side])
    return 0


def _is_convolution(shapes: Mapping[str, Sequence[int]]) -> bool:
    """Return whether a layer is a 3x3 convolution, also in LyCORIS' Tucker form."""
    kernels = [shapes.get("lora_down.weight", ())[2:], shapes.get("lora_mid.weight", ())[2:]]
    kernels += [shapes.get(part, ())[2:] for part in ("hada_t1", "lokr_t2", "lokr_w2")]
    return any(max(kernel, default=1) > 1 for kernel in kernels)


def _alphas(lora: LoraFile) -> dict[str, float]:
    """Return the alpha of each layer that the file has one for, else the metadata's for all; empty if neither has."""
    found: dict[str, float] = {}
    with suppress(SafetensorError, TypeError, OSError, AttributeError), safe_open(lora.path, framework="numpy") as file:
        for name, parts in lora.modules.items():
            if "alpha" in parts:
                found[name] = float(file.get_tensor(parts["alpha"]))
        return found
    with suppress(KeyError, ValueError):  # bfloat16, which numpy does not have
        return dict.fromkeys(lora.modules, float(lora.metadata["ss_network_alpha"]))
    return found


def _network_type(lora: LoraFile, layers: Sequence[_FileLayer]) -> NetworkType:
    parts = Counter(part for names in lora.modules.values() for part in names)
    if parts["hada_w1_a"]:
        return NetworkType.LOHA
    if parts["lokr_w1"] or parts["lokr_w1_a"]:
        return NetworkType.LOKR
    if parts["dora_scale"]:
        return NetworkType.DORA
    return NetworkType.LOCON if any(layer.is_convolution for layer in layers) else NetworkType.LORA


def _train_layers(layers: Sequence[_FileLayer]) -> TrainLayers:
    """Return the smallest choice of layers that contains a file's."""
    if any(layer.is_convolution for layer in layers):
        return TrainLayers.ALL
    if any(_LINEAR_OF_RESNETS.search(layer.name) for layer in layers):
        return TrainLayers.LINEAR
    if any(_BEYOND_ATTENTION.search(layer.name) for layer in layers):
        return TrainLayers.ATTENTION_FF
    return TrainLayers.ATTENTION
