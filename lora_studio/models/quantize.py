"""A base whose linear layers hold their frozen weights in 8 or 4 bits, which are expanded at each use.

int8 has evenly spaced steps, nf4 those of Dettmers et al. 2023 (QLoRA, arXiv:2305.14314); both scale each block of
numbers by its largest. Only the UNet's transformer blocks are packed, 85 % of its weights; their adapters learn as on
any other base, since a layer gives its `weight` expanded to whoever reads it.
"""

from __future__ import annotations

from typing import Any

import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention import BasicTransformerBlock
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

from lora_studio.errors import InputError
from lora_studio.settings.choices import BasePrecision

# Numbers that share a scale: 1.03 bytes a weight in int8, 0.56 in nf4 (QLoRA's size).
BLOCK_SIZE = {BasePrecision.INT8: 128, BasePrecision.NF4: 64}
TEST_SIZE = 64


class QuantizedLinear(nn.Linear):
    """A frozen linear layer whose weight [out, in] is packed; reading `weight` expands it, in `compute_dtype`."""

    packed: Tensor
    scales: Tensor
    code: Tensor

    def __init__(self, layer: nn.Linear, kind: BasePrecision, compute_dtype: torch.dtype, device: torch.device) -> None:
        nn.Module.__init__(self)  # not Linear's, which would make a whole weight
        self.in_features, self.out_features = layer.in_features, layer.out_features
        self.kind, self.compute_dtype = kind, compute_dtype
        bias = None if layer.bias is None else nn.Parameter(layer.bias.detach().to(device), requires_grad=False)
        self.register_parameter("bias", bias)
        packed, state = _pack(layer.weight.detach().to(device), kind)
        self.register_buffer("packed", packed)
        self.register_buffer("scales", state.absmax)
        self.register_buffer("code", state.code)

    @property
    def weight(self) -> Tensor:  # type: ignore[override]
        """The weight [out, in], expanded anew at each reading; it takes no gradient."""
        from bitsandbytes import functional as bits

        state = bits.QuantState(
            absmax=self.scales,
            # as one row: bitsandbytes' CPU kernel for 4 bits mixes up scales where a block runs over two rows
            shape=torch.Size((1, self.out_features * self.in_features)),
            code=self.code,
            blocksize=BLOCK_SIZE[self.kind],
            quant_type=None if self.kind is BasePrecision.INT8 else self.kind.value,
            dtype=self.compute_dtype,
        )
        if self.kind is BasePrecision.INT8:
            expanded: Tensor = bits.dequantize_blockwise(self.packed, state)
        else:
            expanded = bits.dequantize_4bit(self.packed, state, quant_type=self.kind.value)
        return expanded.view(self.out_features, self.in_features)

    def forward(self, input: Tensor) -> Tensor:
        """[..., in] -> [..., out] in `compute_dtype`, with no copy of the weight kept for the backward pass."""
        product: Tensor = _QuantizedProduct.apply(input.to(self.compute_dtype), self)
        return product


class _QuantizedProduct(torch.autograd.Function):
    """A frozen layer's product: its gradient needs the weight alone, which is expanded anew."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, layer: QuantizedLinear) -> Tensor:
        ctx.layer = layer
        bias = None if layer.bias is None else layer.bias.to(rows.dtype)
        return functional.linear(rows, layer.weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient @ ctx.layer.weight, None


def quantize(unet: UNet2DConditionModel, kind: BasePrecision, compute_dtype: torch.dtype, device: torch.device) -> int:
    """Pack the linear layers of a UNet's transformer blocks, in place and one after the other; returns how many.

    To be called before adapters are added. Each is packed on `device` and stays there, so that neither device holds
    the model twice.
    """
    if kind is BasePrecision.FULL:
        return 0
    parents = [
        (module, name)
        for block in unet.modules()
        if isinstance(block, BasicTransformerBlock)
        for module in block.modules()
        for name, child in module.named_children()
        if isinstance(child, nn.Linear)
    ]
    for module, name in parents:
        setattr(module, name, QuantizedLinear(getattr(module, name), kind, compute_dtype, device))
    return len(parents)


def check_quantization(kind: BasePrecision, device: torch.device) -> None:
    """Pack a small weight and take a gradient through it; raises InputError where that cannot be done."""
    if kind is BasePrecision.FULL:
        return
    remedy = "Set base_precision to full."
    try:
        with torch.random.fork_rng(devices=[]):
            layer = QuantizedLinear(nn.Linear(TEST_SIZE, TEST_SIZE), kind, torch.float32, device)
        rows = torch.ones(1, TEST_SIZE, device=device, requires_grad=True)
        layer(rows).sum().backward()
    except ImportError:
        reason, remedy = "bitsandbytes is not installed", "Run pip install bitsandbytes, or set base_precision to full."
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, NotImplementedError, AttributeError, OSError, TypeError, ValueError) as error:
        said = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
        reason = f"bitsandbytes does not work on this {device.type} device ({said})"
    else:
        return
    raise InputError(f"base_precision is {kind.value}, but {reason}.", remedy, code="base_precision")


def _pack(weight: Tensor, kind: BasePrecision) -> tuple[Tensor, Any]:
    """A weight's packed numbers, and bitsandbytes' state with their scales and the code."""
    from bitsandbytes import functional as bits

    block = BLOCK_SIZE[kind]
    if kind is BasePrecision.INT8:
        # even steps: weights are close to normal, on which bitsandbytes' own code for 8 bits errs by half more
        code = bits.create_linear_map().to(weight.device)
        packed, state = bits.quantize_blockwise(weight, code=code, blocksize=block)
    else:
        packed, state = bits.quantize_4bit(weight, blocksize=block, quant_type=kind.value)
    return packed, state
