"""The weight delta of one layer of a LoRA file, as factors or as a matrix, from its tensors alone.

A layer's `parts` are its tensors by kohya's and LyCORIS' names (see `lora.names`), in the shapes of the file.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

Parts = Mapping[str, Tensor]


class LowRank(NamedTuple):
    """A delta as `up` [out, r] times `down` [r, in * kernel area], fp32; alpha / dim is in `up`."""

    up: Tensor
    down: Tensor

    @property
    def matrix(self) -> Tensor:
        """The delta [out, in * kernel area]."""
        return self.up @ self.down


def rank_of(parts: Parts) -> int:
    """Return a layer's dim, by which alpha is divided; 0 if it is not scaled: full differences and matrices of LoKr."""
    if "lora_down.weight" in parts:
        return int(parts["lora_up.weight"].shape[1])
    if "hada_w1_b" in parts:
        return int(parts["hada_w1_b"].shape[0])
    low = parts.get("lokr_w2_b", parts.get("lokr_w1_b"))
    return 0 if low is None else int(low.shape[0])


def merged_down(parts: Parts) -> Tensor:
    """Return the down factor [r, in, ...] of a LoRA; the core of LyCORIS' Tucker form is multiplied into it."""
    down = parts["lora_down.weight"]
    if (core := parts.get("lora_mid.weight")) is None:
        return down
    return torch.einsum("mnkl,ni->mikl", core.float(), down.flatten(1).float())


def low_rank(parts: Parts, alpha: float) -> LowRank | None:
    """Return the factors of a LoRA's delta; None for other network types. A DoRA's magnitudes do not count."""
    if "lora_down.weight" not in parts:
        return None
    up, down = parts["lora_up.weight"].flatten(1).float(), merged_down(parts).flatten(1).float()
    return LowRank(up * (alpha / rank_of(parts)), down)


def delta_matrix(parts: Parts, alpha: float) -> Tensor:
    """Return the delta of a layer of any type [out, in * kernel area], fp32. A DoRA's magnitudes do not count.

    Raises KeyError for a layer that changes only a bias or a norm, or that scales the base's weight (IA3).
    """
    if (factors := low_rank(parts, alpha)) is not None:
        return factors.matrix
    if "diff" in parts:
        return parts["diff"].flatten(1).float()
    rank = rank_of(parts)
    return factor_product(parts, alpha / rank if rank else 1.0)


def factor_product(parts: Parts, scale: float) -> Tensor:
    """Return `scale` times the product of a LoHa's or LoKr's factors [out, in * kernel area], fp32."""
    parts = {name: tensor.float() for name, tensor in parts.items()}
    if "hada_w1_a" in parts:
        return scale * _pair_product(parts, "hada_w1", "hada_t1") * _pair_product(parts, "hada_w2", "hada_t2")
    small = parts["lokr_w1"] if "lokr_w1" in parts else parts["lokr_w1_a"] @ parts["lokr_w1_b"]
    large = parts["lokr_w2"].flatten(1) if "lokr_w2" in parts else _pair_product(parts, "lokr_w2", "lokr_t2")
    return scale * torch.kron(small, large)


def _pair_product(parts: Parts, name: str, core: str) -> Tensor:
    left, right = parts[f"{name}_a"], parts[f"{name}_b"]
    if core not in parts:
        return left.flatten(1) @ right.flatten(1)
    return tucker_product(parts[core], left, right).flatten(1)


def kernel_of(parts: Parts) -> tuple[int, ...] | None:
    """Return the kernel of a layer as its tensors have it, () if it is linear; None if they do not show it."""
    for name in ("lora_mid.weight", "hada_t1", "lokr_t2", "diff", "lokr_w2"):
        if name in parts:
            return tuple(parts[name].shape[2:])
    down = parts.get("lora_down.weight")
    # DyLoRA of LyCORIS flattens the kernel of a convolution
    return None if down is None else tuple(down.shape[2:])


def tucker_product(core: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """Return the kernel [out, in, k, k] of a core [r, r, k, k] and its matrices [r, out] and [r, in]."""
    return torch.einsum("ijkl,io,jn->onkl", core, left, right)
