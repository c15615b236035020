"""Quantize a UNet's frozen linear layers to 8 or 4 bits; weights are dequantized at each use.

int8 has evenly spaced levels, nf4 those of Dettmers et al. 2023 (QLoRA, arXiv:2305.14314); both scale each block of
weights by its largest magnitude. Only the UNet's transformer blocks are quantized, 85 % of its weights. Adapters train
as on any other base, since reading a layer's `weight` dequantizes it.
"""

from __future__ import annotations

from typing import Any

import torch
from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

from lora_studio.errors import InputError
from lora_studio.settings.choices import BasePrecision

# Weights that share a scale: 1.03 bytes per weight in int8, 0.56 in nf4 (QLoRA's block size).
BLOCK_SIZE = {BasePrecision.INT8: 128, BasePrecision.NF4: 64}
TEST_SIZE = 64


class QuantizedLinear(nn.Linear):
    """A frozen linear layer with a quantized weight; reading `weight` [out, in] dequantizes it to `compute_dtype`."""

    packed: Tensor
    scales: Tensor
    code: Tensor

    def __init__(
        self, layer: nn.Linear, precision: BasePrecision, compute_dtype: torch.dtype, device: torch.device
    ) -> None:
        nn.Module.__init__(self)  # not Linear's, which would allocate the full weight
        self.in_features, self.out_features = layer.in_features, layer.out_features
        self.precision, self.compute_dtype = precision, compute_dtype
        bias = None if layer.bias is None else nn.Parameter(layer.bias.detach().to(device), requires_grad=False)
        self.register_parameter("bias", bias)
        packed, state = _quantize_weight(layer.weight.detach().to(device), precision)
        self.register_buffer("packed", packed)
        self.register_buffer("scales", state.absmax)
        self.register_buffer("code", state.code)

    @property
    def weight(self) -> Tensor:  # type: ignore[override]
        """The weight [out, in], dequantized at each reading; it has no gradient."""
        from bitsandbytes import functional as bits

        state = bits.QuantState(
            absmax=self.scales,
            # as one row: bitsandbytes' 4-bit CPU kernel confuses scales where a block spans two rows
            shape=torch.Size((1, self.out_features * self.in_features)),
            code=self.code,
            blocksize=BLOCK_SIZE[self.precision],
            quant_type=None if self.precision is BasePrecision.INT8 else self.precision.value,
            dtype=self.compute_dtype,
        )
        if self.precision is BasePrecision.INT8:
            weight: Tensor = bits.dequantize_blockwise(self.packed, state)
        else:
            weight = bits.dequantize_4bit(self.packed, state, quant_type=self.precision.value)
        return weight.view(self.out_features, self.in_features)

    def forward(self, input: Tensor) -> Tensor:
        """Return x W' + b, [..., in] -> [..., out], in `compute_dtype` (' is transpose).

        No dequantized weight is kept for the backward pass.
        """
        result: Tensor = _QuantizedLinearFunction.apply(input.to(self.compute_dtype), self)  # type: ignore[no-untyped-call]
        return result


class _QuantizedLinearFunction(torch.autograd.Function):
    """Autograd function of a frozen linear layer: the backward pass dequantizes the weight again."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, layer: QuantizedLinear) -> Tensor:
        ctx.layer = layer
        bias = None if layer.bias is None else layer.bias.to(rows.dtype)
        return functional.linear(rows, layer.weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient @ ctx.layer.weight, None


def quantize(
    unet: UNet2DConditionModel, precision: BasePrecision, compute_dtype: torch.dtype, device: torch.device
) -> int:
    """Quantize the linear layers of a UNet's transformer blocks in place; return how many there were.

    Call it before adapters are added. Layers are quantized one by one on `device` and stay there, so that neither
    device holds the model twice.
    """
    if precision is BasePrecision.FULL:
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
        setattr(module, name, QuantizedLinear(getattr(module, name), precision, compute_dtype, device))
    return len(parents)


def check_quantization(precision: BasePrecision, device: torch.device) -> None:
    """Quantize a small layer and run a backward pass through it; raise InputError if that fails on this device."""
    if precision is BasePrecision.FULL:
        return
    remedy = "Set base_precision to full."
    try:
        with torch.random.fork_rng(devices=[]):
            layer = QuantizedLinear(nn.Linear(TEST_SIZE, TEST_SIZE), precision, torch.float32, device)
        rows = torch.ones(1, TEST_SIZE, device=device, requires_grad=True)
        layer(rows).sum().backward()
    except ImportError:
        reason, remedy = "bitsandbytes is not installed", "Run pip install bitsandbytes, or set base_precision to full."
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, NotImplementedError, AttributeError, OSError, TypeError, ValueError) as error:
        detail = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
        reason = f"bitsandbytes does not work on this {device.type} device ({detail})"
    else:
        return
    raise InputError(f"base_precision is {precision.value}, but {reason}.", remedy, code="base_precision")


def _quantize_weight(weight: Tensor, precision: BasePrecision) -> tuple[Tensor, Any]:
    """Return a weight's quantized values and bitsandbytes' state: scales (`absmax`) and code book (`code`)."""
    from bitsandbytes import functional as bits

    block_size = BLOCK_SIZE[precision]
    if precision is BasePrecision.INT8:
        # linear levels: on weights, which are close to normal, bitsandbytes' own 8-bit code errs by half more
        code = bits.create_linear_map().to(weight.device)
        packed, state = bits.quantize_blockwise(weight, code=code, blocksize=block_size)
    else:
        packed, state = bits.quantize_4bit(weight, blocksize=block_size, quant_type=precision.value)
    return packed, state
