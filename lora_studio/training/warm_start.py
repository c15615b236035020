"""Warm start: initialise a run with the weights of an existing LoRA file (`network_weights`).

The file must have the recipe's network type, and its dims and alpha unless `dim_from_weights` takes these from it. A
mismatch is an error before the first step, and layers that the file lacks are reported. A DoRA is trained on along the
axis of the file's magnitudes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from math import sqrt
from pathlib import Path

import torch

from lora_studio.errors import InputError
from lora_studio.lora.file_settings import check_trainable
from lora_studio.lora.header import read_lora_header
from lora_studio.lora.inject import ADAPTER_NAME, MAGNITUDE, Adapters, layer_tensors
from lora_studio.lora.layers import TargetLayer
from lora_studio.lora.read import LayerWeights, read_layers
from lora_studio.lora.shapes import DimAlpha, DoraAxis, layer_dim_alpha, shared_alpha, tensor_shapes
from lora_studio.lora.write import ALPHA_CORRECTED_PARTS
from lora_studio.settings.choices import NetworkType, SaveFormat
from lora_studio.settings.job_specs import TrainJob
from lora_studio.settings.recipe import Recipe

NetworkDims = dict[tuple[str, str], DimAlpha]  # by the model and path of a layer
SCALE_TOLERANCE = 0.01  # relative difference of alpha / dim that rounding to half precision may cause


def network_dims(recipe: Recipe, targets: Sequence[TargetLayer], path: Path | None = None) -> NetworkDims:
    """Return the dim and alpha of every trained layer of a base: the recipe's, or with `dim_from_weights` the file's.

    Raises InputError if the file at `path` is not a LoRA for SDXL or was trained on an incompatible base.
    """
    if not recipe.dim_from_weights or path is None:
        dims = {(target.model, target.path): layer_dim_alpha(recipe, target.layer) for target in targets}
        return {key: found for key, found in dims.items() if found is not None}
    return _dims_of(read_layers(read_lora_header(path), targets)[0], recipe)


def _dims_of(found: Sequence[LayerWeights], recipe: Recipe) -> NetworkDims:
    """Return dim and alpha of a file's layers whose learning rate is above 0."""
    dims = {}
    for weights in found:
        target = weights.target
        dim_alpha = DimAlpha(weights.dim, weights.alpha)
        if (whole := weights.tensors.get("lokr_w2")) is not None:
            size = max(whole.shape[:2])  # as in `layer_dim_alpha`: it is never scaled
            dim_alpha = DimAlpha(size, float(size))
        if recipe.layer_rate(target.model, target.layer.block):
            dims[target.model, target.path] = dim_alpha
    return dims


def missing_weights_errors(job: TrainJob) -> list[str]:
    """Return an error if a job takes its dims from a file and names none."""
    if not job.recipe.dim_from_weights or job.network_weights is not None:
        return []
    return [
        "dim_from_weights is on, but network_weights, the LoRA file to start from, is empty. Give the file, or turn "
        "dim_from_weights off."
    ]


def network_weights_errors(path: Path, recipe: Recipe, targets: Sequence[TargetLayer]) -> list[str]:
    """Return error messages if a LoRA file does not match the recipe. `targets` are the base's layers.

    Raises InputError if the file is not a LoRA for SDXL or was trained on an incompatible base.
    """
    lora = read_lora_header(path)
    check_trainable(lora)
    found, missing = read_layers(lora, targets)
    name = f"network_weights {path.name}"
    if missing:
        return [
            f"{name} has {len(missing)} layers that the base does not have, like {missing[0]}. Choose a LoRA that was "
            "trained on this base."
        ]
    network_types = Counter(_network_type(weights, recipe) for weights in found)
    if wrong := [found_type for found_type in network_types if found_type is not recipe.network_type]:
        return [
            f"{name} is a {wrong[0].value}, but network_type is {recipe.network_type.value}. "
            f"Set network_type to {wrong[0].value}."
        ]
    dims = _dims_of(found, recipe) if recipe.dim_from_weights else network_dims(recipe, targets)
    untrained = [weights.target for weights in found if (weights.target.model, weights.target.path) not in dims]
    if untrained:
        return [
            f"{name} has {len(untrained)} layers that this recipe does not train, like {untrained[0].kohya_name}. "
            f"{_training_remedy(untrained[0], recipe)}"
        ]
    return [*_magnitude_errors(name, recipe, found), *_shape_errors(name, recipe, found, dims)]


