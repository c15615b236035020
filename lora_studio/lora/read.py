"""Read the weights of a LoRA file, layer by layer, for a base whose layers are known.

Files of sd-scripts, LyCORIS, OneTrainer, ai-toolkit and diffusers differ in layer names and in details of shape; here
they are converted to one form.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import isfinite
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from lora_studio.errors import InputError
from lora_studio.lora.header import LoraFile
from lora_studio.lora.layers import TargetLayer
from lora_studio.lora.shapes import DoraAxis, Layer
from lora_studio.lora.tucker import tucker_product
from lora_studio.settings.choices import NetworkType

PEFT_METADATA = "lora_adapter_metadata"
PEFT_PREFIXES = {"unet": "unet", "te1": "text_encoder", "te2": "text_encoder_2"}


@dataclass(frozen=True)
class LayerWeights:
    """A file's weights for one layer: alpha / dim times the product of `tensors` is added to the layer's weight.

    Names and shapes are those of `lora.shapes.tensor_shapes`, except that Tucker cores of LoHa and LoKr (`hada_t1`,
    `lokr_t2`) and a factorised small matrix of LoKr stay as they are. `magnitude` has the norms of a weight with DoRA
    along `magnitude_axis`.
    """

    target: TargetLayer
    network_type: NetworkType
    dim: int
    alpha: float
    tensors: dict[str, Tensor]
    magnitude: Tensor | None = None
    magnitude_axis: DoraAxis = DoraAxis.OUTPUT


def read_layers(lora: LoraFile, targets: Iterable[TargetLayer]) -> tuple[list[LayerWeights], list[str]]:
    """Return the file's weights for layers of the base, and the names of layers that the base does not have.

    Raises InputError if the file is damaged, contains NaN or infinity, or a layer's shape differs from the base's.
    """
    weights = _load_tensors(lora)
    known = _targets_by_name(targets)
    alphas = _PeftAlphas(lora)
    found, missing = [], []
    for name, parts in lora.modules.items():
        target = known.get(name)
        if target is None:
            missing.append(name)
            continue
        tensors = {part: weights[full] for part, full in parts.items()}
        try:
            axis = _magnitude_axis(target.layer, tensors, parts)
            found.append(_layer_weights(target, tensors, alphas, axis, kohya=lora.is_kohya))
        except (RuntimeError, ValueError, IndexError, TypeError, KeyError) as error:
            shapes = ", ".join(f"{part} {list(tensor.shape)}" for part, tensor in tensors.items() if tensor.dim())
            size = f"{target.layer.outputs} x {target.layer.inputs}"
            raise base_mismatch_error(
                lora, f"the shape of its layer {name} ({shapes}) does not match the base's layer, which is {size}"
            ) from error
    return found, missing


def base_mismatch_error(lora: LoraFile, why: str) -> InputError:
    """Return the error for a LoRA that was trained on an incompatible base."""
    made_for = lora.metadata.get("ss_base_model_version") or lora.metadata.get("modelspec.architecture")
    hint = f" Its metadata says that it was trained on {made_for}." if made_for else ""
    return InputError(
        f"LoRA {lora.path.name} does not fit this base: {why}.{hint}",
        "Choose a base of the architecture that the LoRA was trained on.",
        code="lora_unfit",
    )


def _load_tensors(lora: LoraFile) -> dict[str, Tensor]:
    try:
        weights: dict[str, Tensor] = load_file(lora.path)
    except (SafetensorError, OSError) as error:
        raise InputError(
            f"LoRA {lora.path.name} is damaged: {error}.", "Download or copy it again.", code="lora_file"
        ) from error
    for name, weight in weights.items():
        if not torch.isfinite(weight).all():
            raise InputError(
                f"LoRA {lora.path.name} contains NaN or infinity (in {name}).",
                "Its training diverged; use an earlier checkpoint.",
                code="lora_not_finite",
            )
    return weights


def _targets_by_name(targets: Iterable[TargetLayer]) -> dict[str, TargetLayer]:
    """Return the layers by every name that a trainer may use; text encoder names come with and without `text_model`."""
    known: dict[str, TargetLayer] = {}
    for target in targets:
        if target.model == "unet":
            paths = {target.path, target.stability_path}
        else:
            bare = target.path.removeprefix("text_model.")
            paths = {bare, f"text_model.{bare}"}
        for path in paths:
            known[f"lora_{target.model}_{path.replace('.', '_')}"] = target
            known[f"{PEFT_PREFIXES[target.model]}.{path}"] = target
    return known


class _PeftAlphas:
    """The alphas in peft's configuration of each model, which diffusers writes into the metadata."""

    def __init__(self, lora: LoraFile) -> None:
        try:
            values = json.loads(lora.metadata.get(PEFT_METADATA, "{}"))
        except (ValueError, RecursionError):
            values = {}
        self.values: Mapping[str, Any] = values if isinstance(values, dict) else {}

    def alpha_of(self, target: TargetLayer, dim: int) -> float:
        """Return a layer's alpha, its dim if none is given. Patterns are compared as names, never run as regexes."""
        prefix = PEFT_PREFIXES[target.model]
        patterns = self.values.get(f"{prefix}.alpha_pattern") or {}
        exact = next((patterns[name] for name in _path_suffixes(target.path) if name in patterns), None)
        alpha = float(exact if exact is not None else self.values.get(f"{prefix}.lora_alpha", dim))
        return alpha * dim**0.5 if self.values.get(f"{prefix}.use_rslora") else alpha


