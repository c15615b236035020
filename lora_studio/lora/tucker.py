"""Tucker decomposition of convolutions' kernels (Tucker 1966), as in LyCORIS, and the LoHa layer that has it.

A kernel W [out, in, k, k] is a core t [r, r, k, k] with a matrix on either side: a [r, out] and b [r, in].
"""

from __future__ import annotations

from typing import Any

import torch
from peft.tuners.loha.layer import Conv2d
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from lora_studio.lora.deltas import tucker_product


class _TuckerLoha(torch.autograd.Function):
    """s W1 * W2 with the kernels W1 and W2 of two Tucker decompositions; the backward pass computes both again.

    With g the gradient, that of W1 is s g * W2 and that of W2 is s g * W1. peft 0.21 has a function for this product,
    HadaWeightCP, but computes the gradient of the first `a` with the factors of the second kernel, and conversely.
    """

    @staticmethod
    def forward(ctx: Any, scale: float, *factors: Tensor) -> Tensor:
        ctx.save_for_backward(*factors)
        ctx.scale = scale
        return scale * tucker_product(*factors[:3]) * tucker_product(*factors[3:])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        first, second = ctx.saved_tensors[:3], ctx.saved_tensors[3:]
        grad = ctx.scale * grad.to(first[0].dtype)
        for_first = _factor_gradients(grad * tucker_product(*second), *first)
        for_second = _factor_gradients(grad * tucker_product(*first), *second)
        return None, *for_first, *for_second


def _factor_gradients(grad: Tensor, core: Tensor, left: Tensor, right: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of a core and its matrices, for that of their kernel [out, in, k, k]."""
    inner = torch.einsum("onkl,io->inkl", grad, left)  # [r, in, k, k]
    for_core = torch.einsum("inkl,jn->ijkl", inner, right)
    for_left = torch.einsum("onkl,inkl->io", grad, torch.einsum("ijkl,jn->inkl", core, right))
    for_right = torch.einsum("inkl,ijkl->jn", inner, core)
    return for_core, for_left, for_right


class TuckerLohaConv2d(Conv2d):
    """peft's LoHa layer of a convolution with Tucker cores."""

    def get_delta_weight(self, adapter_name: str, *, apply_rank_dropout: bool = False) -> Tensor:
        """Return the change of the kernel [out, in, k, k]; rank dropout drops output rows, as in peft."""
        if adapter_name not in self.hada_t1:
            return super().get_delta_weight(adapter_name, apply_rank_dropout=apply_rank_dropout)
        parts = (self.hada_t1, self.hada_w1_a, self.hada_w1_b, self.hada_t2, self.hada_w2_a, self.hada_w2_b)
        factors = [part[adapter_name] for part in parts]
        weight: Tensor = _TuckerLoha.apply(self.scaling[adapter_name], *factors)  # type: ignore[no-untyped-call]
        if apply_rank_dropout:
            kept = weight.new_empty(len(weight), 1, 1, 1).bernoulli_(1 - self.rank_dropout[adapter_name])
            weight = weight * kept / kept.mean().clamp_min(1 / len(weight))
        return weight


def use_tucker_loha(layer: nn.Module, adapter: str) -> None:
    """Let a LoHa layer of peft that has Tucker cores compute with them as `TuckerLohaConv2d`, in place."""
    if isinstance(layer, Conv2d) and adapter in layer.hada_t1:
        layer.__class__ = TuckerLohaConv2d
