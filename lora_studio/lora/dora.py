"""DoRA layers whose trained magnitudes are the norms of the merged weight's columns (inputs) or rows (outputs).

DoRA (Liu et al. 2024, arXiv:2402.09353) trains the direction of a weight as a LoRA and its magnitude apart:

    W' = m / ||W + D|| (W + D),    D = s B A,    s = alpha / rank

with one magnitude m and one norm per input or per output. The norm is a constant in the backward pass (section 4.3).
The axis is the input unless stated otherwise, as in OneTrainer. From a file with norms of inputs, A1111, ComfyUI, Forge
and OneTrainer compute this W'; LyCORIS trains it with wd_on_output=False, and refuses it where it builds a
network from a file alone. Norms of outputs are the default of LyCORIS and peft, and all that diffusers has; but A1111
takes them for norms of inputs, and ComfyUI and Forge divide them by ||W|| instead of ||W + D||. At a strength other
than 1 the programs compute W + strength (W' - W), except for LyCORIS, which scales m / ||W + D|| - 1 alone.

Scaling columns is scaling inputs: W' x = (W + D) (c x) with c = m / ||W + D||. W' is never computed, and neither is D:
the squared norms of W are constant, and those of W + D follow from products of rank r.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from peft.tuners.lora.layer import Conv2d, Linear
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from lora_studio.lora.shapes import DoraAxis


class DoraMagnitude(nn.Module):
    """The magnitudes of a layer: `weight` [in] or [out], [1, in or out, 1, 1] for a convolution."""

    base_squares: Tensor

    def __init__(self, base: Tensor, axis: DoraAxis) -> None:
        """Start with the norms of the base layer's weight [out, in, ...], in at least fp32."""
        super().__init__()
        self.axis = axis
        weight = base.detach().to(torch.promote_types(base.dtype, torch.float32))
        squares = weight.square().sum([side for side in range(weight.dim()) if side != axis])
        self.register_buffer("base_squares", squares, persistent=False)
        shape = (1, -1, 1, 1) if weight.dim() == 4 else (-1,)
        self.weight = nn.Parameter(self._norms(squares).view(shape))

    def factors(self, base: Tensor, down: Tensor, up: Tensor, scale: float) -> Tensor:
        """Return m / ||W + D|| in the shape of `weight`, for W [out, in, ...], A [r, in, ...] and B [out, r, ...]."""
        with torch.no_grad(), _without_autocast(base.device):
            w, a, b = (part.flatten(1).to(self.base_squares.dtype) for part in (base, down, up))
            if self.axis is DoraAxis.INPUT:
                mixed = (b.t() @ w).mul_(2).addmm_(b.t() @ b, a, alpha=scale)  # [r, in * kernel area]
                added = (mixed * a).view(len(a), len(self.base_squares), -1).sum((0, 2))
            else:
                mixed = (w @ a.t()).mul_(2).addmm_(b, a @ a.t(), alpha=scale)  # [out, r]
                added = (mixed * b).sum(1)
            norms = self._norms(self.base_squares.add(added, alpha=scale))
        return self.weight / norms.view(self.weight.shape)

    @staticmethod
    def _norms(squares: Tensor) -> Tensor:
        """Return the roots, at least epsilon: an input whose weights are all 0 has a magnitude of 0."""
        return squares.clamp_min(torch.finfo(squares.dtype).eps ** 2).sqrt()


def _without_autocast(device: torch.device) -> AbstractContextManager[Any]:
    """Return a context in which matrix products keep their dtype; a no-op on devices without autocast, like meta."""
    has_autocast = torch.amp.is_autocast_available(device.type)
    return torch.autocast(device.type, enabled=False) if has_autocast else nullcontext()


class _DoraForward:
    """Computes peft's LoRA layers of one adapter as DoRA, once they have a `DoraMagnitude`."""

    def forward(self: Any, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Return the layer's output for an input x [..., in], or x [B, in, H, W] of a convolution.

        With dropout the change of the weight sees the dropped inputs and the weight itself all of them, as in peft.
        """
        if self.disable_adapters or not self.lora_magnitude_vector:
            result: Tensor = super().forward(x, *args, **kwargs)  # type: ignore[misc]
            return result
        (adapter,) = self.active_adapters
        magnitude, base, scale = self.lora_magnitude_vector[adapter], self.get_base_layer(), self.scaling[adapter]
        down, up = self.lora_A[adapter], self.lora_B[adapter]
        factors = magnitude.factors(base.weight, down.weight, up.weight, scale)
        dropped = self.lora_dropout[adapter](x)
        if magnitude.axis is DoraAxis.INPUT:
            scaled = (dropped * factors).to(x.dtype)
            whole = base(scaled if dropped is x else x - dropped + scaled)
            change = up(scale * down(self._cast_input_dtype(scaled, down.weight.dtype)))
        else:
            whole = base(x)
            product = whole if dropped is x else base(dropped)
            if base.bias is not None:
                product = product - base.bias.view(factors.shape)
            change = up(scale * down(self._cast_input_dtype(dropped, down.weight.dtype)))
            change = (factors - 1) * product + factors * change
        output: Tensor = (whole + change).to(whole.dtype)
        return output


class DoraLinear(_DoraForward, Linear):
    """peft's LoRA layer for nn.Linear, computed as DoRA."""


class DoraConv2d(_DoraForward, Conv2d):
    """peft's LoRA layer for nn.Conv2d, computed as DoRA."""


def init_dora_magnitude(layer: BaseTunerLayer, adapter: str, axis: DoraAxis) -> None:
    """Give a DoRA layer the magnitudes of its base, along this axis; leave other layers as they are."""
    if isinstance(layer, DoraLinear | DoraConv2d):
        layer.lora_magnitude_vector[adapter] = DoraMagnitude(layer.get_base_weight(), axis)


def dora_magnitude(layer: BaseTunerLayer, adapter: str) -> DoraMagnitude | None:
    """Return the magnitudes of a DoRA layer; None for other layers."""
    if not isinstance(layer, DoraLinear | DoraConv2d) or adapter not in layer.lora_magnitude_vector:
        return None
    magnitude = layer.lora_magnitude_vector[adapter]
    assert isinstance(magnitude, DoraMagnitude)
    return magnitude
