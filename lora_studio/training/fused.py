"""A LoRA on a linear layer in as few operations, and with as few saved tensors, as it takes.

peft computes x W' + b, then A, B, the scale and the sum one by one, and autograd keeps what each of them needs. Here
the whole layer is one function: forward y = x W' + b + s (x A') B' in three matrix products, and a backward pass in
six, which computes the product of rank r again instead of keeping it. At SDXL's shapes, where launching an operation
takes longer than the operation itself, that is what a step's time is made of.
"""

from __future__ import annotations

from typing import Any

import torch
from peft.tuners.lora.layer import Linear
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


class _LoraProduct(torch.autograd.Function):
    """x W' + bias + scale (x A') B' for x [..., in], W [out, in], A [r, in], B [out, r] of one dtype: [..., out].

    W and the bias are frozen. With g the gradient of the result and l = g B, the gradients are g W + scale l A for x,
    scale l' x for A and scale g' (x A') for B.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, a: Tensor, b: Tensor, scale: float) -> Tensor:
        ctx.save_for_backward(x, weight, a, b)
        ctx.scale = scale
        rows = x.reshape(-1, x.shape[-1])
        result = torch.mm(rows, weight.t()) if bias is None else torch.addmm(bias, rows, weight.t())
        result.addmm_(torch.mm(rows, a.t()), b.t(), alpha=scale)
        return result.view(*x.shape[:-1], result.shape[-1])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, a, b = ctx.saved_tensors
        rows, grad = x.reshape(-1, x.shape[-1]), grad.reshape(-1, grad.shape[-1])
        low = torch.mm(grad, b)
        grad_x = None
        if ctx.needs_input_grad[0]:
            grad_x = torch.mm(grad, weight).addmm_(low, a, alpha=ctx.scale).view(x.shape)
        # with beta = 0 the first argument gives no more than the shape
        grad_a = torch.addmm(a, low.t(), rows, beta=0, alpha=ctx.scale)
        grad_b = torch.addmm(b, grad.t(), torch.mm(rows, a.t()), beta=0, alpha=ctx.scale)
        return grad_x, None, None, grad_a, grad_b, None


class FusedLoraLinear(Linear):
    """peft's LoRA layer for nn.Linear with the arithmetic of one plain LoRA fused; anything else is left to peft.

    `ready` is what a layer computes with whose state is settled: weight and bias of the base, A, B and the scale. A and
    B may be copies in half precision.
    """

    ready: tuple[Tensor, Tensor | None, Tensor, Tensor, float] | None = None

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

    def settle(self, a: Tensor | None = None, b: Tensor | None = None) -> None:
        """Compute from now on with what the layer holds now, and with `a` and `b` in the place of A and B if given."""
        name = self.active_adapters[0]
        base = self.get_base_layer()
        a = self.lora_A[name].weight if a is None else a
        b = self.lora_B[name].weight if b is None else b
        self.ready = base.weight, base.bias, a, b, self.scaling[name]

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        """The layer's answer [..., out] to x [..., in]."""
        if self.ready is None or args or kwargs or self._disable_adapters or self.merged_adapters:
            return super().forward(x, *args, **kwargs)
        weight, bias, a, b, scale = self.ready
        kind = x.device.type
        if torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind):
            dtype = torch.get_autocast_dtype(kind)
            x, weight, a, b = x.to(dtype), weight.to(dtype), a.to(dtype), b.to(dtype)
            bias = None if bias is None else bias.to(dtype)
        return _LoraProduct.apply(x, weight, bias, a, b, scale)
