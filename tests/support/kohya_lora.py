"""Random LoRAs in kohya's file format for the tiny SDXL; names follow rules of this file, not the studio's code."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

import torch
from diffusers import StableDiffusionXLPipeline
from safetensors.torch import save_file

TEXT_LAYERS = ("q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2")


def sgm_name(module: str) -> str:
    """Return kohya's name of a module: `down_blocks.1.attentions.0.proj_in` is `input_blocks_4_1_proj_in`."""
    place = re.match(r"(down|up|mid)_blocks?(?:\.(\d+))?\.attentions\.(\d+)\.", module)
    assert place is not None
    kind, rest = place[1], module[place.end() :]
    if kind == "down":
        start = f"input_blocks.{1 + 3 * int(place[2]) + int(place[3])}.1."
    elif kind == "up":
        start = f"output_blocks.{3 * int(place[2]) + int(place[3])}.1."
    else:
        start = "middle_block.1."
    return (start + rest).replace(".", "_")


def attention_layers(pipe: StableDiffusionXLPipeline) -> dict[str, torch.nn.Linear]:
    """Return the linear layers of the UNet that kohya trains by default."""
    return {
        name: module
        for name, module in pipe.unet.named_modules()
        if isinstance(module, torch.nn.Linear) and ".attentions." in name
    }


def text_layers(pipe: StableDiffusionXLPipeline, encoder: int) -> dict[str, torch.nn.Linear]:
    """Return the linear layers of text encoder 1 or 2."""
    model = pipe.text_encoder if encoder == 1 else pipe.text_encoder_2
    return {name: module for name, module in model.named_modules() if name.split(".")[-1] in TEXT_LAYERS}


def make_lora(
    pipe: StableDiffusionXLPipeline,
    *,
    sgm: bool = True,
    text_encoders: bool = True,
    te1_text_model: bool = True,
    ranks: Iterable[int] = (4,),
    alpha: float | None = 2.0,
    size: float = 0.15,
    seed: int = 0,
) -> tuple[dict[str, torch.Tensor], dict[tuple[str, str], torch.Tensor]]:
    """Return the tensors of a file, and by (model, layer) the change of the base's weights at strength 1.

    The layers take the `ranks` one after the other, repeatedly; without `alpha` the file has none: alpha = rank.
    """
    generator = torch.Generator().manual_seed(seed)
    named: list[tuple[str, str, str, torch.nn.Linear]] = []
    for name, layer in attention_layers(pipe).items():
        flat = sgm_name(name) if sgm else name.replace(".", "_")
        named.append(("unet", name, f"lora_unet_{flat}", layer))
    for encoder in (1, 2) if text_encoders else ():
        for name, layer in text_layers(pipe, encoder).items():
            flat = name.removeprefix("text_model.").replace(".", "_")
            bare = encoder == 1 and not te1_text_model
            prefix = f"lora_te{encoder}_" + ("" if bare else "text_model_")
            named.append((f"te{encoder}", name, prefix + flat, layer))
    tensors, deltas = {}, {}
    turns = list(ranks)
    for number, (part, name, key, layer) in enumerate(named):
        rank = turns[number % len(turns)]
        down = torch.randn(rank, layer.in_features, generator=generator) * size
        up = torch.randn(layer.out_features, rank, generator=generator) * size
        tensors[f"{key}.lora_down.weight"], tensors[f"{key}.lora_up.weight"] = down, up
        if alpha is not None:
            tensors[f"{key}.alpha"] = torch.tensor(alpha)
        deltas[part, name] = (rank if alpha is None else alpha) / rank * (up @ down)
    return tensors, deltas


def save_lora(tensors: dict[str, torch.Tensor], path: Path, **metadata: str) -> Path:
    """Write a LoRA file with metadata and return its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, path, metadata or None)
    return path
