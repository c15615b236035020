"""LoRA files of single layers of SDXL with small random tensors of every network type, and their dense deltas."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from lora_studio.lora.deltas import delta_matrix, rank_of

LINEAR = "lora_unet_input_blocks_4_1_proj_in"
CONV = "lora_unet_input_blocks_1_0_in_layers_2"
TEXT = "lora_te1_text_model_encoder_layers_0_mlp_fc1"
NORM = "lora_unet_input_blocks_1_0_in_layers_0"
OUT, IN, RANK, ALPHA = 12, 8, 4, 3.0


def random_layer(kind: str, *, kernel: int = 0, seed: int = 0, rank: int = RANK) -> tuple[dict[str, Tensor], Tensor]:
    """Return the tensors of a layer of 12 x 8 (x kernel x kernel), and its delta [12, 8 * area] by formula."""
    source = torch.Generator().manual_seed(seed)

    def noise(*shape: int) -> Tensor:
        return torch.randn(shape, generator=source)

    side, point, area = (kernel,) * 2 if kernel else (), (1, 1) if kernel else (), max(1, kernel) ** 2
    alpha = {"alpha": torch.tensor(ALPHA)}
    if kind == "lora":
        down, up = noise(rank, IN, *side), noise(OUT, rank, *point)
        return {"lora_down.weight": down, "lora_up.weight": up} | alpha, ALPHA / rank * (
            up.flatten(1) @ down.flatten(1)
        )
    if kind == "tucker":
        down, core, up = noise(rank, IN, 1, 1), noise(rank, rank, 3, 3), noise(OUT, rank, 1, 1)
        delta = torch.einsum("om,mnkl,ni->oikl", up.flatten(1), core, down.flatten(1)).flatten(1)
        return {"lora_down.weight": down, "lora_mid.weight": core, "lora_up.weight": up} | alpha, ALPHA / rank * delta
    if kind == "loha":
        names = [("hada_w1_a", OUT, rank), ("hada_w1_b", rank, IN * area)]
        names += [(name.replace("1", "2"), *shape) for name, *shape in names]
        parts = {name: noise(*shape) for name, *shape in names}
        first, second = (parts[f"hada_w{n}_a"] @ parts[f"hada_w{n}_b"] for n in (1, 2))
        return parts | alpha, ALPHA / rank * first * second
    if kind == "lokr":
        small, large = noise(4, 2), noise(OUT // 4, IN // 2, *side)
        return {"lokr_w1": small, "lokr_w2": large} | alpha, torch.kron(small, large.flatten(1))
    diff = noise(OUT, IN, *side)
    return {"diff": diff}, diff.flatten(1)


def write_layers(path: Path, layers: dict[str, dict[str, Tensor]], **metadata: str) -> Path:
    """Write a file of these layers, each with its parts."""
    tensors = {f"{layer}.{part}": tensor for layer, parts in layers.items() for part, tensor in parts.items()}
    save_file(tensors, path, metadata or None)
    return path


def read_deltas(path: Path) -> dict[str, Tensor]:
    """Return the dense delta of every layer of a file in kohya's format; of norms and biases their vector."""
    layers: dict[str, dict[str, Tensor]] = {}
    for name, tensor in load_file(path).items():
        layer, _, part = name.partition(".")
        layers.setdefault(layer, {})[part] = tensor
    found = {}
    for layer, parts in layers.items():
        if "w_norm" in parts:
            found[layer] = parts["w_norm"].float()
        else:
            found[layer] = delta_matrix(parts, float(parts.get("alpha", torch.tensor(rank_of(parts)))))
    return found
