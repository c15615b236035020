"""The network metadata of a LoRA file: the network module and arguments that sd-scripts would train it with."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from lora_studio.interop.network import network_arguments
from lora_studio.lora.shapes import DimAlpha, DoraAxis
from lora_studio.settings.recipe import Recipe


def build_network_metadata(
    recipe: Recipe, axis: DoraAxis | None = None, dims: Collection[DimAlpha] = ()
) -> dict[str, Any]:
    """Return the `ss_network_*` entries.

    `axis` is that of a DoRA's magnitudes, `dims` are those of the layers. With `dim_from_weights` dim and alpha are
    "Dynamic" if the layers differ, as after sd-scripts' resizing.
    """
    module, arguments = network_arguments(recipe, wd_on_output=axis is DoraAxis.OUTPUT)
    from_file = recipe.dim_from_weights and dims
    return {
        "ss_network_module": module,
        "ss_network_dim": _shared({layer.dim for layer in dims}) if from_file else recipe.network_dim,
        "ss_network_alpha": _shared({layer.alpha for layer in dims}) if from_file else recipe.network_alpha,
        "ss_network_args": arguments,
        "ss_network_dropout": recipe.network_dropout or None,
    }


def _shared(values: Collection[float]) -> float | str:
    """Return the only value, or sd-scripts' word for several."""
    return next(iter(values)) if len(values) == 1 else "Dynamic"
