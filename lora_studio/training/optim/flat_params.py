"""The trained weights in one piece for each learning rate, so that a step's work on them is a few operations.

A LoRA has some 1,400 matrices. Here those of a group (the UNet's, the text encoders') lie side by side in one fp32
tensor, their gradients in another, and the layers' own parameters are views of the first. An optimizer that treats each
number on its own gets the whole tensor as one weight; one that looks at rows and columns gets the matrices of one shape
as a stack. Layers that compute in half precision get copies, made in one go after each step.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from itertools import groupby
from typing import Any

import torch
from torch import Tensor, nn

from lora_studio.lora.fused_linear import FusedLoraLinear
from lora_studio.lora.inject import ADAPTER_NAME, Adapters


class ParameterLayout(Enum):
    """What an optimizer is given of a group: the whole as one weight, a stack for each shape, or each matrix."""

    FLAT = "flat"
    STACKED = "stacked"
    SEPARATE = "separate"


@dataclass(frozen=True)
class _HalfCopy:
    """A group's copy in half precision, and the sum of its gradients of one backward pass; with the fp32 weight."""

    flat: nn.Parameter
    copy: Tensor
    gradient: Tensor


class FlatParameters:
    """The weights, gradients and half-precision copies of parameter groups, as `parameter_groups` gives them.

    From here on the models must stay on their device. `groups` are for the optimizer; `flat` has one weight a group,
    whose `.grad` is the sum of the gradients since `zero_gradients`, once `collect` was called after each pass.
    """

    def __init__(
        self, groups: Sequence[dict[str, Any]], layout: ParameterLayout, adapters: Adapters, dtype: torch.dtype
    ) -> None:
        self.flat: list[nn.Parameter] = []
        self.groups: list[dict[str, Any]] = []
        self._halves: list[_HalfCopy] = []
        self._leaves: list[tuple[nn.Parameter, Tensor]] = []  # what autograd fills, and where it is to be added
        fused = _fused_layers(adapters, dtype)
        inner = {weight for layer in fused for weight in _factors(layer)}
        settled: dict[nn.Parameter, tuple[Tensor, Tensor]] = {}  # what a fused layer computes with, and its sink
        for group in groups:
            members = sorted(group["params"], key=lambda weight: (weight.dim(), weight.shape))
            flat = nn.Parameter(torch.cat([weight.detach().flatten() for weight in members]))
            flat.grad = torch.zeros_like(flat)
            views, gradients = (_parts(whole, members) for whole in (flat.detach(), flat.grad))
            for weight, view in zip(members, views, strict=True):
                weight.data = view
            ours: list[tuple[Tensor, Tensor]] = list(zip(members, gradients, strict=True))
            if dtype != torch.float32 and inner:
                half = _HalfCopy(flat, flat.detach().to(dtype), torch.zeros_like(flat, dtype=dtype))
                self._halves.append(half)
                copies = [copy.requires_grad_() for copy in _parts(half.copy, members)]
                ours = list(zip(copies, _parts(half.gradient, members), strict=True))
            for weight, gradient, own in zip(members, gradients, ours, strict=True):
                if weight in inner:
                    settled[weight] = own
                else:
                    self._leaves.append((weight, gradient))
            self.flat.append(flat)
            self.groups.append({**group, "params": _for_optimizer(layout, flat, members)})
        for layer in fused:
            if all(weight in settled for weight in _factors(layer)):  # those of unread layers are not trained
                (a, for_a), (b, for_b) = (settled[weight] for weight in _factors(layer))
                layer.fuse(a, b, (for_a, for_b))
        self.half_only = bool(self._halves) and self.all_fused

    @property
    def all_fused(self) -> bool:
        """Whether every gradient is added where it belongs by the layers themselves."""
        return not self._leaves

    @property
    def gradients(self) -> list[Tensor]:
        """The gradients of each group, [N]."""
        return [weight.grad for weight in self.flat if weight.grad is not None]

    @property
    def half_copies(self) -> list[Tensor]:
        """What the layers compute with in half precision, [N] for each group."""
        return [half.copy for half in self._halves]

    @torch.no_grad()
    def zero_gradients(self) -> None:
        """Forget all gradients, those of a pass that was broken off too."""
        for gradient in (*self.gradients, *(half.gradient for half in self._halves)):
            gradient.zero_()
        for leaf, _ in self._leaves:
            leaf.grad = None

    @torch.no_grad()
    def accumulate_gradients(self) -> None:
        """Add the gradients of a backward pass to those of the passes before, in fp32."""
        for half in self._halves:
            assert half.flat.grad is not None
            half.flat.grad.add_(half.gradient)
            half.gradient.zero_()
        found = [(gradient, leaf.grad) for leaf, gradient in self._leaves if leaf.grad is not None]
        if found:
            gathered, given = map(list, zip(*found, strict=True))
            torch._foreach_add_(gathered, given)
        for leaf, _ in self._leaves:
            leaf.grad = None

    @torch.no_grad()
    def sync_half_copies(self) -> None:
        """Bring the copies that layers compute with up to date; to be called whenever weights have changed."""
        for half in self._halves:
            half.copy.copy_(half.flat)


def _fused_layers(adapters: Adapters, dtype: torch.dtype) -> list[FusedLoraLinear]:
    """The layers whose base has this dtype and whose arithmetic is fused."""
    found = [layer for _, _, layer in adapters.layers if isinstance(layer, FusedLoraLinear) and layer.is_fusable()]
    return [layer for layer in found if layer.get_base_layer().weight.dtype == dtype]


def _factors(layer: FusedLoraLinear) -> tuple[nn.Parameter, nn.Parameter]:
    return layer.lora_A[ADAPTER_NAME].weight, layer.lora_B[ADAPTER_NAME].weight


def _parts(whole: Tensor, members: Sequence[Tensor]) -> list[Tensor]:
    parts = whole.split([member.numel() for member in members])
    return [part.view(member.shape) for part, member in zip(parts, members, strict=True)]


def _for_optimizer(layout: ParameterLayout, flat: nn.Parameter, members: Sequence[Tensor]) -> list[nn.Parameter]:
    """The group's weight cut as the optimizer wants it; each part's `.grad` is a view of the whole's."""
    if layout is ParameterLayout.FLAT:
        return [flat]
    shapes: list[tuple[int, ...]] = []
    for shape, equal in groupby(members, key=lambda member: tuple(member.shape)):
        count = len(list(equal))
        stacked = layout is ParameterLayout.STACKED and len(shape) > 1
        shapes += [(count, *shape)] if stacked else [shape] * count
    assert flat.grad is not None
    wanted = [torch.empty(shape, device="meta") for shape in shapes]
    parts = []
    for view, gradient in zip(_parts(flat.detach(), wanted), _parts(flat.grad, wanted), strict=True):
        part = nn.Parameter(view)
        part.grad = gradient
        parts.append(part)
    return parts
