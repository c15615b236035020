"""Single-file checkpoints in the layout of Stability's own code, in which SDXL models are distributed."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Protocol

import torch
from diffusers import AutoencoderKL, StableDiffusionXLPipeline, UNet2DConditionModel
from safetensors.torch import save_file
from transformers import CLIPTextModel, CLIPTextModelWithProjection

Tensors = dict[str, torch.Tensor]

RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
UNET = {
    "conv_in": "input_blocks.0.0",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
VAE = {
    "mid_block.resnets.0": "mid.block_1",
    "mid_block.resnets.1": "mid.block_2",
    "mid_block.attentions.0.group_norm": "mid.attn_1.norm",
    "mid_block.attentions.0.to_q": "mid.attn_1.q",
    "mid_block.attentions.0.to_k": "mid.attn_1.k",
    "mid_block.attentions.0.to_v": "mid.attn_1.v",
    "mid_block.attentions.0.to_out.0": "mid.attn_1.proj_out",
    "conv_norm_out": "norm_out",
    "conv_shortcut": "nin_shortcut",
    "downsamplers.0": "downsample",
    "upsamplers.0": "upsample",
}
TEXT = {
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "self_attn.out_proj": "attn.out_proj",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
}


class Parts(Protocol):
    """The models of a pipeline; on the meta device they have names and shapes without weights."""

    unet: UNet2DConditionModel
    vae: AutoencoderKL
    text_encoder: CLIPTextModel
    text_encoder_2: CLIPTextModelWithProjection


def save_single_file(pipe: StableDiffusionXLPipeline, path: Path, *markers: str, **metadata: str) -> Path:
    """Write the pipeline; `markers` are empty tensors like `v_pred` and `ztsnr`."""
    tensors = original_tensors(pipe) | {marker: torch.tensor([]) for marker in markers}
    save_file({name: weight.contiguous().clone() for name, weight in tensors.items()}, path, metadata or None)
    return path


def original_tensors(parts: Parts) -> Tensors:
    """Return all weights by their names in Stability's layout, for a model of any size."""
    tensors = {
        **_renamed("model.diffusion_model.", parts.unet.state_dict(), lambda name: _unet(name, parts.unet)),
        **_renamed(
            "first_stage_model.", parts.vae.state_dict(), lambda name: _vae(name, len(parts.vae.encoder.down_blocks))
        ),
        **_first_text(parts.text_encoder.state_dict()),
        **_second_text(parts.text_encoder_2.state_dict()),
    }
    for name, weight in tensors.items():
        if re.search(r"first_stage_model.*attn_1\.(q|k|v|proj_out)\.weight", name):
            tensors[name] = weight[:, :, None, None]  # 1x1 convolutions there
    return tensors


def _renamed(prefix: str, weights: Tensors, rename) -> Tensors:  # type: ignore[no-untyped-def]
    return {prefix + rename(name): weight for name, weight in weights.items()}


def _replaced(name: str, words: dict[str, str]) -> str:
    for old, new in words.items():
        name = re.sub(rf"(?<![\w]){re.escape(old)}(?![\w])", new, name)
    return name


def _unet(name: str, unet: UNet2DConditionModel) -> str:
    layers = unet.config.layers_per_block
    if match := re.match(r"mid_block\.(resnets|attentions)\.(\d)\.(.*)", name):
        place = "1" if match[1] == "attentions" else str(2 * int(match[2]))
        return f"middle_block.{place}.{_inner(match[1], match[3])}"
    if match := re.match(r"(down|up)_blocks\.(\d)\.(resnets|attentions|downsamplers|upsamplers)\.(\d)\.(.*)", name):
        side, level, kind, index, rest = match[1], int(match[2]), match[3], int(match[4]), match[5]
        if kind == "downsamplers":
            return f"input_blocks.{(level + 1) * (layers + 1)}.0.op.{rest.removeprefix('conv.')}"
        if kind == "upsamplers":
            attends = hasattr(unet.up_blocks[level], "attentions")
            return f"output_blocks.{level * (layers + 1) + layers}.{2 if attends else 1}.{rest}"
        number = 1 + level * (layers + 1) + index if side == "down" else level * (layers + 1) + index
        blocks = "input_blocks" if side == "down" else "output_blocks"
        return f"{blocks}.{number}.{1 if kind == 'attentions' else 0}.{_inner(kind, rest)}"
    return _replaced(name, UNET)


def _inner(kind: str, rest: str) -> str:
    return _replaced(rest, RESNET) if kind == "resnets" else rest


def _vae(name: str, levels: int) -> str:
    name = re.sub(r"down_blocks\.(\d)\.resnets", r"down.\1.block", name)
    name = re.sub(r"down_blocks\.(\d)", r"down.\1", name)
    name = re.sub(r"up_blocks\.(\d)\.resnets", lambda match: f"up.{levels - 1 - int(match[1])}.block", name)
    name = re.sub(r"up_blocks\.(\d)", lambda match: f"up.{levels - 1 - int(match[1])}", name)
    return _replaced(name, VAE)


def _first_text(weights: Tensors) -> Tensors:
    prefix = "conditioner.embedders.0.transformer.text_model."
    return {prefix + name.removeprefix("text_model."): weight for name, weight in weights.items()}


def _second_text(weights: Tensors) -> Tensors:
    weights = {name.removeprefix("text_model."): weight for name, weight in weights.items()}
    found = {
        "token_embedding.weight": weights["embeddings.token_embedding.weight"],
        "positional_embedding": weights["embeddings.position_embedding.weight"],
        "text_projection": weights["text_projection.weight"].T,
        "ln_final.weight": weights["final_layer_norm.weight"],
        "ln_final.bias": weights["final_layer_norm.bias"],
    }
    for name, weight in weights.items():
        match = re.match(r"encoder\.layers\.(\d+)\.(.*)\.(weight|bias)", name)
        if match and not re.search(r"[qkv]_proj", match[2]):
            found[f"transformer.resblocks.{match[1]}.{_replaced(match[2], TEXT)}.{match[3]}"] = weight
        elif match and "q_proj" in match[2]:
            parts = [weights[name.replace("q_proj", f"{letter}_proj")] for letter in "qkv"]
            found[f"transformer.resblocks.{match[1]}.attn.in_proj_{match[3]}"] = torch.cat(parts)
    return {f"conditioner.embedders.1.model.{name}": weight for name, weight in found.items()}
