"""A run that starts from the weights of an existing LoRA file instead of from nothing.

The file must be of the recipe's network: of its type, with its dims and its scale. What does not fit is refused before
the first step, and what the file has not is told: nothing is left out in silence.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from math import sqrt
from pathlib import Path

import torch

from lora_studio.errors import InputError
from lora_studio.lora.header import read_lora_header
from lora_studio.lora.inject import MAGNITUDE, Adapters, layer_tensors
from lora_studio.lora.layers import TargetLayer
from lora_studio.lora.read import LayerWeights, read_layers
from lora_studio.lora.shapes import DimAlpha, layer_dim_alpha, tensor_shapes
from lora_studio.lora.write import ALPHA_CORRECTED_PARTS
from lora_studio.settings.choices import NetworkType
from lora_studio.settings.recipe import Recipe

SCALE_TOLERANCE = 0.01  # what rounding to half precision may change of alpha, as a share


def network_weights_problems(path: Path, recipe: Recipe, targets: Sequence[TargetLayer]) -> list[str]:
    """What of a LoRA file does not fit the recipe, one line each. `targets` are the base's layers.

    Raises InputError if it is no LoRA for SDXL, or for another base.
    """
    lora = read_lora_header(path)
    found, missing = read_layers(lora, targets)
    name = f"network_weights {path.name}"
    if missing:
        return [
            f"{name} has {len(missing)} layers that the base has not, like {missing[0]}. Choose a LoRA that was "
            "trained on this base."
        ]
    kinds = Counter(_kind(weights, recipe) for weights in found)
    if wrong := [kind for kind in kinds if kind is not recipe.network_type]:
        return [f"{name} is a {wrong[0].value}, but network_type is {recipe.network_type.value}. Set it to that."]
    untrained = [weights.target for weights in found if layer_dim_alpha(recipe, weights.target.layer) is None]
    if untrained:
        return [
            f"{name} has {len(untrained)} layers that this recipe does not train, like {untrained[0].kohya_name}. "
            f"{_training_remedy(untrained[0], recipe)}"
        ]
    return _shape_problems(name, recipe, found)


def load_network_weights(
    path: Path, adapters: Adapters, recipe: Recipe, targets: Sequence[TargetLayer]
) -> tuple[int, int]:
    """Take a checked file's weights; returns how many of the trained layers it had, and how many there are.

    Layers that it has not begin as in any new run. Raises InputError if the file does not fit.
    """
    if problems := network_weights_problems(path, recipe, targets):
        raise InputError(problems[0], code="network_weights")
    found, _ = read_layers(read_lora_header(path), targets)
    layers = {(model, inner): layer for model, inner, layer in adapters.layers}
    with torch.no_grad():
        for weights in found:
            layer = layers[weights.target.model, weights.target.path]
            size = layer_dim_alpha(recipe, weights.target.layer)
            assert size is not None
            exact = weights.alpha / weights.dim / (size.alpha / size.dim)
            for name, parameter in layer_tensors(layer).items():
                tensor = weights.magnitude if name == MAGNITUDE else weights.tensors[name]
                assert tensor is not None
                value = tensor.float() * exact if name in ALPHA_CORRECTED_PARTS and exact != 1 else tensor.float()
                parameter.copy_(value.reshape(parameter.shape))
    return len(found), len(layers)


def _kind(weights: LayerWeights, recipe: Recipe) -> NetworkType:
    """The network type that a layer was trained with; LoRA and LoCon differ only in where they are."""
    plain = weights.kind is NetworkType.LORA and recipe.network_type is NetworkType.LOCON
    return NetworkType.LOCON if plain else weights.kind


def _shape_problems(name: str, recipe: Recipe, found: Sequence[LayerWeights]) -> list[str]:
    problems: dict[str, str] = {}
    for weights in found:
        layer = weights.target.layer
        size = layer_dim_alpha(recipe, layer)
        assert size is not None
        shapes = {part: tuple(tensor.shape) for part, tensor in weights.tensors.items()}
        expected = tensor_shapes(recipe, layer, size.dim)
        expected.pop(MAGNITUDE, None)
        if weights.magnitude_axis or (weights.magnitude is not None) != (recipe.network_type is NetworkType.DORA):
            problems["magnitude"] = (
                f"{name} has lengths of inputs, or of another type than DoRA (dora_scale), which cannot be trained on. "
                "Use one with wd_on_output."
            )
        elif shapes != expected:
            problems.setdefault("dim", _dim_problem(name, recipe, weights, size, shapes, expected))
        elif abs(weights.alpha / weights.dim / (size.alpha / size.dim) - 1) > SCALE_TOLERANCE:
            alpha = weights.alpha / weights.dim * (sqrt(size.dim) if recipe.rank_stabilized else size.dim)
            problems.setdefault(
                "alpha",
                f"{name} was trained with alpha {alpha:g} at dim {size.dim} ({weights.target.kohya_name}), the recipe "
                f"has another. Set network_alpha to {alpha:g}, or conv_alpha for a convolution.",
            )
    return list(problems.values())


def _dim_problem(
    name: str,
    recipe: Recipe,
    weights: LayerWeights,
    size: DimAlpha,
    shapes: dict[str, tuple[int, ...]],
    expected: dict[str, tuple[int, ...]],
) -> str:
    layer = weights.target.kohya_name
    if recipe.network_type is NetworkType.LOKR:
        return (
            f"{name} cuts {layer} into {_shown(shapes)}, the recipe into {_shown(expected)}. Set lokr_factor and "
            "network_dim to those that it was made with."
        )
    return (
        f"{name} has dim {weights.dim} in {layer}, the recipe {size.dim}. Set network_dim to {weights.dim}, or "
        "conv_dim and block_dims where dims differ."
    )


def _shown(shapes: dict[str, tuple[int, ...]]) -> str:
    return ", ".join(f"{part} {list(shape)}" for part, shape in shapes.items())


def _training_remedy(target: TargetLayer, recipe: Recipe) -> str:
    name = "unet_lr" if target.model == "unet" else "text_encoder_lr"
    if not getattr(recipe, name):
        return f"Set {name} above 0."
    return "Set network_type, train_layers and block_dims to what it was trained with."
