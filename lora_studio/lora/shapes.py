"""The layers that a recipe trains, with their dim, alpha and tensor shapes: arithmetic without torch.

A layer of `outputs` x `inputs` (a convolution: x kernel x kernel) has, at dim r:

- LoRA and LoCon (Hu et al. 2021, arXiv:2106.09685): two matrices, r (inputs + outputs) parameters
- DoRA (Liu et al. 2024, arXiv:2402.09353): the same and one magnitude per input (or output: see `DoraAxis`)
- LoHa (Hyeon-Woo et al. 2021, FedPara, arXiv:2108.06098): the element-wise product of two such pairs, each with
  `use_tucker` around a core [r, r, kernel, kernel] in a convolution (Tucker 1966)
- LoKr (Yeh et al. 2023, LyCORIS, arXiv:2309.14859): the Kronecker product of a small and a large matrix, the large one
  as a product of rank r if that has fewer parameters, with `use_tucker` around such a core
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import IntEnum, StrEnum
from functools import lru_cache
from math import isqrt, prod, sqrt
from types import MappingProxyType
from typing import Any, NamedTuple

from lora_studio.settings.block_dims import parse_block_dims
from lora_studio.settings.choices import NetworkType, SaveFormat, TrainLayers
from lora_studio.settings.recipe import Recipe
from lora_studio.settings.sections.network import NetworkSettings
from lora_studio.settings.sections.rates import RateSettings

Shape = tuple[int, ...]
SHAPE_SETTINGS = (*NetworkSettings.model_fields, *RateSettings.model_fields)  # all that the shapes depend on


class LayerRole(StrEnum):
    """The role of a layer in its block."""

    ATTENTION = "attention"
    FEED_FORWARD = "feed-forward"
    PROJECTION = "projection"
    LINEAR = "linear"  # in a resnet, 1x1 convolutions included
    CONVOLUTION = "convolution"  # 3x3


_TRAINED_ROLES = {
    TrainLayers.ATTENTION: {LayerRole.ATTENTION},
    TrainLayers.ATTENTION_FF: {LayerRole.ATTENTION, LayerRole.FEED_FORWARD, LayerRole.PROJECTION},
    TrainLayers.LINEAR: {LayerRole.ATTENTION, LayerRole.FEED_FORWARD, LayerRole.PROJECTION, LayerRole.LINEAR},
    TrainLayers.ALL: set(LayerRole),
}


@dataclass(frozen=True)
class Layer:
    """A layer that can have an adapter. `model` is unet, te1 or te2; `block` like in4, empty in a text encoder.

    `kernel` is the side of a convolution's kernel, 0 for a linear layer.
    """

    model: str
    role: LayerRole
    block: str
    outputs: int
    inputs: int
    kernel: int = 0

    @property
    def parameter_count(self) -> int:
        """The number of weights of the base layer, without bias."""
        return self.outputs * self.inputs * max(1, self.kernel) ** 2


class DoraAxis(IntEnum):
    """The side of a weight [out, in, ...] that has one trained magnitude per entry; the value is its dimension."""

    OUTPUT = 0
    INPUT = 1


class DimAlpha(NamedTuple):
    """Dim (rank) and alpha of one layer; its weight delta is multiplied by alpha / dim."""

    dim: int
    alpha: float


def dora_axis(recipe: Recipe) -> DoraAxis:
    """Return the axis of a new DoRA: the input, which most programs read, or the output in diffusers' format."""
    return DoraAxis.OUTPUT if recipe.save_format is SaveFormat.DIFFUSERS else DoraAxis.INPUT


