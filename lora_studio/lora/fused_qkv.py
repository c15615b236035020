"""Attention projections with the same input fused into one layer: query, key and value, or key and value.

The frozen weights of the n layers are moved into one tensor, and each layer's weight becomes a view of it. Their A are
contiguous in the flat parameters, and so are their B and the gradients. The forward pass takes 3 matrix products
instead of 3 n, the backward pass 7 operations instead of 6 n and n - 1 additions of input gradients. For the formulas
see `fused_linear`; ' is transpose.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from lora_studio.lora.fused_linear import FusedLoraLinear


@dataclass(frozen=True)
class FusedProjections:
    """n layers of one shape and scale: W [n out, in], A [n r, in], B [n, out, r] and the buffers of their gradients.

    `trained` is one of their tensors that require a gradient.
    """

    layers: Sequence[FusedLoraLinear]
    weight: Tensor
    a: Tensor
    b: Tensor
    scale: float
    grad_buffers: tuple[Tensor, Tensor]
    trained: Tensor

    @property
    def is_active(self) -> bool:
        """True if every layer computes fused at the moment, and none through peft."""
        return all(layer.active_fused_lora is not None for layer in self.layers)

    def __call__(self, x: Tensor) -> tuple[Tensor, ...]:
        """Return the layers' outputs, each [B, N, out], for x [B, N, in]."""
        x = x.to(self.weight.dtype)
        outputs: tuple[Tensor, ...] = _FusedProjectionsProduct.apply(  # type: ignore[no-untyped-call]
            x, None if x.requires_grad else self.trained, self
        )
        return outputs


class _FusedProjectionsProduct(torch.autograd.Function):
    """The function of `fused_linear` for n layers at once."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, trained: Tensor | None, projections: FusedProjections) -> tuple[Tensor, ...]:
        rows = x.reshape(-1, x.shape[-1])
        ctx.save_for_backward(rows)
        ctx.projections = projections
        result = torch.mm(rows, projections.weight.t())
        low = _by_layer(torch.mm(rows, projections.a.t()), projections)
        _by_layer(result, projections).baddbmm_(low, projections.b.transpose(1, 2), alpha=projections.scale)
        return result.view(*x.shape[:-1], -1).chunk(len(projections.layers), -1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, None, None]:
        (rows,) = ctx.saved_tensors
        projections: FusedProjections = ctx.projections
        grad = torch.cat(grads, -1).view(len(rows), -1)
        low = grad.new_empty(len(rows), len(projections.a))
        torch.bmm(_by_layer(grad, projections), projections.b, out=_by_layer(low, projections))
        inner = _by_layer(torch.mm(rows, projections.a.t()), projections)
        for_a, for_b = projections.grad_buffers
        for_a.addmm_(low.t(), rows, alpha=projections.scale)
        for_b.baddbmm_(_by_layer(grad, projections).transpose(1, 2), inner, alpha=projections.scale)
        if not ctx.needs_input_grad[0]:
            return None, None, None
        grad_x = torch.mm(grad, projections.weight).addmm_(low, projections.a, alpha=projections.scale)
        return grad_x.view(*grads[0].shape[:-1], -1), None, None


def _by_layer(rows: Tensor, projections: FusedProjections) -> Tensor:
    """Return [N, n k] as [n, N, k], a view."""
    return rows.view(len(rows), len(projections.layers), -1).transpose(0, 1)


def fuse_projections(layers: Sequence[nn.Module]) -> FusedProjections | None:
    """Fuse layers that read the same input; return None if they differ in shape or scale or are not contiguous.

    Their frozen weights become views of one tensor.
    """
    fused = [layer for layer in layers if isinstance(layer, FusedLoraLinear)]
    loras = [layer.fused_lora for layer in fused if layer.fused_lora is not None]
    bases = [lora.base for lora in loras]
    if len(loras) < len(layers) or any(type(base) is not nn.Linear or base.bias is not None for base in bases):
        return None
    if len({lora.scale for lora in loras}) > 1 or len({base.weight.shape for base in bases}) > 1:
        return None
    a, b = _as_stack([lora.a for lora in loras]), _as_stack([lora.b for lora in loras])
    for_a, for_b = (_as_stack(buffers) for buffers in zip(*(lora.grad_buffers for lora in loras), strict=True))
    if a is None or b is None or for_a is None or for_b is None:
        return None
    weight = torch.cat([base.weight.detach() for base in bases])
    for base, part in zip(bases, weight.chunk(len(bases)), strict=True):
        base.weight.data = part
    return FusedProjections(fused, weight, a.flatten(0, 1), b, loras[0].scale, (for_a.flatten(0, 1), for_b), loras[0].a)


def _as_stack(parts: Sequence[Tensor]) -> Tensor | None:
    """Return tensors of one shape as a view [n, ...]; None if they are not contiguous in one storage."""
    first = parts[0].detach()
    storage, start, step = first.untyped_storage()._cdata, first.storage_offset(), first.numel()
    for number, part in enumerate(parts):
        location = part.untyped_storage()._cdata, part.storage_offset()
        if part.shape != first.shape or location != (storage, start + number * step):
            return None
    return first.as_strided((len(parts), *first.shape), (step, *first.stride()), start)
