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

    The gradients of A and B are added to `sinks`, one for each. All have one dtype, which is autocast's where that is
    on.
    """

    base: nn.Linear
    a: Tensor
    b: Tensor
    scale: float
    sinks: tuple[Tensor, Tensor]


class _LoraProduct(torch.autograd.Function):
    """x W' + bias + scale (x A') B' for x [..., in]: [..., out].

    W [out, in] and the bias are those of the frozen layer, whose weight is read in both passes and never kept, as it
    may be expanded from fewer bits. With g the gradient of the result and l = g B, the gradients are g W + scale l A
    for x, and, added to the sinks, scale l' x for A and scale g' (x A') for B. `trained` makes autograd ask for them
    where x itself takes no gradient.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, trained: Tensor | None, ready: Ready) -> Tensor:
        rows = x.reshape(-1, x.shape[-1])
        ctx.save_for_backward(rows)
        ctx.ready = ready
        result = functional.linear(rows, ready.base.weight, ready.base.bias)
        result.addmm_(torch.mm(rows, ready.a.t()), ready.b.t(), alpha=ready.scale)
        return result.view(*x.shape[:-1], result.shape[-1])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, None, None]:
        (rows,) = ctx.saved_tensors
        ready: Ready = ctx.ready
        leading = grad.shape[:-1]
        grad = grad.reshape(-1, grad.shape[-1])
        low = torch.mm(grad, ready.b)
        for_a, for_b = ready.sinks
        for_a.addmm_(low.t(), rows, alpha=ready.scale)
        for_b.addmm_(grad.t(), torch.mm(rows, ready.a.t()), alpha=ready.scale)
        if not ctx.needs_input_grad[0]:
            return None, None, None
        grad_x = torch.mm(grad, ready.base.weight).addmm_(low, ready.a, alpha=ready.scale)
        return grad_x.view(*leading, grad_x.shape[-1]), None, None


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

    def settle(self, a: Tensor, b: Tensor, sinks: tuple[Tensor, Tensor]) -> None:
        """Compute from now on with A, B and the scale as they are, and add the gradients to `sinks`."""
        self.ready = Ready(self.get_base_layer(), a, b, self.scaling[self.active_adapters[0]], sinks)

    @property
    def fused(self) -> Ready | None:
        """What the layer computes with at the moment; None where its arithmetic is peft's."""
        return None if self._disable_adapters or self.merged_adapters else self.ready

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        """The layer's answer [..., out] to x [..., in]."""
        ready = self.fused
        if ready is None or args or kwargs:
            return super().forward(x, *args, **kwargs)
        x = x.to(ready.a.dtype)
        return _LoraProduct.apply(x, None if x.requires_grad else ready.a, ready)