def layer_dim_alpha(recipe: Recipe, layer: Layer) -> DimAlpha | None:
    """Return the dim and alpha of a layer under a recipe; None if the recipe does not train it.

    With `rank_stabilized` (Kalajdzievski 2023, arXiv:2312.03732) alpha is sqrt(dim) times larger, so that every program
    that applies alpha / dim gets the recipe's alpha / sqrt(dim). A LoKr of two full matrices is never scaled, as in
    LyCORIS and ComfyUI; its dim is at most the larger side of its large matrix, so that its alpha fits in 16 bits.
    """
    chosen = TrainLayers.ALL if recipe.trains_convolutions else recipe.train_layers
    if not recipe.layer_rate(layer.model, layer.block) or layer.role not in _TRAINED_ROLES[chosen]:
        return None
    dim = parse_block_dims(recipe.block_dims).get(layer.block, recipe.network_dim)
    alpha = recipe.network_alpha
    if not dim:
        return None
    if layer.role is LayerRole.CONVOLUTION and recipe.conv_dim is not None:
        dim, alpha = recipe.conv_dim, recipe.network_alpha * recipe.conv_dim / recipe.network_dim
    if layer.role is LayerRole.CONVOLUTION and recipe.conv_alpha is not None:
        alpha = recipe.conv_alpha
    if recipe.network_type is NetworkType.LOKR:
        large = tensor_shapes(recipe, layer, dim).get("lokr_w2")
        if large is not None:
            dim = min(dim, max(large[:2]))
            return DimAlpha(dim, float(dim))
    return DimAlpha(dim, alpha * sqrt(dim) if recipe.rank_stabilized else alpha)


def shared_alpha(alphas: Iterable[float]) -> float:
    """Return the most common alpha of a network's layers, which its file has for every layer of a LoRA or LoCon.

    diffusers applies it to all layers where a file has several; the layers' own scales are in `lora_up`.
    """
    (alpha, _), *_ = Counter(alphas).most_common(1)
    return alpha


def tensor_shapes(recipe: Recipe, layer: Layer, dim: int) -> dict[str, Shape]:
    """Return the shapes of a layer's tensors, by their names in kohya's and LyCORIS' files, without alpha."""
    outputs, inputs = layer.outputs, layer.inputs
    kernel = (layer.kernel,) * 2 if layer.kernel else ()
    point = (1,) * len(kernel)
    area = prod(kernel)
    match recipe.network_type:
        case NetworkType.LOHA if recipe.use_tucker and area > 1:
            sides: dict[str, Shape] = {}
            for side in ("1", "2"):
                sides |= {f"hada_w{side}_a": (dim, outputs), f"hada_w{side}_b": (dim, inputs)}
            return sides | dict.fromkeys(("hada_t1", "hada_t2"), (dim, dim, *kernel))
        case NetworkType.LOHA:
            pair = (outputs, dim), (dim, inputs * area)
            return dict(zip(("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b"), pair * 2, strict=True))
        case NetworkType.LOKR:
            rows, more_rows = lokr_factors(outputs, recipe.lokr_factor)
            columns, more_columns = lokr_factors(inputs, recipe.lokr_factor)
            small: dict[str, Shape] = {"lokr_w1": (rows, columns)}
            if 2 * dim >= max(more_rows, more_columns):
                return small | {"lokr_w2": (more_rows, more_columns, *kernel)}
            if recipe.use_tucker and area > 1:
                core = {"lokr_t2": (dim, dim, *kernel)}
                return small | core | {"lokr_w2_a": (dim, more_rows), "lokr_w2_b": (dim, more_columns)}
            return small | {"lokr_w2_a": (more_rows, dim), "lokr_w2_b": (dim, more_columns * area)}
        case _:
            shapes: dict[str, Shape] = {
                "lora_down.weight": (dim, inputs, *kernel),
                "lora_up.weight": (outputs, dim, *point),
            }
            if recipe.network_type is NetworkType.DORA:
                per_input = dora_axis(recipe) is DoraAxis.INPUT
                shapes["dora_scale"] = (1, inputs, *point) if per_input else (outputs, 1, *point)
            return shapes


def lokr_factors(size: int, factor: int) -> tuple[int, int]:
    """Return two factors of `size`, as LoKr splits a side of a weight.

    The first is `factor` if that divides `size`, else the largest divisor up to `factor` (-1: no bound) and sqrt(size).
    """
    if factor > 0 and size % factor == 0:
        return factor, size // factor
    bound = min(isqrt(size), factor) if factor > 0 else isqrt(size)
    first = next(number for number in range(bound, 0, -1) if size % number == 0)
    return first, size // first


