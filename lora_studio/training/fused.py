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
class Ready:
    """What a layer computes with: the frozen layer below, A [r, in], B [out, r] and the scale.

    The gradients of A and B are added to `sinks`, one for each, if there are such.
    """

    base: nn.Linear
    a: Tensor
    b: Tensor
    scale: float
    sinks: tuple[Tensor, Tensor] | None = None


class _LoraProduct(torch.autograd.Function):
    """x W' + bias + scale (x A') B' for x [..., in], A and B of one dtype: [..., out].

    W [out, in] and the bias are those of a frozen layer, whose weight is read in both passes and never kept, as it may
    be expanded from fewer bits. With g the gradient of the result and l = g B, the gradients are g W + scale l A for x,
    scale l' x for A and scale g' (x A') for B.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, a: Tensor, b: Tensor, ready: Ready) -> Tensor:
        ctx.save_for_backward(x, a, b)
        ctx.ready = ready
        base, bias = ready.base, ready.base.bias
        rows = x.reshape(-1, x.shape[-1])
        result = functional.linear(rows, base.weight.to(x.dtype), None if bias is None else bias.to(x.dtype))
        result.addmm_(torch.mm(rows, a.t()), b.t(), alpha=ready.scale)
        return result.view(*x.shape[:-1], result.shape[-1])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, a, b = ctx.saved_tensors
        ready: Ready = ctx.ready
        rows, grad = x.reshape(-1, x.shape[-1]), grad.reshape(-1, grad.shape[-1])
        low = torch.mm(grad, b)
        grad_x = None
        if ctx.needs_input_grad[0]:
            grad_x = torch.mm(grad, ready.base.weight.to(grad.dtype)).addmm_(low, a, alpha=ready.scale).view(x.shape)
        inner = torch.mm(rows, a.t())
        if ready.sinks is not None:
            ready.sinks[0].addmm_(low.t(), rows, alpha=ready.scale)
            ready.sinks[1].addmm_(grad.t(), inner, alpha=ready.scale)
            return grad_x, None, None, None
        # with beta = 0 the first argument gives no more than the shape
        grad_a = torch.addmm(a, low.t(), rows, beta=0, alpha=ready.scale)
        grad_b = torch.addmm(b, grad.t(), inner, beta=0, alpha=ready.scale)
        return grad_x, grad_a, grad_b, None


class FusedLoraLinear(Linear):
    """peft's LoRA layer for nn.Linear with the arithmetic of one plain LoRA fused; anything else is left to peft."""

    ready: Ready | None = None  # set where the layer's state is settled

    def fusable(self) -> bool:
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

    def settle(
        self, a: Tensor | None = None, b: Tensor | None = None, sinks: tuple[Tensor, Tensor] | None = None
    ) -> None:
        """Compute from now on with what the layer holds now, and with `a` and `b` in the place of A and B if given."""
        name = self.active_adapters[0]
        a = self.lora_A[name].weight if a is None else a
        b = self.lora_B[name].weight if b is None else b
        self.ready = Ready(self.get_base_layer(), a, b, self.scaling[name], sinks)

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        """The layer's answer [..., out] to x [..., in]."""
        ready = self.ready
        if ready is None or args or kwargs or self._disable_adapters or self.merged_adapters:
            return super().forward(x, *args, **kwargs)
        a, b, kind = ready.a, ready.b, x.device.type
        if torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind):
            dtype = torch.get_autocast_dtype(kind)
            x, a, b = x.to(dtype), a.to(dtype), b.to(dtype)
        return _LoraProduct.apply(x, a, b, ready)
