"""Find the layers of real models that can have an adapter, with their names in kohya's files."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import nn

from lora_studio.lora.shapes import Layer, LayerRole

TEXT_LAYERS = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.out_proj", "mlp.fc1", "mlp.fc2")
# The layers of a resnet in Stability's code (generative-models).
RESNET_NAMES = {
    "conv1": "in_layers.2",
    "conv2": "out_layers.3",
    "time_emb_proj": "emb_layers.1",
    "conv_shortcut": "skip_connection",
}
_BLOCK = re.compile(r"(input|middle|output)_blocks?\.(\d+)\.")
_SHORT = {"input": "in", "middle": "mid", "output": "out"}


class TargetLayer(NamedTuple):
    """A layer that can have an adapter: `path` in diffusers or transformers, `stability_path` in Stability's UNet."""

    model: str
    path: str
    stability_path: str
    layer: Layer

    @property
    def kohya_name(self) -> str:
        """The layer's name in kohya's files."""
        return kohya_name(self.model, self.path, self.stability_path)


def find_target_layers(unet: UNet2DConditionModel | None, text_encoders: Sequence[nn.Module]) -> list[TargetLayer]:
    """Return every layer that some recipe can train, model by model in module order.

    Call it before adapters are injected.
    """
    found = list(_unet_layers(unet)) if unet is not None else []
    for number, encoder in enumerate(text_encoders, 1):
        for path, module in encoder.named_modules():
            if isinstance(module, nn.Linear) and path.endswith(TEXT_LAYERS):
                role = LayerRole.ATTENTION if ".self_attn." in path else LayerRole.FEED_FORWARD
                layer = Layer(f"te{number}", role, "", module.out_features, module.in_features)
                found.append(TargetLayer(f"te{number}", path, "", layer))
    return found


def _unet_layers(unet: UNet2DConditionModel) -> Iterator[TargetLayer]:
    blocks = block_names(unet)
    for path, module in unet.named_modules():
        stability = to_stability_path(path, blocks)
        match = _BLOCK.match(stability)
        if match is None or not isinstance(module, nn.Linear | nn.Conv2d):
            continue
        block = _SHORT[match[1]] + match[2]
        if isinstance(module, nn.Linear):
            layer = Layer("unet", _role(path, 0), block, module.out_features, module.in_features)
        else:
            kernel = module.kernel_size[0]
            layer = Layer("unet", _role(path, kernel), block, module.out_channels, module.in_channels, kernel)
        yield TargetLayer("unet", path, stability, layer)


def _role(path: str, kernel: int) -> LayerRole:
    if ".attentions." not in path:
        return LayerRole.CONVOLUTION if kernel > 1 else LayerRole.LINEAR
    if ".attn1." in path or ".attn2." in path:
        return LayerRole.ATTENTION
    return LayerRole.FEED_FORWARD if ".ff." in path else LayerRole.PROJECTION


def block_names(unet: UNet2DConditionModel) -> dict[str, str]:
    """Return diffusers' path prefix -> Stability's of every module in a UNet's blocks, for any number of levels.

    Stability's code numbers them consecutively: `input_blocks.0` is the first convolution, then each pair of resnet and
    attention has a number, and each downsampler. In `output_blocks` an upsampler belongs to the last pair of its level.
    """
    names = {}
    down_blocks: Iterable[Any] = unet.down_blocks
    up_blocks: Iterable[Any] = unet.up_blocks
    number = 1
    for level, block in enumerate(down_blocks):
        for layer in range(len(block.resnets)):
            names[f"down_blocks.{level}.resnets.{layer}."] = f"input_blocks.{number}.0."
            names[f"down_blocks.{level}.attentions.{layer}."] = f"input_blocks.{number}.1."
            number += 1
        for _ in block.downsamplers or ():
            names[f"down_blocks.{level}.downsamplers.0."] = f"input_blocks.{number}.0."
            number += 1
    names["mid_block.resnets.0."] = "middle_block.0."
    names["mid_block.attentions.0."] = "middle_block.1."
    names["mid_block.resnets.1."] = "middle_block.2."
    number = 0
    for level, block in enumerate(up_blocks):
        for layer in range(len(block.resnets)):
            names[f"up_blocks.{level}.resnets.{layer}."] = f"output_blocks.{number}.0."
            names[f"up_blocks.{level}.attentions.{layer}."] = f"output_blocks.{number}.1."
            number += 1
        if block.upsamplers:
            position = 2 if getattr(block, "attentions", None) else 1
            names[f"up_blocks.{level}.upsamplers.0."] = f"output_blocks.{number - 1}.{position}."
    return names


def block_of(path: str, blocks: dict[str, str]) -> str:
    """Return the block of a UNet layer at this path, like in4; empty outside. `blocks` is that of `block_names`."""
    match = _BLOCK.match(to_stability_path(path, blocks))
    return _SHORT[match[1]] + match[2] if match else ""


def to_stability_path(path: str, blocks: dict[str, str]) -> str:
    """Return a layer's path in Stability's UNet; empty outside the blocks. `blocks` is the result of `block_names`."""
    parts = path.split(".")
    depth = 3 if parts[0] == "mid_block" else 4
    prefix, name = ".".join(parts[:depth]) + ".", ".".join(parts[depth:])
    if prefix not in blocks:
        return ""
    if ".resnets." in prefix:
        name = RESNET_NAMES.get(name, name)
    if ".downsamplers." in prefix:
        name = "op"
    return blocks[prefix] + name


def kohya_name(model: str, path: str, stability: str = "") -> str:
    """Return a layer's name in kohya's files; `model` is unet, te1 or te2, `stability` the path in Stability's UNet."""
    if model != "unet" and not path.startswith("text_model."):
        path = f"text_model.{path}"  # newer versions of transformers lack this level in the first text encoder
    return f"lora_{model}_{(stability or path).replace('.', '_')}"
