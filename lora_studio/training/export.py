"""The LoRA as a file that A1111, Forge, ComfyUI and diffusers read: kohya's SDXL format.

A layer gives `NAME.lora_down.weight` [rank, in...], `NAME.lora_up.weight` [out, rank...] and `NAME.alpha` []; the
program that loads it adds alpha / rank * up * down. UNet layers have the names of Stability's own code
(`input_blocks`, `middle_block`, `output_blocks`), which every program knows.
"""

from __future__ import annotations

import hashlib
import struct
from pathlib import Path

import safetensors.torch
import torch
from diffusers import UNet2DConditionModel
from torch import Tensor

from lora_studio.files import write_bytes
from lora_studio.training.adapters import NAME, Adapters
from lora_studio.training.base_models import HASH_LENGTH, HASH_START


def block_names(unet: UNet2DConditionModel) -> dict[str, str]:
    """Diffusers' paths of a UNet's attention blocks -> Stability's, for any number of levels and layers.

    Stability's code counts through: `input_blocks.0` is the first convolution, then comes one number for every pair of
    resnet and attention, and one for every downsampler; `output_blocks` likewise, upsamplers within the last pair.
    """
    names = {}
    number = 1
    for level, block in enumerate(unet.down_blocks):
        for layer in range(len(block.resnets)):
            names[f"down_blocks.{level}.attentions.{layer}."] = f"input_blocks.{number}.1."
            number += 1
        number += len(block.downsamplers or ())
    names["mid_block.attentions.0."] = "middle_block.1."
    number = 0
    for level, block in enumerate(unet.up_blocks):
        for layer in range(len(block.resnets)):
            names[f"up_blocks.{level}.attentions.{layer}."] = f"output_blocks.{number}.1."
            number += 1
    return names


def kohya_name(model: str, path: str, blocks: dict[str, str]) -> str:
    """The name of a layer in kohya's files; `model` is unet, te1 or te2, `blocks` comes from `block_names`."""
    if model == "unet":
        prefix = next((prefix for prefix in blocks if path.startswith(prefix)), "")
        path = blocks.get(prefix, "") + path.removeprefix(prefix)
    elif not path.startswith("text_model."):  # transformers has dropped this level from the first text encoder
        path = f"text_model.{path}"
    return f"lora_{model}_{path.replace('.', '_')}"


def lora_tensors(adapters: Adapters, unet: UNet2DConditionModel, dtype: torch.dtype) -> dict[str, Tensor]:
    """All tensors of the file, on the CPU, in `dtype`."""
    blocks = block_names(unet)
    tensors = {}
    for model, path, layer in adapters.layers:
        name = kohya_name(model, path, blocks)
        tensors[f"{name}.lora_down.weight"] = _stored(layer.lora_A[NAME].weight, dtype)
        tensors[f"{name}.lora_up.weight"] = _stored(layer.lora_B[NAME].weight, dtype)
        tensors[f"{name}.alpha"] = torch.tensor(float(adapters.network_alpha), dtype=dtype)
    return tensors


def _stored(weight: Tensor, dtype: torch.dtype) -> Tensor:
    return weight.detach().to("cpu", dtype, copy=True).contiguous()


def save_lora(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    """Write the file atomically, with the hashes that programs recognise a LoRA by.

    Raises DiskFullError or InputError for what the disk refuses.
    """
    write_bytes(path, safetensors.torch.save(tensors, {**metadata, **model_hashes(tensors, metadata)}))


def model_hashes(tensors: dict[str, Tensor], metadata: dict[str, str]) -> dict[str, str]:
    """kohya's two hashes of a LoRA: of all after the header, and A1111's older one of a window of the file.

    Both are taken from a file that carries the `ss_` entries only, so that editing a title does not change them.
    """
    training = {key: value for key, value in metadata.items() if key.startswith("ss_")}
    content = safetensors.torch.save(tensors, training)
    (header,) = struct.unpack("<Q", content[:8])
    return {
        "sshs_model_hash": hashlib.sha256(content[8 + header :]).hexdigest(),
        "sshs_legacy_hash": hashlib.sha256(content[HASH_START : HASH_START + HASH_LENGTH]).hexdigest()[:8],
    }
