"""Flatten the trained weights of each parameter group into one tensor, so that a step takes few operations.

A LoRA has some 1,400 matrices. Those of a group (the UNet's, the text encoders') are contiguous in one fp32 tensor,
their gradients in another, and the layers' own parameters are views of the first. An element-wise optimizer gets the
whole tensor as one parameter; one that uses rows and columns gets the matrices of one shape as a stack. Layers that
compute in half precision get half-precision copies, updated with one copy per group after each step.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum
from itertools import groupby
from math import prod
from typing import Any

import torch
from torch import Tensor, nn

from lora_studio.lora.fused_linear import FusedLoraLinear
from lora_studio.lora.inject import DOWN, UP, Adapters, layer_tensors


class ParameterLayout(Enum):
    """How an optimizer gets a group: as one flat parameter, one stack per shape, or separate matrices."""

    FLAT = "flat"
    STACKED = "stacked"
    SEPARATE = "separate"


@dataclass(frozen=True)
class _HalfCopy:
    """A group's flat fp32 parameter, its copy in half precision, and the half-precision gradient of one micro-batch."""

    flat: nn.Parameter
    copy: Tensor
    gradient: Tensor


class FlatParameters:
    """Flat weights, gradients and half-precision copies of the parameter groups that `parameter_groups` returns.

    The models must stay on their device afterwards. `groups` are for the optimizer. `flat` has one parameter per group;
    its `.grad` is the sum of the gradients since `zero_gradients`, if `accumulate_gradients` is called after each
    backward pass. `frozen` has the names of the groups that `freeze` was called for. `consistent` is False while an
    optimizer step changes the weights, and after one that failed: they must not be saved then.

    Without `fuse` the layers stay peft's own, which compute in another precision under autocast.
    """

    def __init__(
        self,
        groups: Sequence[dict[str, Any]],
        layout: ParameterLayout,
        adapters: Adapters,
        dtype: torch.dtype,
        *,
        fuse: bool = True,
    ) -> None:
        self.consistent = True
        self.flat: list[nn.Parameter] = []
        self.groups: list[dict[str, Any]] = []
        self.frozen: set[str] = set()
        self._tensors: list[list[Tensor]] = []  # of each group: all that autograd can track
        self._halves: list[_HalfCopy] = []
        self._leaves: list[tuple[nn.Parameter, Tensor]] = []  # weight with autograd's gradient, its sum
        fused = _fused_layers(adapters, dtype) if fuse else []
        fusable = {weight for layer in fused for weight in _factors(layer)}
        fused_weights: dict[nn.Parameter, tuple[Tensor, Tensor]] = {}  # a fused layer's tensor, its gradient
        for group in groups:
            members = sorted(group["params"], key=lambda weight: (weight.dim(), weight.shape))
            flat = nn.Parameter(torch.cat([weight.detach().flatten() for weight in members]))
            flat.grad = torch.zeros_like(flat)
            shapes = [tuple(weight.shape) for weight in members]
            views, gradients = (_split(whole, shapes) for whole in (flat.detach(), flat.grad))
            for weight, view in zip(members, views, strict=True):
                weight.data = view
            pairs: list[tuple[Tensor, Tensor]] = list(zip(members, gradients, strict=True))
            if dtype != torch.float32 and fusable:
                half = _HalfCopy(flat, flat.detach().to(dtype), torch.zeros_like(flat, dtype=dtype))
                self._halves.append(half)
                copies = [copy.requires_grad_() for copy in _split(half.copy, shapes)]
                pairs = list(zip(copies, _split(half.gradient, shapes), strict=True))
            self._tensors.append([*members, *(tensor for tensor, _ in pairs)])
            for weight, gradient, pair in zip(members, gradients, pairs, strict=True):
                if weight in fusable:
                    fused_weights[weight] = pair
                else:
                    self._leaves.append((weight, gradient))
            self.flat.append(flat)
            self.groups.append({**group, "params": _for_optimizer(layout, flat, members)})
        for layer in fused:
            if all(weight in fused_weights for weight in _factors(layer)):  # those of unused layers are not trained
                (a, for_a), (b, for_b) = (fused_weights[weight] for weight in _factors(layer))
                layer.fuse(a, b, (for_a, for_b))
        # all trained layers compute with half-precision copies, so that no autocast is needed
        self.half_only = bool(self._halves) and self.all_fused

    @property
    def all_fused(self) -> bool:
        """True if fused layers write all gradients, so that autograd accumulates none."""
        return not self._leaves

    @property
    def gradients(self) -> list[Tensor]:
        """The flat gradient [N] of each group."""
        return [weight.grad for weight in self.flat if weight.grad is not None]

    @property
    def half_copies(self) -> list[Tensor]:
        """The flat half-precision copy [N] of each group; empty in fp32."""
        return [half.copy for half in self._halves]

    @torch.no_grad()
    def zero_gradients(self) -> None:
        """Set all gradients to zero, those of an interrupted backward pass too."""
        for gradient in (*self.gradients, *(half.gradient for half in self._halves)):
            gradient.zero_()
        for leaf, _ in self._leaves:
            leaf.grad = None

    @torch.no_grad()
    def accumulate_gradients(self) -> None:
        """Add the gradients of the last backward pass to the sum of those before it, in fp32."""
        for half in self._halves:
            if half.flat.grad is None:  # frozen
                continue
            half.flat.grad.add_(half.gradient)
            half.gradient.zero_()
        found = [(gradient, leaf.grad) for leaf, gradient in self._leaves if leaf.grad is not None]
        if found:
            totals, added = map(list, zip(*found, strict=True))
            torch._foreach_add_(totals, added)
        for leaf, _ in self._leaves:
            leaf.grad = None

    def freeze(self, *names: str) -> None:
        """Stop training the groups of these names: autograd computes no gradients of them, and optimizers skip them."""
        for group, flat, tensors in zip(self.groups, self.flat, self._tensors, strict=True):
            if group["name"] in names:
                self.frozen.add(group["name"])
                for tensor in tensors:
                    tensor.requires_grad_(False)
                for weight in (flat, *group["params"]):
                    weight.grad = None

    @contextmanager
    def update(self) -> Iterator[None]:
        """Let the optimizer change the weights within the block, then update the half-precision copies."""
        self.consistent = False
        yield
        self.sync_half_copies()
        self.consistent = True

    @torch.no_grad()
    def sync_half_copies(self) -> None:
        """Update the half-precision copies; call it whenever weights have changed."""
        for half in self._halves:
            half.copy.copy_(half.flat)


