"""A LoRA on a linear layer in as few operations, and with as few saved tensors, as it takes.

peft computes x W' + b, then A, B, the scale and the sum one by one, and autograd keeps what each of them needs. Here
the whole layer is one function: forward y = x W' + b + s (x A') B' in three matrix products, and a backward pass in
six, which computes the product of rank r again instead of keeping it. At SDXL's shapes, where launching an operation
takes longer than the operation itself, that is what a step's time is made of.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from peft.tuners.lora.layer import Linear
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional


@dataclass(frozen=True)
class FusedLora:
    """What a layer computes with: the frozen layer below, A [r, in], B [out, r] and the scale.

    The gradients of A and B are added to `grad_buffers`, one for each. All have one dtype, which is autocast's where
    that is on.
    """

    base: nn.Linear
    a: Tensor
    b: Tensor
    scale: float
    grad_buffers: tuple[Tensor, Tensor]


class _FusedLoraProduct(torch.autograd.Function):
    """x W' + bias + scale (x A') B' for x [..., in]: [..., out].

    W [out, in] and the bias are those of the frozen layer, whose weight is read in both passes and never kept, as it
    may be expanded from fewer bits. With g the gradient of the result and l = g B, the gradients are g W + scale l A
    for x, and, added to the buffers, scale l' x for A and scale g' (x A') for B. `trained` makes autograd ask for them
    where x itself takes no gradient.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, trained: Tensor | None, fused_lora: FusedLora) -> Tensor:
        rows = x.reshape(-1, x.shape[-1])
        ctx.save_for_backward(rows)
        ctx.fused_lora = fused_lora
        result = functional.linear(rows, fused_lora.base.weight, fused_lora.base.bias)
        result.addmm_(torch.mm(rows, fused_lora.a.t()), fused_lora.b.t(), alpha=fused_lora.scale)
        return result.view(*x.shape[:-1], result.shape[-1])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, None, None]:
        (rows,) = ctx.saved_tensors
        fused_lora: FusedLora = ctx.fused_lora
        leading = grad.shape[:-1]
        grad = grad.reshape(-1, grad.shape[-1])
        low = torch.mm(grad, fused_lora.b)
        for_a, for_b = fused_lora.grad_buffers
        for_a.addmm_(low.t(), rows, alpha=fused_lora.scale)
        for_b.addmm_(grad.t(), torch.mm(rows, fused_lora.a.t()), alpha=fused_lora.scale)
        if not ctx.needs_input_grad[0]:
            return None, None, None
        grad_x = torch.mm(grad, fused_lora.base.weight).addmm_(low, fused_lora.a, alpha=fused_lora.scale)
        return grad_x.view(*leading, grad_x.shape[-1]), None, None


class FusedLoraLinear(Linear):
    """peft's LoRA layer for nn.Linear with the arithmetic of one plain LoRA fused; anything else is left to peft."""

    fused_lora: FusedLora | None = None  # set where the layer's state is settled

    def is_fusable(self) -> bool:
        """Whether the layer carries one LoRA, without dropout, variant (as DoRA) and bias, on a layer that is whole."""
        active = self.active_adapters
        if self.disable_adapters or self.merged or len(active) != 1 or active[0] not in self.lora_A:
            return False
        name = active[0]
        return (
            isinstance(self.lora_dropout[name], nn.Identity)
            and name not in self.lora_variant
            and not self.lora_bias[name]
            and not self.fan_in_fan_out
        )

    def fuse(self, a: Tensor, b: Tensor, grad_buffers: tuple[Tensor, Tensor]) -> None:
        """Compute from now on with A, B and the scale as they are, and add the gradients to `grad_buffers`."""
        self.fused_lora = FusedLora(self.get_base_layer(), a, b, self.scaling[self.active_adapters[0]], grad_buffers)

    @property
    def active_fused_lora(self) -> FusedLora | None:
        """What the layer computes with at the moment; None where its arithmetic is peft's."""
        return None if self._disable_adapters or self.merged_adapters else self.fused_lora

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        """The layer's answer [..., out] to x [..., in]."""
        fused_lora = self.active_fused_lora
        if fused_lora is None or args or kwargs:
            return super().forward(x, *args, **kwargs)
        x = x.to(fused_lora.a.dtype)
        return _FusedLoraProduct.apply(x, None if x.requires_grad else fused_lora.a, fused_lora)
