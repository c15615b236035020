"""Find the layers of real models that can have an adapter, with their names in kohya's files."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import nn

from lora_studio.lora.names import OUTSIDE_NAMES, kohya_name, number_blocks, to_stability_path
from lora_studio.lora.shapes import Layer, LayerRole

TEXT_LAYERS = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.out_proj", "mlp.fc1", "mlp.fc2")
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


def find_readable_layers(unet: UNet2DConditionModel, text_encoders: Sequence[nn.Module]) -> list[TargetLayer]:
    """Return every layer that a file may change: those that some recipe can train, and those outside the blocks."""
    found = find_target_layers(unet, text_encoders)
    for path, stability in OUTSIDE_NAMES.items():
        module: Any = unet.get_submodule(path)
        if isinstance(module, nn.Linear):
            layer = Layer("unet", LayerRole.LINEAR, "", module.out_features, module.in_features)
        elif isinstance(module, nn.Conv2d):
            layer = Layer(
                "unet", LayerRole.CONVOLUTION, "", module.out_channels, module.in_channels, module.kernel_size[0]
            )
        else:
            continue
        found.append(TargetLayer("unet", path, stability, layer))
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
    """Return diffusers' path prefix -> Stability's of every module in a UNet's blocks: see `number_blocks`."""
    down_blocks: Iterable[Any] = unet.down_blocks
    up_blocks: Iterable[Any] = unet.up_blocks
    return number_blocks(
        [(len(block.resnets), bool(block.downsamplers)) for block in down_blocks],
        [(len(block.resnets), bool(getattr(block, "attentions", None)), bool(block.upsamplers)) for block in up_blocks],
    )


def stability_paths(unet: UNet2DConditionModel) -> dict[str, str]:
    """Return the path in Stability's UNet of every module that has one, norms and embeddings included."""
    blocks = block_names(unet)
    paths = {path: to_stability_path(path, blocks) for path, _ in unet.named_modules()}
    return {path: stability for path, stability in (paths | OUTSIDE_NAMES).items() if stability}


def block_of(path: str, blocks: dict[str, str]) -> str:
    """Return the block of a UNet layer at this path, like in4; empty outside. `blocks` is that of `block_names`."""
    match = _BLOCK.match(to_stability_path(path, blocks))
    return _SHORT[match[1]] + match[2] if match else ""
