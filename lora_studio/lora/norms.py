"""The size of what a network changes: the norms of its weight deltas."""

from __future__ import annotations

from collections import defaultdict

import torch
from torch import Tensor, nn

from lora_studio.lora.deltas import tucker_product
from lora_studio.lora.inject import ADAPTER_NAME, DOWN, MAGNITUDE, UP, AdaptedLayer, Adapters, layer_tensors


@torch.no_grad()
def delta_norms(adapters: Adapters) -> Tensor:
    """Return the Frobenius norm of each layer's weight delta, on the device [layers]; never waits for the device.

    A delta is the merged s B A (LoHa, LoKr: s times their product) with s = alpha / rank. Magnitudes of a DoRA do not
    count.
    """
    norms = torch.stack([_product_norm(delta_factors(layer)) for _, _, layer in adapters.layers])
    scales = torch.tensor([abs(layer.scaling[ADAPTER_NAME]) for _, _, layer in adapters.layers])
    return norms * scales.to(norms.device, non_blocking=True)


def model_norms(adapters: Adapters) -> dict[str, float]:
    """Return the Frobenius norm of all weight deltas of each model, by kohya's names, after waiting for the device."""
    squares: dict[str, float] = defaultdict(float)
    for (model, _, _), norm in zip(adapters.layers, delta_norms(adapters).tolist(), strict=True):
        squares[model] += norm**2
    return {model: square**0.5 for model, square in squares.items()}


def delta_factors(layer: AdaptedLayer) -> dict[str, nn.Parameter]:
    """Return the factors of a layer's weight delta by name: all its tensors except a DoRA's magnitudes."""
    return {name: weight for name, weight in layer_tensors(layer).items() if name != MAGNITUDE}


def _product_norm(factors: dict[str, nn.Parameter]) -> Tensor:
    """Return the Frobenius norm of a layer's unscaled delta, a tensor without dimensions."""
    if DOWN in factors:
        return _matrix_product_norm(factors[UP], factors[DOWN])
    if "hada_w1_a" in factors:
        norm: Tensor = (_loha_product(factors, 1) * _loha_product(factors, 2)).norm()
        return norm
    # the norm of a Kronecker product is the product of the norms
    return _lokr_norm(factors, "lokr_w1") * _lokr_norm(factors, "lokr_w2")


def _loha_product(factors: dict[str, nn.Parameter], number: int) -> Tensor:
    left, right = factors[f"hada_w{number}_a"], factors[f"hada_w{number}_b"]
    if f"hada_t{number}" in factors:
        return tucker_product(factors[f"hada_t{number}"], left, right)
    return left @ right


def _lokr_norm(factors: dict[str, nn.Parameter], name: str) -> Tensor:
    if name in factors:
        norm: Tensor = factors[name].norm()
        return norm
    left, right = factors[f"{name}_a"], factors[f"{name}_b"]
    if name == "lokr_w2" and "lokr_t2" in factors:
        return tucker_product(factors["lokr_t2"], left, right).norm()  # type: ignore[no-any-return]
    return _matrix_product_norm(left, right)


def _matrix_product_norm(left: Tensor, right: Tensor) -> Tensor:
    """Return the Frobenius norm of left [m, r, ...] times right [r, n, ...], from the Gram matrices [r, r] of both."""
    left, right = left.flatten(1), right.flatten(1)
    return ((left.t() @ left) * (right @ right.t())).sum().clamp_min(0).sqrt()
