"""Max-norm regularisation: bound how much an adapter changes any one layer."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lora_studio.lora.inject import ADAPTER_NAME, DOWN, MAGNITUDE, UP, AdaptedLayer, Adapters, layer_tensors


@torch.no_grad()
def limit_weight_norms(adapters: Adapters, max_norm: float) -> Tensor:
    """Scale down every weight delta with a Frobenius norm above `max_norm`; return what was done, on the device [3].

    That is the number of scaled layers, then the mean and the maximum of the norms afterwards. A delta is the merged
    s B A (LoHa, LoKr: s times their product) with s = alpha / rank; each of its n factors is multiplied by the n-th
    root of max_norm / norm, as in `apply_max_norm_regularization` of sd-scripts (networks/lora.py) and LyCORIS.
    Magnitudes of a DoRA stay. It never waits for the device.
    """
    factors = [_factors(layer) for _, _, layer in adapters.layers]
    scales = [abs(layer.scaling[ADAPTER_NAME]) for _, _, layer in adapters.layers]
    norms = torch.stack([_product_norm(found) for found in factors])
    norms = norms * torch.tensor(scales).to(norms.device, non_blocking=True)
    ratios = (max_norm / norms).clamp(max=1)  # 1 for a norm of 0
    weights = [weight for found in factors for weight in found.values()]
    roots = {count: (ratios ** (1 / count)).unbind() for count in set(map(len, factors))}
    torch._foreach_mul_(
        [weight.data for weight in weights],
        [roots[len(found)][index] for index, found in enumerate(factors) for _ in found],
    )
    limited = norms * ratios
    return torch.stack([(ratios < 1).sum().to(norms.dtype), limited.mean(), limited.max()])


def _factors(layer: AdaptedLayer) -> dict[str, nn.Parameter]:
    return {name: weight for name, weight in layer_tensors(layer).items() if name != MAGNITUDE}


def _product_norm(factors: dict[str, nn.Parameter]) -> Tensor:
    """Return the Frobenius norm of a layer's unscaled delta, a tensor without dimensions."""
    if DOWN in factors:
        return _matrix_product_norm(factors[UP], factors[DOWN])
    if "hada_w1_a" in factors:
        first, second = (factors[f"hada_w{n}_a"] @ factors[f"hada_w{n}_b"] for n in (1, 2))
        norm: Tensor = (first * second).norm()
        return norm
    # the norm of a Kronecker product is the product of the norms
    return _lokr_norm(factors, "lokr_w1") * _lokr_norm(factors, "lokr_w2")


def _lokr_norm(factors: dict[str, nn.Parameter], name: str) -> Tensor:
    if name in factors:
        norm: Tensor = factors[name].norm()
        return norm
    return _matrix_product_norm(factors[f"{name}_a"], factors[f"{name}_b"])


def _matrix_product_norm(left: Tensor, right: Tensor) -> Tensor:
    """Return the Frobenius norm of left [m, r, ...] times right [r, n, ...], from the Gram matrices [r, r] of both."""
    left, right = left.flatten(1), right.flatten(1)
    return ((left.t() @ left) * (right @ right.t())).sum().clamp_min(0).sqrt()
