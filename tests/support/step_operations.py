"""Counts of the operations and saved bytes of a step at SDXL's real size, with the studio's LoRA layers and peft's.

Counted on the meta device, which computes shapes only: forward and backward pass at 1024 px, batch 1, rank 32, base and
LoRA in bf16, flash attention.
"""

from __future__ import annotations

import json
from dataclasses import dataclass

import torch
from diffusers import UNet2DConditionModel
from peft import LoraConfig, inject_adapter_in_model

from lora_studio.lora.inject import add_adapters
from lora_studio.models.locate import SDXL_CONFIG
from lora_studio.settings.recipe import Recipe
from lora_studio.training.optim.flat_params import FlatParameters, ParameterLayout
from lora_studio.training.optim.optimizers import parameter_groups
from lora_studio.training.speed.attention import use_plain_attention
from lora_studio.training.speed.geglu import use_lean_geglu
from tests.support.counting import CountedOperations, FlashAttention, saved_bytes

RANK = 32


@dataclass(frozen=True)
class Count:
    """Operations except views, and bytes that autograd saves besides the weights."""

    operations: int
    saved: int


def real_unet() -> UNet2DConditionModel:
    """Build SDXL's frozen UNet in bf16, on the device of the context."""
    config = json.loads((SDXL_CONFIG / "unet" / "config.json").read_text("utf-8"))
    return UNet2DConditionModel.from_config(config).to(torch.bfloat16).requires_grad_(False)


def count_studio() -> Count:
    """Count a step with the studio's LoRA layers."""
    with torch.device("meta"):
        unet = real_unet()
        recipe = Recipe(network_dim=RANK, network_alpha=RANK / 2, text_encoder_lr=0.0)
        adapters = add_adapters(unet, [], recipe)
        FlatParameters(parameter_groups(adapters, recipe), ParameterLayout.FLAT, adapters, torch.bfloat16)
        use_plain_attention(unet)
        use_lean_geglu(unet)
    return count_step(unet)


def count_peft() -> Count:
    """Count a step with peft's LoRA layers in the same places, with weights in bf16."""
    with torch.device("meta"):
        unet = real_unet()
        recipe = Recipe(network_dim=RANK, network_alpha=RANK / 2, text_encoder_lr=0.0)
        targets = [path for _, path, _ in add_adapters(real_unet(), [], recipe).layers]
        inject_adapter_in_model(LoraConfig(r=RANK, lora_alpha=RANK // 2, target_modules=targets), unet)
    for parameter in unet.parameters():
        parameter.data = parameter.data.bfloat16()
    return count_step(unet)


def count_step(unet: UNet2DConditionModel) -> Count:
    """Count the forward and backward pass of a UNet with LoRA layers."""
    noisy, text = (
        torch.empty(shape, dtype=torch.bfloat16, device="meta") for shape in ((1, 4, 128, 128), (1, 77, 2048))
    )
    added = {name: torch.empty(1, size, device="meta") for name, size in (("text_embeds", 1280), ("time_ids", 6))}
    t = torch.empty(1, device="meta")
    with FlashAttention(), saved_bytes(unet.parameters()) as saved, CountedOperations() as done:
        prediction = unet(noisy, t, encoder_hidden_states=text, added_cond_kwargs=added, return_dict=False)[0]
        prediction.float().square().mean().backward()
    return Count(done.total, saved())
