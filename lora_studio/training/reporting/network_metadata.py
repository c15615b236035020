"""The network metadata of a LoRA file: the network module and arguments that sd-scripts would train it with."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from lora_studio.lora.shapes import DimAlpha, DoraAxis
from lora_studio.settings.block_dims import parse_block_dims
from lora_studio.settings.blocks import BLOCKS, PART_SIZES
from lora_studio.settings.choices import NetworkType, TrainLayers
from lora_studio.settings.recipe import Recipe
from lora_studio.settings.sections.rates import BLOCK_WEIGHTS, LORAPLUS_RATIOS

# LyCORIS' names of network types and layer choices.
ALGORITHMS = {
    NetworkType.LORA: "locon",
    NetworkType.LOCON: "locon",
    NetworkType.DORA: "locon",
    NetworkType.LOHA: "loha",
    NetworkType.LOKR: "lokr",
}
PRESETS = {
    TrainLayers.ATTENTION: "attn-only",
    TrainLayers.ATTENTION_FF: "attn-mlp",
    TrainLayers.LINEAR: "full-lin",
    TrainLayers.ALL: "full",
}


def build_network_metadata(
    recipe: Recipe, axis: DoraAxis | None = None, dims: Collection[DimAlpha] = ()
) -> dict[str, Any]:
    """Return the `ss_network_*` entries: sd-scripts' own module where it can train the network, else LyCORIS.

    `axis` is that of a DoRA's magnitudes, `dims` are those of the layers. With `dim_from_weights` dim and alpha are
    "Dynamic" if the layers differ, as after sd-scripts' resizing.
    """
    plain = recipe.network_type in (NetworkType.LORA, NetworkType.LOCON)
    own = plain and (recipe.trains_convolutions or recipe.train_layers is TrainLayers.ATTENTION_FF)
    own = own and not recipe.rank_stabilized
    from_file = recipe.dim_from_weights and dims
    return {
        "ss_network_module": "networks.lora" if own else "lycoris.kohya",
        "ss_network_dim": _shared({layer.dim for layer in dims}) if from_file else recipe.network_dim,
        "ss_network_alpha": _shared({layer.alpha for layer in dims}) if from_file else recipe.network_alpha,
        "ss_network_args": _arguments(recipe, axis, lycoris=not own),
        "ss_network_dropout": recipe.network_dropout or None,
    }


def _shared(values: Collection[float]) -> float | str:
    """Return the only value, or sd-scripts' word for several."""
    return next(iter(values)) if len(values) == 1 else "Dynamic"


def _arguments(recipe: Recipe, axis: DoraAxis | None, *, lycoris: bool) -> dict[str, str]:
    found: dict[str, str] = {}
    if lycoris:
        layers = TrainLayers.ALL if recipe.trains_convolutions else recipe.train_layers
        found |= {"algo": ALGORITHMS[recipe.network_type], "preset": PRESETS[layers]}
    if recipe.trains_convolutions:
        dim = recipe.conv_dim or recipe.network_dim
        alpha = recipe.conv_alpha or recipe.network_alpha * dim / recipe.network_dim
        found |= {"conv_dim": str(dim), "conv_alpha": f"{alpha:g}"}
    if recipe.network_type is NetworkType.DORA:
        found |= {"dora_wd": "True", "wd_on_output": str(axis is DoraAxis.OUTPUT)}
    if recipe.network_type is NetworkType.LOKR:
        found |= {"factor": str(recipe.lokr_factor)}
        found |= {"full_matrix": "True"} if recipe.is_full_matrix else {}
    if recipe.use_tucker:
        found |= {"use_tucker": "True"}
    for name in ("rank_dropout", "module_dropout"):
        if value := getattr(recipe, name):
            found[name] = f"{value:g}"
    if recipe.rank_stabilized:
        found |= {"rs_lora": "True"}
    for name in LORAPLUS_RATIOS:
        if ratio := getattr(recipe, name):
            found[name] = f"{ratio:g}"
    for name, part in zip(BLOCK_WEIGHTS, PART_SIZES, strict=True):
        if getattr(recipe, name):
            factors = (factor for block, factor in recipe.block_factors.items() if block.startswith(part))
            found[name] = ",".join(f"{factor:g}" for factor in factors)
    if dims := parse_block_dims(recipe.block_dims):
        numbers = [dims.get(block, recipe.network_dim) for block in BLOCKS]
        found |= {"block_dims": ",".join(map(str, [0, *numbers, 0]))}
    return found