def _fused_layers(adapters: Adapters, dtype: torch.dtype) -> list[FusedLoraLinear]:
    """Return the layers that can be fused and whose base has this dtype."""
    found = [layer for _, _, layer in adapters.layers if isinstance(layer, FusedLoraLinear) and layer.is_fusable()]
    return [layer for layer in found if layer.get_base_layer().weight.dtype == dtype]


def _factors(layer: FusedLoraLinear) -> tuple[nn.Parameter, nn.Parameter]:
    weights = layer_tensors(layer)
    return weights[DOWN], weights[UP]


def _split(whole: Tensor, shapes: Sequence[tuple[int, ...]]) -> list[Tensor]:
    parts = whole.split([prod(shape) for shape in shapes])
    return [part.view(shape) for part, shape in zip(parts, shapes, strict=True)]


def _for_optimizer(layout: ParameterLayout, flat: nn.Parameter, members: Sequence[Tensor]) -> list[nn.Parameter]:
    """Return views of the flat parameter in the optimizer's layout; their `.grad` are views of its `.grad`."""
    if layout is ParameterLayout.FLAT:
        return [flat]
    shapes: list[tuple[int, ...]] = []
    for shape, equal in groupby(members, key=lambda member: tuple(member.shape)):
        count = len(list(equal))
        stacked = layout is ParameterLayout.STACKED and len(shape) > 1
        shapes += [(count, *shape)] if stacked else [shape] * count
    assert flat.grad is not None
    parts = []
    for view, gradient in zip(_split(flat.detach(), shapes), _split(flat.grad, shapes), strict=True):
        part = nn.Parameter(view)
        part.grad = gradient
        parts.append(part)
    return parts
