from __future__ import annotations

import subprocess
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from lora_studio import device
from lora_studio.device import Gpu, find_gpu, find_gpus, torch_device, torch_dtype
from lora_studio.errors import InputError
from lora_studio.settings.choices import Precision


@pytest.fixture(autouse=True)
def uncached() -> Iterator[None]:
    find_gpus.cache_clear()
    yield
    find_gpus.cache_clear()


def fake_nvidia_smi(monkeypatch: pytest.MonkeyPatch, answer: str | Exception) -> None:
    def run(*arguments: Any, **options: Any) -> subprocess.CompletedProcess[str]:
        if isinstance(answer, Exception):
            raise answer
        return subprocess.CompletedProcess([], 0, answer, "")

    monkeypatch.setattr(device.shutil, "which", lambda name: "/usr/bin/nvidia-smi")
    monkeypatch.setattr(device.subprocess, "run", run)


def test_gpus_are_read_from_nvidia_smi(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_nvidia_smi(monkeypatch, "NVIDIA GeForce RTX 3060, 12288\nNVIDIA T4, 16384\n")
    assert find_gpu() == Gpu("NVIDIA GeForce RTX 3060", 12.0)
    assert find_gpus() == (Gpu("NVIDIA GeForce RTX 3060", 12.0), Gpu("NVIDIA T4", 16.0))


@pytest.mark.parametrize(
    "answer",
    ["", "no devices were found", "Some GPU, [N/A]\n", OSError(), subprocess.TimeoutExpired("nvidia-smi", 10)],
)
def test_unusable_output_means_no_gpu(monkeypatch: pytest.MonkeyPatch, answer: str | Exception) -> None:
    fake_nvidia_smi(monkeypatch, answer)
    assert find_gpu() is None


def test_no_gpu_without_a_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device.shutil, "which", lambda name: None)
    assert find_gpu() is None


def test_cuda_is_preferred_to_mps_and_mps_to_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    for cuda, mps, expected in ((True, True, "cuda"), (False, True, "mps"), (False, False, "cpu")):
        monkeypatch.setattr(torch.cuda, "is_available", lambda answer=cuda: answer)
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda answer=mps: answer)
        assert torch_device().type == expected


@pytest.mark.parametrize(
    ("kind", "bf16", "expected"),
    [("cpu", False, torch.float32), ("mps", False, torch.float32), ("cuda", True, torch.bfloat16),
     ("cuda", False, torch.float16)],
)  # fmt: skip
def test_auto_precision_depends_on_the_device(
    monkeypatch: pytest.MonkeyPatch, kind: str, bf16: bool, expected: torch.dtype
) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: bf16)
    chosen, reason = torch_dtype(Precision.AUTO, torch.device(kind))
    assert chosen == expected
    assert reason


def test_explicit_precision_is_used() -> None:
    for precision, expected in ((Precision.BF16, torch.bfloat16), (Precision.FP32, torch.float32)):
        assert torch_dtype(precision, torch.device("cpu"))[0] == expected
    assert torch_dtype(Precision.FP16, torch.device("cuda"))[0] == torch.float16


def test_fp16_on_a_cpu_is_refused() -> None:
    with pytest.raises(InputError, match="fp16") as caught:
        torch_dtype(Precision.FP16, torch.device("cpu"))
    assert caught.value.code == "precision"
    assert "bf16" in caught.value.remedy