def trained_shapes(recipe: Recipe, layers: Mapping[Layer, int]) -> Mapping[Shape, int]:
    """Return the shapes of all tensors that a recipe trains in these layers (layer -> count), with their counts."""
    settings = tuple((name, getattr(recipe, name)) for name in SHAPE_SETTINGS)
    return _trained_shapes(settings, tuple(layers.items()))


@lru_cache(maxsize=256)
def _trained_shapes(
    settings: tuple[tuple[str, Any], ...], layers: tuple[tuple[Layer, int], ...]
) -> Mapping[Shape, int]:
    recipe = Recipe.model_construct(**dict(settings))
    found: Counter[Shape] = Counter()
    for layer, count in layers:
        if dim_alpha := layer_dim_alpha(recipe, layer):
            for shape in tensor_shapes(recipe, layer, dim_alpha.dim).values():
                found[shape] += count
    return MappingProxyType(found)


def count_parameters(recipe: Recipe, layers: Mapping[Layer, int]) -> int:
    """Return the number of parameters that a recipe trains in these layers (layer -> count)."""
    return sum(prod(shape) * count for shape, count in trained_shapes(recipe, layers).items())


def unet_layers(widths: tuple[int, ...], depths: tuple[int, ...], *, per_level: int, text_width: int) -> Counter[Layer]:
    """Return the layers of a UNet of SDXL's architecture, with their counts.

    `widths` are the channels of each level, `depths` the transformer layers of each attention block (0: no attention),
    `per_level` is the number of resnets per level, `text_width` the width of the text embeddings.
    """
    found: Counter[Layer] = Counter()

    def add(role: LayerRole, block: str, outputs: int, inputs: int, kernel: int = 0, count: int = 1) -> None:
        found[Layer("unet", role, block, outputs, inputs, kernel)] += count

    def resnet(block: str, inputs: int, outputs: int) -> None:
        add(LayerRole.CONVOLUTION, block, outputs, inputs, 3)
        add(LayerRole.CONVOLUTION, block, outputs, outputs, 3)
        add(LayerRole.LINEAR, block, outputs, 4 * widths[0])
        if inputs != outputs:
            add(LayerRole.LINEAR, block, outputs, inputs, 1)

    def transformer(block: str, width: int, depth: int) -> None:
        if depth:
            add(LayerRole.PROJECTION, block, width, width, count=2)
            add(LayerRole.ATTENTION, block, width, width, count=6 * depth)
            add(LayerRole.ATTENTION, block, width, text_width, count=2 * depth)
            add(LayerRole.FEED_FORWARD, block, 8 * width, width, count=depth)
            add(LayerRole.FEED_FORWARD, block, width, 4 * width, count=depth)

    current, skips, number = widths[0], [widths[0]], 1
    for level, (width, depth) in enumerate(zip(widths, depths, strict=True)):
        for _ in range(per_level):
            resnet(f"in{number}", current, width)
            transformer(f"in{number}", width, depth)
            current, number = width, number + 1
            skips.append(width)
        if level < len(widths) - 1:
            add(LayerRole.CONVOLUTION, f"in{number}", width, width, 3)
            skips.append(width)
            number += 1
    resnet("mid0", current, current)
    transformer("mid1", current, depths[-1])
    resnet("mid2", current, current)
    number = 0
    for level, (width, depth) in reversed(list(enumerate(zip(widths, depths, strict=True)))):
        for _ in range(per_level + 1):
            resnet(f"out{number}", current + skips.pop(), width)
            transformer(f"out{number}", width, depth)
            current, number = width, number + 1
        if level:
            add(LayerRole.CONVOLUTION, f"out{number - 1}", width, width, 3)
    return found


def text_encoder_layers(model: str, width: int, depth: int, feed_forward: int | None = None) -> Counter[Layer]:
    """Return the layers of a CLIP text encoder, `te1` or `te2`, with their counts.

    `feed_forward` is the inner width of its feed-forward layers, by default 4 `width`.
    """
    inner = feed_forward or 4 * width
    found: Counter[Layer] = Counter()
    found[Layer(model, LayerRole.ATTENTION, "", width, width)] = 4 * depth
    found[Layer(model, LayerRole.FEED_FORWARD, "", inner, width)] = depth
    found[Layer(model, LayerRole.FEED_FORWARD, "", width, inner)] = depth
    return found