def load_network_weights(
    path: Path, adapters: Adapters, recipe: Recipe, targets: Sequence[TargetLayer]
) -> tuple[int, int]:
    """Copy a file's weights into the adapters; return the number of layers in the file and of trained layers.

    Layers that the file lacks are initialised as in a new run. Raises InputError if the file does not match the recipe.
    """
    if errors := network_weights_errors(path, recipe, targets):
        raise InputError(errors[0], "Or start without network_weights.", code="network_weights")
    found, _ = read_layers(read_lora_header(path), targets)
    if adapters.dora_axis is not None and (axis := found[0].magnitude_axis) is not adapters.dora_axis:
        adapters.init_magnitudes(axis)
    layers = {(model, inner): layer for model, inner, layer in adapters.layers}
    with torch.no_grad():
        for weights in found:
            layer = layers[weights.target.model, weights.target.path]
            rescale = weights.alpha / weights.dim / layer.scaling[ADAPTER_NAME]
            for name, parameter in layer_tensors(layer).items():
                tensor = weights.magnitude if name == MAGNITUDE else weights.tensors[name]
                assert tensor is not None
                value = tensor.float() * rescale if name in ALPHA_CORRECTED_PARTS and rescale != 1 else tensor.float()
                parameter.copy_(value.reshape(parameter.shape))
    return len(found), len(layers)


def _network_type(weights: LayerWeights, recipe: Recipe) -> NetworkType:
    """Return the network type of a layer; LoRA and LoCon differ only in which layers they adapt."""
    is_locon = weights.network_type is NetworkType.LORA and recipe.network_type is NetworkType.LOCON
    return NetworkType.LOCON if is_locon else weights.network_type


def _magnitude_errors(name: str, recipe: Recipe, found: Sequence[LayerWeights]) -> list[str]:
    """Return an error if the magnitudes are not a DoRA's, of several axes, or of one that the recipe cannot save."""
    is_dora = recipe.network_type is NetworkType.DORA
    axes = {weights.magnitude_axis for weights in found}
    if any((weights.magnitude is not None) != is_dora for weights in found) or len(axes) > 1:
        return [
            f"{name} has magnitudes (dora_scale) that are not those of a LoRA's layers along one axis; it cannot be "
            "trained further. Use a DoRA whose layers all have them, or a file without."
        ]
    if is_dora and recipe.save_format is SaveFormat.DIFFUSERS and DoraAxis.INPUT in axes:
        return [
            f"{name} is a DoRA with magnitudes per input, which diffusers' format does not have. Set save_format to "
            "kohya."
        ]
    return []


def _shape_errors(name: str, recipe: Recipe, found: Sequence[LayerWeights], network: NetworkDims) -> list[str]:
    """Return errors for layers of another dim or alpha than the network's."""
    shared = shared_alpha(dims.alpha for dims in network.values())  # which a LoRA's file has for all layers
    errors: dict[str, str] = {}
    for weights in found:
        layer = weights.target.layer
        dims = network[weights.target.model, weights.target.path]
        shapes = {part: tuple(tensor.shape) for part, tensor in weights.tensors.items()}
        expected = tensor_shapes(recipe, layer, dims.dim)
        expected.pop(MAGNITUDE, None)
        alphas = dims.alpha, dims.dim if recipe.network_type is NetworkType.DORA else shared
        if shapes != expected:
            errors.setdefault("dim", _dim_error(name, recipe, weights, dims, shapes, expected))
        elif all(abs(weights.alpha / weights.dim / (alpha / dims.dim) - 1) > SCALE_TOLERANCE for alpha in alphas):
            alpha = weights.alpha / weights.dim * (sqrt(dims.dim) if recipe.rank_stabilized else dims.dim)
            errors.setdefault(
                "alpha",
                f"{name} was trained with alpha {alpha:g} at dim {dims.dim} ({weights.target.kohya_name}), but the "
                f"recipe has another alpha. Set network_alpha to {alpha:g}, or conv_alpha for a convolution.",
            )
    return list(errors.values())


def _dim_error(
    name: str,
    recipe: Recipe,
    weights: LayerWeights,
    dims: DimAlpha,
    shapes: dict[str, tuple[int, ...]],
    expected: dict[str, tuple[int, ...]],
) -> str:
    layer = weights.target.kohya_name
    if recipe.network_type is NetworkType.LOKR:
        return (
            f"{name} splits {layer} into {_format_shapes(shapes)}, the recipe into {_format_shapes(expected)}. Set "
            "lokr_factor and network_dim to the values that it was trained with."
        )
    return (
        f"{name} has dim {weights.dim} in {layer}, the recipe {dims.dim}. Set network_dim to {weights.dim}, or "
        "conv_dim and block_dims if its layers differ in dim."
    )


def _format_shapes(shapes: dict[str, tuple[int, ...]]) -> str:
    return ", ".join(f"{part} {list(shape)}" for part, shape in shapes.items())


def _training_remedy(target: TargetLayer, recipe: Recipe) -> str:
    if not recipe.model_rates[target.model]:
        second = target.model == "te2" and recipe.text_encoder_lr2 is not None
        name = "unet_lr" if target.model == "unet" else "text_encoder_lr2" if second else "text_encoder_lr"
        return f"Set {name} above 0."
    if not recipe.layer_rate(target.model, target.layer.block):
        return f"Give {target.layer.block} a factor above 0 in down_lr_weight, mid_lr_weight or up_lr_weight."
    return "Set network_type, train_layers and block_dims to the values that it was trained with."
