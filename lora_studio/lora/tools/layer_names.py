"""Names of a LoRA's layers in kohya's and in diffusers' format, for a file without its base."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from typing import NamedTuple

from lora_studio.errors import InputError
from lora_studio.lora.names import ANY_TEXT_ENCODER, names_of_layer, sdxl_layer_names

PER_LEVEL = (2, 1)  # resnets per level of the down blocks: SDXL, and the embedded base


class LayerName(NamedTuple):
    """A layer's model (unet, te1 or te2), its path in diffusers, and its name in kohya's files."""

    model: str
    path: str
    kohya: str


def find_layer_names(layers: Iterable[str], *, is_whole: bool = False) -> dict[str, LayerName]:
    """Return the names of these layers of a file, by their name in it.

    The structure of the UNet is SDXL's, or the embedded base's if only that has all of the layers. A few layers in
    diffusers' names may be those of either; all layers of a model (`is_whole`) are not. Raises InputError for a layer
    that neither has.
    """
    layers = list(layers)
    if unclear := [layer for layer in layers if ANY_TEXT_ENCODER in layer.replace(".", "_").split("_")[:4]]:
        raise InputError(
            f"The file does not say which text encoder its layer {unclear[0]} belongs to.",
            "Save it with both text encoders, or with names that start with text_encoder. or text_encoder_2.",
            code="lora_names",
        )
    unknown: list[str] = []
    for per_level in sorted(PER_LEVEL, reverse=not is_whole):  # all layers of the smaller one are layers of SDXL, too
        known = _known_names(per_level)
        if not (missing := [layer for layer in layers if layer not in known]):
            return {layer: known[layer] for layer in layers}
        unknown = unknown or missing
    raise InputError(
        f"SDXL does not have the layer {unknown[0]} ({len(unknown)} of {len(layers)} layers are unknown).",
        "Choose a LoRA for SDXL.",
        code="lora_names",
    )


@cache
def _known_names(per_level: int) -> dict[str, LayerName]:
    known: dict[str, LayerName] = {}
    for model, path, stability, kohya in sdxl_layer_names(per_level):
        for name in names_of_layer(model, path, stability):
            known.setdefault(name, LayerName(model, path, kohya))
    return known
