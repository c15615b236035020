"""LoRA layers in the UNet and the text encoders, at the places where kohya's trainer puts them.

Hu et al. 2021, "LoRA: Low-Rank Adaptation of Large Language Models" (arXiv:2106.09685): each chosen weight W acts as
W + (alpha / rank) * B A. A and B are always fp32: in bf16 a step of 1e-4 is lost in rounding. The base stays frozen in
its own dtype.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

NAME = "default"
TEXT_LAYERS = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.out_proj", "mlp.fc1", "mlp.fc2")


@dataclass(frozen=True)
class Adapters:
    """The models that carry a LoRA, by the name of kohya's files: `unet`, `te1`, `te2`."""

    models: dict[str, nn.Module]
    network_dim: int
    network_alpha: float

    @cached_property
    def layers(self) -> list[tuple[str, str, LoraLayer]]:
        """Every adapted layer as (model, path in the model, layer), in a fixed order."""
        return [
            (prefix, path, module)
            for prefix, model in self.models.items()
            for path, module in model.named_modules()
            if isinstance(module, LoraLayer)
        ]

    def parameters(self, *prefixes: str) -> list[nn.Parameter]:
        """The trained weights of these models, in a fixed order."""
        return [
            parameter
            for prefix, _, layer in self.layers
            if prefix in prefixes
            for parameter in (layer.lora_A[NAME].weight, layer.lora_B[NAME].weight)
        ]

    def state(self) -> dict[str, Tensor]:
        """The weights by name: `unet/PATH/A` [rank, in...] and `unet/PATH/B` [out, rank...], fp32, on the CPU."""
        result = {}
        for prefix, path, layer in self.layers:
            for letter, part in (("A", layer.lora_A), ("B", layer.lora_B)):
                result[f"{prefix}/{path}/{letter}"] = part[NAME].weight.detach().cpu().contiguous()
        return result

    @torch.no_grad()
    def load_state(self, state: dict[str, Tensor]) -> None:
        """Take back what `state` gave; raises KeyError or RuntimeError if it is another network's."""
        for prefix, path, layer in self.layers:
            for letter, part in (("A", layer.lora_A), ("B", layer.lora_B)):
                part[NAME].weight.copy_(state[f"{prefix}/{path}/{letter}"])

    def finite(self) -> bool:
        """Whether every weight is a number; one wait for the device."""
        parts = [parameter.detach().isfinite().all() for parameter in self.parameters(*self.models)]
        return bool(torch.stack(parts).all())


def unet_targets(unet: nn.Module) -> list[str]:
    """All linear layers (and 1x1 convolutions) of the transformers: 722 in SDXL, as in kohya's files."""
    return [
        f"{path}.{name}"
        for path, block in unet.named_modules()
        if isinstance(block, Transformer2DModel)
        for name, layer in block.named_modules()
        if isinstance(layer, nn.Linear | nn.Conv2d)
    ]


def text_encoder_targets(text_encoder: nn.Module) -> list[str]:
    """Attention and feed-forward layers: 72 in SDXL's first text encoder, 192 in its second."""
    return [name for name, layer in text_encoder.named_modules() if name.endswith(TEXT_LAYERS)]


def add_adapters(
    unet: nn.Module,
    text_encoders: list[nn.Module],
    *,
    network_dim: int,
    network_alpha: float,
    seed: int,
    train_unet: bool = True,
    train_text_encoders: bool = True,
) -> Adapters:
    """Put LoRA layers into the models, in place. A is drawn from `seed`, B is zero: nothing changes before training.

    The layers' `cast_input_dtype_enabled` is off where the base is in half precision, since autocast does the casting.
    """
    chosen: dict[str, tuple[nn.Module, list[str]]] = {}
    if train_unet:
        chosen["unet"] = (unet, unet_targets(unet))
    if train_text_encoders:
        for number, encoder in enumerate(text_encoders, 1):
            chosen[f"te{number}"] = (encoder, text_encoder_targets(encoder))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for model, targets in chosen.values():
            config = LoraConfig(r=network_dim, lora_alpha=network_alpha, target_modules=targets)
            inject_adapter_in_model(config, model, adapter_name=NAME)
    adapters = Adapters({prefix: model for prefix, (model, _) in chosen.items()}, network_dim, network_alpha)
    for prefix, _, layer in adapters.layers:
        layer.cast_input_dtype_enabled = next(chosen[prefix][0].parameters()).dtype == torch.float32
    for parameter in adapters.parameters(*adapters.models):
        parameter.data = parameter.data.float()
        parameter.requires_grad_(True)
    return adapters
