"""Read the weights of a LoRA file, layer by layer, for a base whose layers are known.

Files of sd-scripts, LyCORIS, OneTrainer, ai-toolkit and diffusers differ in layer names and in details of shape; here
they are converted to one form.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from math import isfinite

import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from lora_studio.errors import InputError
from lora_studio.lora.alphas import Alphas
from lora_studio.lora.deltas import factor_product, merged_down
from lora_studio.lora.header import LoraFile
from lora_studio.lora.layers import TargetLayer, stability_paths
from lora_studio.lora.names import names_of_layer
from lora_studio.lora.shapes import DoraAxis, Layer
from lora_studio.settings.choices import NetworkType


@dataclass(frozen=True)
class LayerWeights:
    """A file's weights for one layer: alpha / dim times the product of `tensors` is added to the layer's weight.

    Names and shapes are those of `lora.shapes.tensor_shapes`, except that Tucker cores of LoHa and LoKr (`hada_t1`,
    `lokr_t2`) and a factorised small matrix of LoKr stay as they are. `magnitude` has the norms of a weight with DoRA
    along `magnitude_axis`.

    A full difference is a LoKr whose small matrix is 1. `base_scale` [out, 1, ...] or [1, in, ...] is that of IA3: the
    delta is the base's weight times it, and there are no tensors.
    """

    target: TargetLayer
    network_type: NetworkType
    dim: int
    alpha: float
    tensors: dict[str, Tensor]
    magnitude: Tensor | None = None
    magnitude_axis: DoraAxis = DoraAxis.OUTPUT
    base_scale: Tensor | None = None


@dataclass(frozen=True)
class VectorDelta:
    """A file's change of a bias, or of a norm's weight: `delta` [n] is added to the parameter `path` of a model."""

    model: str
    path: str
    delta: Tensor


def read_layers(lora: LoraFile, targets: Iterable[TargetLayer]) -> tuple[list[LayerWeights], list[str]]:
    """Return the file's weights for layers of the base, and the names of layers that the base does not have.

    Raises InputError if the file is damaged, contains NaN or infinity, or a layer's shape differs from the base's.
    """
    weights = _load_tensors(lora)
    known = _targets_by_name(targets)
    alphas = Alphas(lora)
    found, missing = [], []
    for name, parts in lora.modules.items():
        vectors = lora.vector_parts(name)
        tensors = {part: weights[full] for part, full in parts.items() if full not in vectors.values()}
        if not tensors.keys() - {"alpha", "dora_scale"}:
            continue
        candidates = known.get(name, [])
        if not candidates:
            missing.append(name)
        errors = []
        for target in candidates:
            try:
                axis = _magnitude_axis(target.layer, tensors, parts)
                found.append(_layer_weights(target, tensors, alphas.of(name), axis))
                break
            except (RuntimeError, ValueError, IndexError, TypeError, KeyError) as error:
                errors.append(error)
        if errors and len(errors) == len(candidates):
            layer = candidates[0].layer
            shapes = ", ".join(f"{part} {list(tensor.shape)}" for part, tensor in tensors.items() if tensor.dim())
            size = f"{layer.outputs} x {layer.inputs}"
            raise base_mismatch_error(
                lora, f"the shape of its layer {name} ({shapes}) does not match the base's layer, which is {size}"
            ) from errors[0]
    return found, missing


def read_vectors(lora: LoraFile, models: Mapping[str, nn.Module]) -> tuple[list[VectorDelta], list[str]]:
    """Return the file's changes of biases and norms, and the names of those that the base does not have.

    `models` are the base's by kohya's names. Raises InputError if a shape differs from the base's.
    """
    if not lora.has_vectors:
        return [], []
    weights = _load_tensors(lora)
    known = _parameters_by_name(models)
    found, missing = [], []
    for name in lora.modules:
        for part, full in lora.vector_parts(name).items():
            kind = "weight" if part == "w_norm" else "bias"
            candidates = known.get((name, kind), [])
            fitting = [place for place in candidates if place[2] == weights[full].shape]
            if fitting:
                model, path, _ = fitting[0]
                found.append(VectorDelta(model, path, weights[full]))
            elif candidates:
                shape, expected = list(weights[full].shape), list(candidates[0][2])
                raise base_mismatch_error(lora, f"{full} has the shape {shape}, the base's {kind} {expected}")
            else:
                missing.append(full)
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


def _targets_by_name(targets: Iterable[TargetLayer]) -> dict[str, list[TargetLayer]]:
    """Return the layers by every name that a trainer may use; several of text encoders that a file does not name."""
    known: dict[str, list[TargetLayer]] = {}
    for target in targets:
        for name in names_of_layer(target.model, target.path, target.stability_path):
            known.setdefault(name, []).append(target)
    return known


def _parameters_by_name(
    models: Mapping[str, nn.Module],
) -> dict[tuple[str, str], list[tuple[str, str, torch.Size]]]:
    """Return (model, path, shape) of the base's weights and biases, by a name of the layer and `weight` or `bias`."""
    known: dict[tuple[str, str], list[tuple[str, str, torch.Size]]] = {}
    for model, module in models.items():
        stability = stability_paths(module) if isinstance(module, UNet2DConditionModel) else {}
        for path, parameter in module.named_parameters():
            layer, _, kind = path.rpartition(".")
            for name in names_of_layer(model, layer, stability.get(layer, "")):
                known.setdefault((name, kind), []).append((model, path, parameter.shape))
    return known