def _path_suffixes(path: str) -> list[str]:
    """Return `a.b.c`, `b.c`, `c` of `a.b.c`: a pattern may omit the front of a path."""
    parts = path.split(".")
    return [".".join(parts[start:]) for start in range(len(parts))]


def _layer_weights(
    target: TargetLayer, tensors: dict[str, Tensor], alphas: _PeftAlphas, axis: DoraAxis, *, kohya: bool
) -> LayerWeights:
    layer = target.layer
    if "lora_down.weight" in tensors:
        network_type, (dim, parts) = NetworkType.LORA, _lora_tensors(layer, tensors)
    elif "hada_w1_a" in tensors:
        network_type, (dim, parts) = NetworkType.LOHA, _loha_tensors(layer, tensors)
    else:
        network_type, (dim, parts) = NetworkType.LOKR, _lokr_tensors(layer, tensors)
    if not dim:
        dim, alpha = 1, 1.0  # a LoKr of two full matrices is not scaled, whatever its alpha
    elif "alpha" in tensors:
        alpha = float(tensors["alpha"])
    else:
        alpha = alphas.alpha_of(target, dim) if not kohya else float(dim)
    _require(isfinite(alpha))
    magnitude = tensors.get("dora_scale")
    if magnitude is None:
        return LayerWeights(target, network_type, dim, alpha, parts)
    magnitude = magnitude.reshape(layer.inputs if axis is DoraAxis.INPUT else layer.outputs)
    if network_type is NetworkType.LORA:
        network_type = NetworkType.DORA
    return LayerWeights(target, network_type, dim, alpha, parts, magnitude, axis)


def _magnitude_axis(layer: Layer, tensors: Mapping[str, Tensor], names: Mapping[str, str]) -> DoraAxis:
    """Return the axis of a layer's magnitudes: peft's vectors are always norms of outputs, in other names it shows.

    A `dora_scale` is [out, 1...] or [1, in...], whatever the names of the other tensors. `names` are the full ones.
    """
    magnitude = tensors.get("dora_scale")
    if magnitude is None or not names["dora_scale"].endswith("dora_scale"):
        return DoraAxis.OUTPUT
    is_row = magnitude.dim() > 1 and magnitude.shape[0] == 1 and layer.outputs > 1
    return DoraAxis.INPUT if is_row else DoraAxis.OUTPUT


def _lora_tensors(layer: Layer, tensors: dict[str, Tensor]) -> tuple[int, dict[str, Tensor]]:
    kernel = (layer.kernel,) * 2 if layer.kernel else ()
    down, up = tensors["lora_down.weight"], tensors["lora_up.weight"]
    dim = down.shape[0]
    _require(dim > 0)
    if (core := tensors.get("lora_mid.weight")) is not None:
        # LyCORIS' Tucker form: 1x1 down, core with the kernel, 1x1 up; the first two are merged into one convolution
        _require(tuple(core.shape[2:]) == kernel)
        down = torch.einsum("mnkl,ni->mikl", core.float(), down.flatten(1).float())
        dim = down.shape[0]
    return dim, {
        "lora_down.weight": down.reshape(dim, layer.inputs, *kernel),
        "lora_up.weight": up.reshape(layer.outputs, dim, *[1] * len(kernel)),
    }


