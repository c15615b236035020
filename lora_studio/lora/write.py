"""Write the trained weights as a file that A1111, Forge, ComfyUI and diffusers read.

In kohya's and LyCORIS' format a layer NAME has `NAME.alpha` [] and

- `NAME.lora_down.weight` [dim, in...] and `NAME.lora_up.weight` [out, dim...], 1x1 for a convolution
- for DoRA also `NAME.dora_scale`: the norm of each column [1, in, 1...] or row [out, 1...] of the merged weight, which
  is (W + D) dora_scale / ||W + D||. Which program reads which is said in `lora_studio.lora.dora`
- `NAME.hada_w1_a` [out, dim], `NAME.hada_w1_b` [dim, in * area] and the same with w2
- `NAME.lokr_w1`, and `NAME.lokr_w2` or `NAME.lokr_w2_a` and `NAME.lokr_w2_b`

and the program that loads it adds D, alpha / dim times their product, to the layer's weight W. UNet layers have the
names of Stability's code (`input_blocks`, `middle_block`, `output_blocks`), which every program reads. In diffusers'
format the names are those of its models, and alpha is in the metadata.

Some programs misread an alpha: diffusers applies the most common one to all attention layers, and forks of A1111 apply
alpha / dim after a DoRA's magnitudes. So a LoRA or LoCon has one alpha for all layers, a DoRA has alpha = dim, and
`lora_up` is multiplied by the rest.
"""

from __future__ import annotations

import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import Tensor

from lora_studio.lora.dora import dora_magnitude
from lora_studio.lora.inject import (
    ADAPTER_NAME,
    DOWN,
    MAGNITUDE,
    UP,
    AdaptedLayer,
    Adapters,
    layer_alpha,
    layer_tensors,
)
from lora_studio.lora.layers import block_names
from lora_studio.lora.names import PEFT_PREFIXES, kohya_name, to_stability_path
from lora_studio.lora.save import peft_metadata
from lora_studio.lora.shapes import DimAlpha, shared_alpha
from lora_studio.settings.choices import SaveFormat

# The factor, one per network type, that is multiplied by what the file's alpha lacks of the layer's.
ALPHA_CORRECTED_PARTS = (UP, "hada_w1_a", "lokr_w1")
DIFFUSERS_NAMES = {DOWN: "lora_A.weight", UP: "lora_B.weight", MAGNITUDE: "lora_magnitude_vector"}


def lora_tensors(
    adapters: Adapters, unet: UNet2DConditionModel, dtype: torch.dtype, save_format: SaveFormat = SaveFormat.KOHYA
) -> dict[str, Tensor]:
    """Return all tensors of the file, on the CPU, in `dtype`."""
    if save_format is SaveFormat.DIFFUSERS:
        return {
            _diffusers_name(model, path, part): _to_cpu(weight, dtype)
            for model, path, layer in adapters.layers
            for part, weight in layer_tensors(layer).items()
        }
    blocks = block_names(unet)
    shared = shared_alpha(layer_alpha(layer) for _, _, layer in adapters.layers)
    tensors: dict[str, Tensor] = {}
    for model, path, layer in adapters.layers:
        name = kohya_name(model, path, to_stability_path(path, blocks) if model == "unet" else "")
        tensors |= {f"{name}.{part}": weight for part, weight in _kohya_tensors(layer, dtype, shared).items()}
    return tensors


def _diffusers_name(model: str, path: str, part: str) -> str:
    """Return a tensor's name in diffusers' format; a DoRA's magnitude differs between UNet and text encoders."""
    ending = ".weight" if part == MAGNITUDE and model != "unet" else ""
    return f"{PEFT_PREFIXES[model]}.{path}.{DIFFUSERS_NAMES[part]}{ending}"


def _kohya_tensors(layer: AdaptedLayer, dtype: torch.dtype, shared: float) -> dict[str, Tensor]:
    """Return a layer's tensors with the file's alpha, rounded to `dtype`; one factor is multiplied by the rest.

    `shared` is the alpha of all layers of a LoRA or LoCon.
    """
    parameters = layer_tensors(layer)
    alpha = layer_alpha(layer)
    magnitude = dora_magnitude(layer, ADAPTER_NAME)
    if magnitude is not None:
        rounded = torch.tensor(layer.r[ADAPTER_NAME], dtype=dtype)
    else:
        rounded = torch.tensor(shared if UP in parameters else alpha, dtype=dtype)
    correction = alpha / float(rounded)
    found = {}
    for part, parameter in parameters.items():
        weight = parameter.detach()
        if magnitude is not None and part == MAGNITUDE:
            shape = [1] * layer.get_base_weight().dim()
            shape[magnitude.axis] = -1
            weight = weight.reshape(shape)
        elif part in ALPHA_CORRECTED_PARTS and correction != 1:
            weight = weight * correction
        found[part] = _to_cpu(weight, dtype)
    return found | {"alpha": rounded}


def _to_cpu(weight: Tensor, dtype: torch.dtype) -> Tensor:
    return weight.detach().to("cpu", dtype, copy=True).contiguous()


def adapter_metadata(adapters: Adapters) -> dict[str, str]:
    """Return the metadata that diffusers' format needs: see `peft_metadata`."""
    dims: dict[str, dict[str, DimAlpha]] = {}
    for model, path, layer in adapters.layers:
        dims.setdefault(model, {})[path] = DimAlpha(layer.r[ADAPTER_NAME], layer_alpha(layer))
    return peft_metadata(dims, use_dora=any(MAGNITUDE in layer_tensors(layer) for _, _, layer in adapters.layers))