def _layer_weights(
    target: TargetLayer, tensors: dict[str, Tensor], alpha_of: Callable[[int], float], axis: DoraAxis
) -> LayerWeights:
    layer = target.layer
    if "on_input" in tensors:
        return LayerWeights(target, NetworkType.LOKR, 1, 1.0, {}, base_scale=_ia3_scale(layer, tensors))
    if "lora_down.weight" in tensors:
        network_type, (dim, parts) = NetworkType.LORA, _lora_tensors(layer, tensors)
    elif "hada_w1_a" in tensors:
        network_type, (dim, parts) = NetworkType.LOHA, _loha_tensors(layer, tensors)
    elif "diff" in tensors:
        network_type, dim, parts = NetworkType.LOKR, 0, _full_tensors(layer, tensors)
    else:
        network_type, (dim, parts) = NetworkType.LOKR, _lokr_tensors(layer, tensors)
    if not dim:
        dim, alpha = 1, 1.0  # a full difference or a LoKr of two full matrices is not scaled, whatever its alpha
    elif "alpha" in tensors:
        alpha = float(tensors["alpha"])
    else:
        alpha = alpha_of(dim)
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
    core = tensors.get("lora_mid.weight")
    _require(core is None or tuple(core.shape[2:]) == kernel)
    down, up = merged_down(tensors), tensors["lora_up.weight"]
    dim = down.shape[0]
    _require(dim > 0)
    return dim, {
        "lora_down.weight": down.reshape(dim, layer.inputs, *kernel),
        "lora_up.weight": up.reshape(layer.outputs, dim, *[1] * len(kernel)),
    }


def _full_tensors(layer: Layer, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return a full difference of a layer's weight as a LoKr, whose small matrix is 1."""
    kernel = (layer.kernel,) * 2 if layer.kernel else ()
    return {"lokr_w1": torch.ones(1, 1), "lokr_w2": tensors["diff"].reshape(layer.outputs, layer.inputs, *kernel)}


def _ia3_scale(layer: Layer, tensors: dict[str, Tensor]) -> Tensor:
    """Return by what LyCORIS' IA3 multiplies the base's weight, per input or per output, to get the delta."""
    per_input = bool(tensors["on_input"])
    scale = tensors["weight"].float().reshape(layer.inputs if per_input else layer.outputs)
    return scale.view(*((1, -1) if per_input else (-1, 1)), *[1, 1][: 2 * bool(layer.kernel)])


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
    return factor_product(weights.tensors, weights.alpha / weights.dim)
