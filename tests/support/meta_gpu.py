"""The meta device in the place of a GPU with a given memory: the studio's code runs on it, at SDXL's real size.

Tensors there have shapes and no data, so that a step takes seconds and little memory. Attention is counted as the GPU's
fused kernels do it, without the matrix of weights. What is read back from the device is 1 (a number) or zeros.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from typing import Any
from unittest import mock

import torch
from bitsandbytes import functional as bits
from torch import Tensor
from torch.nn import functional
from torch.optim import adam

from lora_studio.training.speed import attention
from tests.support.live_memory import LiveTensors

META = torch.device("meta")
aten = torch.ops.aten


IN_PLACE = {
    getattr(getattr(aten, name), overload)
    for name in ("add_", "mul_", "div_", "sub_", "copy_", "zero_", "fill_", "addmm_", "baddbmm_", "lerp_")
    for overload in getattr(aten, name).overloads()
} | {aten.uniform_.default, aten.normal_.default}
SAME_SHAPE = {
    getattr(getattr(aten, name), overload)
    for name in ("add", "mul", "sub", "div", "silu", "gelu", "gelu_backward", "silu_backward")
    for overload in getattr(aten, name).overloads()
    if overload in ("Tensor", "Scalar", "default")
}
LARGE = 2**12  # numbers on the CPU from which on their values are not computed


class MetaGpu(LiveTensors):
    """Counts what is on the meta device, and lets results be read back to the CPU.

    Most operations of a step are answered without torch's own functions for the meta device, which are slow.
    """

    def __init__(self, limit: float = math.inf) -> None:
        super().__init__("meta", limit)

    def run(self, function: Callable[..., Any], given: tuple[Any, ...], named: dict[str, Any]) -> Any:
        """Run an operation, or make up what it would read from the device."""
        first = given[0] if given else None
        if not isinstance(first, Tensor):
            return function(*given, **named)
        if function is aten._to_copy.default and not first.is_meta and first.numel() >= LARGE:
            return torch.empty(first.shape, dtype=named.get("dtype") or first.dtype, device=named.get("device"))
        if function in IN_PLACE and (first.is_meta or first.numel() >= LARGE or _is_from_meta(function, given)):
            return first
        if first.is_meta and (made := _made_up(function, first, given, named)) is not NotImplemented:
            return made
        return function(*given, **named)


def _is_from_meta(function: Callable[..., Any], given: tuple[Any, ...]) -> bool:
    return function is aten.copy_.default and given[1].is_meta


def _made_up(function: Callable[..., Any], first: Tensor, given: tuple[Any, ...], named: dict[str, Any]) -> Any:
    """Return the result of an operation on a tensor of the device; NotImplemented if torch is to compute it."""
    second = given[1] if len(given) > 1 else None
    if function is aten.addmm.default:
        return second.new_empty((second.shape[0], given[2].shape[1]))  # type: ignore[union-attr]
    if function is aten.mm.default:
        return first.new_empty((first.shape[0], second.shape[1]))  # type: ignore[union-attr]
    if function in (aten.mm.out, aten.bmm.out):
        return named["out"]
    if function in SAME_SHAPE and (
        not isinstance(second, Tensor) or (second.shape, second.dtype) == (first.shape, first.dtype)
    ):
        return torch.empty_like(first)
    if function is aten.native_layer_norm.default:
        statistics = first.new_empty((*first.shape[:-1], 1), dtype=torch.float32)
        return torch.empty_like(first), statistics, torch.empty_like(statistics)
    if function is aten._local_scalar_dense.default:
        return torch.ones((), dtype=first.dtype).item()
    if function is aten._to_copy.default and torch.device(named.get("device") or META).type == "cpu":
        return torch.empty(first.shape, dtype=named.get("dtype") or first.dtype).zero_()
    if function is aten.nonzero.default:
        return torch.zeros(1, first.dim(), dtype=torch.long)
    return NotImplemented


class _FusedAttention(torch.autograd.Function):
    """What FlashAttention and memory-efficient attention allocate: output and log-sum-exp, and three gradients."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        output = query.new_empty((*query.shape[:-1], value.shape[-1]))
        ctx.save_for_backward(query, key, value, output, query.new_empty(query.shape[:-1], dtype=torch.float32))
        return output

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, ...]:
        return tuple(torch.empty_like(saved) for saved in ctx.saved_tensors[:3])


def _attention(query: Tensor, key: Tensor, value: Tensor, *given: Any, **named: Any) -> Tensor:
    """Return what scaled_dot_product_attention would, on the meta device."""
    attended: Tensor = _FusedAttention.apply(query, key, value)
    return attended


def _autocast(real: Callable[..., Any]) -> Callable[..., Any]:
    """Return torch.autocast without its check of the device: with it only runs that need no cast are measured."""

    def context(device: str, *given: Any, enabled: bool = True, **named: Any) -> Any:
        return nullcontext() if device == "meta" else real(device, *given, enabled=enabled, **named)

    return context


@contextmanager
def meta_gpu(limit: float = math.inf) -> Iterator[MetaGpu]:
    """Use the meta device as a GPU within the block; more than `limit` bytes are out of memory.

    torch.cuda's memory statistics are then its.
    """
    gpu = MetaGpu(limit)

    def reset(*device: Any) -> None:
        gpu.reset_peak()

    cuda = {
        "empty_cache": lambda: None,
        "reset_peak_memory_stats": reset,
        "max_memory_allocated": lambda *device: gpu.peak,
        "memory_reserved": lambda *device: gpu.now,
        "mem_get_info": lambda *device: (gpu.limit - gpu.now, gpu.limit),
    }
    with ExitStack() as stack:
        for name, double in cuda.items():
            stack.enter_context(mock.patch.object(torch.cuda, name, double))
        stack.enter_context(mock.patch.object(torch, "autocast", _autocast(torch.autocast)))
        stack.enter_context(mock.patch.object(adam, "_device_dtype_check_for_fused", return_value=None))
        stack.enter_context(mock.patch.object(torch, "_fused_adamw_", return_value=None))
        stack.enter_context(mock.patch.object(bits, "is_on_gpu", return_value=True))
        for module in (functional, attention):
            stack.enter_context(mock.patch.object(module, "scaled_dot_product_attention", _attention))
        stack.enter_context(gpu)
        yield gpu
