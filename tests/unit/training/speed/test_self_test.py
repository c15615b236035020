"""The comparison of fast paths with plain ones: right on a CPU, and a wrong result is found whichever path it is in."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from lora_studio.models import quantize
from lora_studio.training.speed import self_test as module
from lora_studio.training.speed.geglu import LeanGEGLU
from lora_studio.training.speed.recompute import BlockCheckpointing
from lora_studio.training.speed.self_test import Comparison, FastPath, relative_difference, self_test
from tests.support.graph_double import FakeCapturer
from tests.support.small_self_test import SMALL

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def timed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "REPEATS", 1)


def compare(path: FastPath, capturer: Any = None, dtype: torch.dtype = torch.float32) -> list[Comparison]:
    return list(self_test(CPU, dtype, paths=[path], size=SMALL, find_capturer=lambda device: capturer))


@pytest.mark.slow
def test_all_fast_paths_compute_the_same_in_half_precision() -> None:
    found = list(self_test(CPU, torch.bfloat16, size=SMALL, find_capturer=lambda device: FakeCapturer()))
    assert [comparison.path for comparison in found] == list(FastPath)
    for comparison in found:
        assert comparison.works, comparison.summary
        assert comparison.seconds
        assert comparison.plain_seconds
    # only what is recomputed or replayed is the same to the last bit
    exact = {comparison.path for comparison in found if not comparison.difference}
    assert exact == {FastPath.CHECKPOINTING, FastPath.CUDA_GRAPHS}


def test_a_device_is_not_tested_for_what_it_does_not_have() -> None:
    assert compare(FastPath.CUDA_GRAPHS) == []
    assert compare(FastPath.HALF_DECODING) == []


def scaled(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function with results half as large again."""
    return lambda *given, **named: 1.5 * function(*given, **named)


def break_path(path: FastPath, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a fast path compute something else."""
    match path:
        case FastPath.FUSED_LAYERS:
            monkeypatch.setattr(LeanGEGLU, "forward", scaled(LeanGEGLU.forward))
        case FastPath.CHECKPOINTING:
            monkeypatch.setattr(BlockCheckpointing, "__call__", scaled(BlockCheckpointing.__call__))
        case FastPath.INT8 | FastPath.NF4:
            real = quantize._quantize_weight
            monkeypatch.setattr(quantize, "_quantize_weight", lambda weight, kind: real(1.5 * weight, kind))
        case FastPath.HALF_DECODING:
            real_decode = module.decode_pixels

            def decode(vae: Any, latents: Tensor) -> Tensor:
                return real_decode(vae, latents) * (1.5 if vae.dtype == torch.bfloat16 else 1)

            monkeypatch.setattr(module, "decode_pixels", decode)


@pytest.mark.parametrize("path", FastPath)
def test_a_wrong_result_is_found_and_the_fallback_named(path: FastPath, monkeypatch: pytest.MonkeyPatch) -> None:
    break_path(path, monkeypatch)
    dtype = torch.bfloat16 if path is FastPath.HALF_DECODING else torch.float32
    (comparison,) = compare(path, FakeCapturer(wrong=path is FastPath.CUDA_GRAPHS), dtype)
    assert comparison.difference is not None
    assert comparison.difference > comparison.tolerance
    assert not comparison.works
    assert comparison.summary.endswith(f"runs use {path.fallback}")


def test_an_error_is_a_failure_and_out_of_memory_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(error: Exception) -> list[Comparison]:
        monkeypatch.setattr(FakeCapturer, "warm_up", lambda self, work: (_ for _ in ()).throw(error))
        return compare(FastPath.CUDA_GRAPHS, FakeCapturer())

    (comparison,) = fail(RuntimeError("no kernel image\nmore"))
    assert (comparison.works, comparison.error) == (False, "RuntimeError: no kernel image")
    assert FastPath.CUDA_GRAPHS.fallback in comparison.summary
    assert fail(torch.OutOfMemoryError("CUDA out of memory")) == []


def test_differences_are_relative_and_nan_is_infinite() -> None:
    ones = torch.ones(4)
    assert relative_difference([ones, ones], [ones, 0.5 * ones]) == pytest.approx(1)
    assert relative_difference([ones.half()], [ones]) == 0
    assert relative_difference([ones / 0 - ones / 0], [ones]) == float("inf")


@pytest.mark.gpu
def test_all_fast_paths_compute_the_same_on_this_gpu() -> None:
    device = torch.device("cuda")
    dtype = torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    found = list(self_test(device, dtype))
    assert {comparison.path for comparison in found} >= {FastPath.FUSED_LAYERS, FastPath.CHECKPOINTING}
    assert [comparison.summary for comparison in found if not comparison.works] == []
