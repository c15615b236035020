"""A LoRA on a linear layer, fused into one autograd function.

The layer computes y = x W' + b + s (x A') B': the frozen linear layer with weight W [out, in], plus the LoRA's low-rank
matrices A [r, in] and B [out, r], scaled by s = alpha / r. Throughout, ' is transpose.

peft runs these operations one by one, and autograd saves what each of them needs. Here the forward pass is three matrix
products and the backward pass six; only x is saved, and the backward pass recomputes x A'. At SDXL's shapes launching
an operation takes longer than the operation itself, so fewer operations make a step faster.
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
    """The tensors of a fused layer: the frozen base layer, A [r, in], B [out, r] and the scale s.

    The gradients of A and B are added to `grad_buffers`, of the same shapes. All tensors have one dtype, autocast's if
    that is on.
    """

    base: nn.Linear
    a: Tensor
    b: Tensor
    scale: float
    grad_buffers: tuple[Tensor, Tensor]


class _FusedLoraProduct(torch.autograd.Function):
    """y = x W' + b + s (x A') B' for x [..., in], y [..., out].

    With g the gradient of y and l = g B, the gradient of x is g W + s l A; s l' x is added to the gradient buffer of A
    and s g' (x A') to that of B. W is read in both passes and never saved, since it may be dequantized at each reading.
    `trained` is a tensor that requires a gradient: with it autograd calls `backward` even if x requires none.
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
    """peft's LoRA layer for nn.Linear that computes a single plain LoRA fused and leaves everything else to peft."""

    fused_lora: FusedLora | None = None  # set by `fuse`
    drops_ranks = False  # True with rank or module dropout

    def is_fusable(self) -> bool:
        """Return True if exactly one LoRA is active, without dropout, bias or variant (like DoRA), and not merged."""
        active = self.active_adapters
        if self.disable_adapters or self.merged or len(active) != 1 or active[0] not in self.lora_A:
            return False
        name = active[0]
        return (
            isinstance(self.lora_dropout[name], nn.Identity)
            and not self.drops_ranks
            and name not in self.lora_variant
            and not self.lora_bias[name]
            and not self.fan_in_fan_out
        )

    def fuse(self, a: Tensor, b: Tensor, grad_buffers: tuple[Tensor, Tensor]) -> None:
        """Switch to the fused function with these A, B and gradient buffers and the current scale."""
        base = self.get_base_layer()
        assert isinstance(base, nn.Linear)
        self.fused_lora = FusedLora(base, a, b, self.scaling[self.active_adapters[0]], grad_buffers)

    @property
    def active_fused_lora(self) -> FusedLora | None:
        """The tensors of the fused function; None while peft computes: not fused, adapters disabled or merged."""
        return None if self._disable_adapters or self.merged_adapters else self.fused_lora

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        """Return the layer's output [..., out] for x [..., in]."""
        fused_lora = self.active_fused_lora
        if fused_lora is None or args or kwargs:
            return super().forward(x, *args, **kwargs)
        x = x.to(fused_lora.a.dtype)
        trained = None if x.requires_grad else fused_lora.a
        return _FusedLoraProduct.apply(x, trained, fused_lora)  # type: ignore[no-untyped-call]