def _loha_tensors(layer: Layer, tensors: dict[str, Tensor]) -> tuple[int, dict[str, Tensor]]:
    parts = {name: tensor for name, tensor in tensors.items() if name.startswith("hada_")}
    dim = parts["hada_w1_b"].shape[0]
    area = max(1, layer.kernel) ** 2
    tucker = "hada_t1" in parts
    for side in ("1", "2"):
        left, right = (dim, layer.outputs), (dim, layer.inputs)
        if tucker:
            _require(parts[f"hada_t{side}"].shape == (dim, dim, layer.kernel, layer.kernel))
        else:
            left, right = (layer.outputs, dim), (dim, layer.inputs * area)
            parts[f"hada_w{side}_b"] = parts[f"hada_w{side}_b"].flatten(1)
        _require(parts[f"hada_w{side}_a"].shape == left and parts[f"hada_w{side}_b"].shape == right)
    return dim, parts


def _lokr_tensors(layer: Layer, tensors: dict[str, Tensor]) -> tuple[int, dict[str, Tensor]]:
    """Return dim and tensors; dim is 0 if both matrices are full, not factorised."""
    parts = {name: tensor for name, tensor in tensors.items() if name.startswith("lokr_")}
    area = max(1, layer.kernel) ** 2
    if "lokr_w1" in parts:
        rows, columns = parts["lokr_w1"].shape
    else:
        _require(parts["lokr_w1_a"].shape[1] == parts["lokr_w1_b"].shape[0])
        rows, columns = parts["lokr_w1_a"].shape[0], parts["lokr_w1_b"].shape[1]
    if "lokr_w2" in parts:
        if not layer.kernel:
            parts["lokr_w2"] = parts["lokr_w2"].flatten(1)
        more_rows, more = parts["lokr_w2"].shape[0], parts["lokr_w2"][0].numel()
    elif "lokr_t2" in parts:
        core = parts["lokr_t2"]
        _require(core.shape[2:] == (layer.kernel, layer.kernel))
        _require((parts["lokr_w2_a"].shape[0], parts["lokr_w2_b"].shape[0]) == tuple(core.shape[:2]))
        more_rows, more = parts["lokr_w2_a"].shape[1], parts["lokr_w2_b"].shape[1] * area
    else:
        parts["lokr_w2_b"] = parts["lokr_w2_b"].flatten(1)
        _require(parts["lokr_w2_a"].shape[1] == parts["lokr_w2_b"].shape[0])
        more_rows, more = parts["lokr_w2_a"].shape[0], parts["lokr_w2_b"].shape[1]
    _require(rows * more_rows == layer.outputs and columns * more == layer.inputs * area)
    low = parts.get("lokr_w2_b", parts.get("lokr_w1_b"))
    return 0 if low is None else low.shape[0], parts


def _require(is_valid: bool) -> None:
    if not is_valid:
        raise ValueError("shapes do not match")


def delta_weight(weights: LayerWeights) -> Tensor:
    """Return the weight delta of a LoHa or LoKr layer, [out, in * kernel area] in fp32, without a DoRA's magnitude."""
    parts = {name: tensor.float() for name, tensor in weights.tensors.items()}
    scale = weights.alpha / weights.dim
    if weights.network_type is NetworkType.LOHA:
        return scale * _factor_product(parts, "hada_w1", "hada_t1") * _factor_product(parts, "hada_w2", "hada_t2")
    small = parts["lokr_w1"] if "lokr_w1" in parts else parts["lokr_w1_a"] @ parts["lokr_w1_b"]
    large = parts["lokr_w2"].flatten(1) if "lokr_w2" in parts else _factor_product(parts, "lokr_w2", "lokr_t2")
    return scale * torch.kron(small, large)


def _factor_product(parts: Mapping[str, Tensor], name: str, core: str) -> Tensor:
    left, right = parts[f"{name}_a"], parts[f"{name}_b"]
    if core not in parts:
        return left @ right
    return tucker_product(parts[core], left, right).flatten(1)
