"""The trained weights in one piece for each learning rate, so that a step's work on them is a few operations.

A LoRA has some 1,400 matrices. Here those of a group (the UNet's, the text encoders') lie side by side in one fp32
tensor, their gradients in another, and the layers' own parameters are views of the first. An optimizer that treats each
number on its own gets the whole tensor as one weight; one that looks at rows and columns gets the matrices of one shape
as a stack. Layers that compute in half precision get copies, made in one go after each step.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum
from itertools import groupby
from typing import Any

import torch
from torch import Tensor, nn

from lora_studio.training.adapters import NAME, Adapters
from lora_studio.training.fused import FusedLoraLinear


class Layout(Enum):
    """What an optimizer is given of a group: the whole as one weight, a stack for each shape, or each matrix."""

    FLAT = "flat"
    STACKS = "stacks"
    EACH = "each"


class TrainedWeights:
    """The weights, gradients and half-precision copies of parameter groups, as `parameter_groups` gives them.

    From here on the models must stay on their device. `groups` are for the optimizer; `flat` has one weight a group,
    whose `.grad` `collect` fills.
    """

    def __init__(
        self, groups: Sequence[dict[str, Any]], layout: Layout, adapters: Adapters, dtype: torch.dtype
    ) -> None:
        self.flat: list[nn.Parameter] = []
        self.groups: list[dict[str, Any]] = []
        self._copies: list[tuple[nn.Parameter, Tensor]] = []
        self._leaves: list[tuple[Tensor, Tensor]] = []  # what autograd fills, and where it belongs
        fused = _fused_layers(adapters, dtype)
        inner = {weight for layer in fused for weight in (layer.lora_A[NAME].weight, layer.lora_B[NAME].weight)}
        copies: dict[nn.Parameter, Tensor] = {}
        for group in groups:
            members = sorted(group["params"], key=lambda weight: (weight.dim(), weight.shape))
            flat = nn.Parameter(torch.cat([weight.detach().flatten() for weight in members]))
            flat.grad = torch.zeros_like(flat)
            views, gradients = (_parts(whole, members) for whole in (flat.detach(), flat.grad))
            for weight, view in zip(members, views, strict=True):
                weight.data = view
            if dtype != torch.float32 and inner:
                copy = flat.detach().to(dtype)
                self._copies.append((flat, copy))
                parts = zip(members, _parts(copy, members), strict=True)
                copies |= {weight: part.requires_grad_() for weight, part in parts if weight in inner}
            self._leaves += zip([copies.get(weight, weight) for weight in members], gradients, strict=True)
            self.flat.append(flat)
            self.groups.append({**group, "params": _for_optimizer(layout, flat, members)})
        for layer in fused:
            layer.settle(copies.get(layer.lora_A[NAME].weight), copies.get(layer.lora_B[NAME].weight))
        self.half_only = bool(copies) and len(copies) == len(self._leaves)

    @property
    def gradients(self) -> list[Tensor]:
        """The gradients of each group, [N]."""
        return [weight.grad for weight in self.flat if weight.grad is not None]

    @torch.no_grad()
    def collect(self, *, add: bool) -> None:
        """Take the gradients of a backward pass from the layers, in place of those of the pass before, or added."""
        found = [(gradient, leaf.grad) for leaf, gradient in self._leaves if leaf.grad is not None]
        if not add and len(found) < len(self._leaves):
            torch._foreach_zero_([gradient for _, gradient in self._leaves])
        if found:
            gathered, given = map(list, zip(*found, strict=True))
            merge = torch._foreach_add_ if add else torch._foreach_copy_
            merge(gathered, given)
        for leaf, _ in self._leaves:
            leaf.grad = None

    @torch.no_grad()
    def publish(self) -> None:
        """Bring the copies that layers compute with up to date; to be called whenever weights have changed."""
        for flat, copy in self._copies:
            copy.copy_(flat)


def _fused_layers(adapters: Adapters, dtype: torch.dtype) -> list[FusedLoraLinear]:
    """The layers whose base has this dtype and whose arithmetic is fused."""
    found = [layer for _, _, layer in adapters.layers if isinstance(layer, FusedLoraLinear) and layer.fusable()]
    return [layer for layer in found if layer.get_base_layer().weight.dtype == dtype]


def _parts(whole: Tensor, members: Sequence[Tensor]) -> list[Tensor]:
    parts = whole.split([member.numel() for member in members])
    return [part.view(member.shape) for part, member in zip(parts, members, strict=True)]


def _for_optimizer(layout: Layout, flat: nn.Parameter, members: Sequence[Tensor]) -> list[nn.Parameter]:
    """The group's weight cut as the optimizer wants it; each part's `.grad` is a view of the whole's."""
    if layout is Layout.FLAT:
        return [flat]
    shapes: list[tuple[int, ...]] = []
    for shape, equal in groupby(members, key=lambda member: tuple(member.shape)):
        count = len(list(equal))
        stacked = layout is Layout.STACKS and len(shape) > 1
        shapes += [(count, *shape)] if stacked else [shape] * count
    assert flat.grad is not None
    wanted = [torch.empty(shape, device="meta") for shape in shapes]
    parts = []
    for view, gradient in zip(_parts(flat.detach(), wanted), _parts(flat.grad, wanted), strict=True):
        part = nn.Parameter(view)
        part.grad = gradient
        parts.append(part)
    return parts
