from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from typing import Any

import psutil
import pytest
import torch

from lora_studio import device
from lora_studio.device import (
    Gpu,
    check_gpu_is_usable,
    find_gpu,
    find_gpus,
    limit_gpu_memory,
    peak_rss_bytes,
    torch_device,
    torch_dtype,
    unused_gpu_error,
    use_expandable_segments,
)
from lora_studio.errors import InputError
from lora_studio.settings.choices import Precision
from lora_studio.torch_build import TorchBuild


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
    fake_nvidia_smi(monkeypatch, "NVIDIA GeForce RTX 3060, 12288, 580.65.06, 8.6\nNVIDIA T4, 16384, 580.65.06, 7.5\n")
    first, second = Gpu("NVIDIA GeForce RTX 3060", 12.0, "580.65.06", 8.6), Gpu("NVIDIA T4", 16.0, "580.65.06", 7.5)
    assert find_gpus() == (first, second)
    assert find_gpu() == first
    assert first.driver_major == 580


def test_a_driver_that_does_not_know_compute_capabilities_is_asked_without_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def run(command: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
        if "compute_cap" in command[1]:
            raise subprocess.CalledProcessError(2, command)
        return subprocess.CompletedProcess([], 0, "GeForce GTX 1080, 8192, 450.36\n", "")

    monkeypatch.setattr(device.shutil, "which", lambda name: "/usr/bin/nvidia-smi")
    monkeypatch.setattr(device.subprocess, "run", run)
    assert find_gpus() == (Gpu("GeForce GTX 1080", 8.0, "450.36", None),)


@pytest.mark.parametrize(
    "answer",
    [
        "",
        "no devices were found",
        "Some GPU, [N/A], 580.65, 8.6\n",
        OSError(),
        subprocess.TimeoutExpired("nvidia-smi", 10),
    ],
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


def machine(
    monkeypatch: pytest.MonkeyPatch, build: TorchBuild, gpu: str = "NVIDIA RTX 4090, 24564, 581.29, 8.9"
) -> None:
    """Make this a machine with an NVIDIA GPU, and a PyTorch build that does not find it."""
    fake_nvidia_smi(monkeypatch, gpu)
    monkeypatch.setattr(device, "installed_torch", lambda: build)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


def test_a_pytorch_without_cuda_on_a_machine_with_a_gpu_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    machine(monkeypatch, TorchBuild("2.13.0+cpu"))
    for found in (unused_gpu_error(), raised_by(check_gpu_is_usable)):
        assert found is not None
        assert found.code == "gpu"
        assert "RTX 4090" in found.message
        assert "2.13.0+cpu" in found.message
        assert "https://download.pytorch.org/whl/cu130" in found.remedy


def test_the_peak_of_main_memory_stays_when_memory_is_freed() -> None:
    before, now = peak_rss_bytes(), psutil.Process().memory_info().rss
    assert before > 0.99 * now  # the system counts in batches of pages
    block = b"1" * (before - now + 64 * 2**20)  # every page is written
    during = peak_rss_bytes()
    del block
    assert during > before + 48 * 2**20
    assert peak_rss_bytes() > before + 48 * 2**20


def test_the_best_gpu_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    two = "NVIDIA GTX 1080, 8192, 581.29, 6.1\nNVIDIA RTX 4090, 24564, 581.29, 8.9"
    machine(monkeypatch, TorchBuild("2.13.0+cu130", "13.0"), two)
    assert unused_gpu_error() is None


def test_a_gpu_that_a_fitting_build_does_not_find_is_refused_too(monkeypatch: pytest.MonkeyPatch) -> None:
    machine(monkeypatch, TorchBuild("2.13.0+cu130", "13.0"))
    assert unused_gpu_error() is None
    assert raised_by(check_gpu_is_usable).code == "gpu"


@pytest.mark.parametrize("hidden", ["", "-1", "-1,0"])
def test_a_hidden_gpu_is_not_missed(monkeypatch: pytest.MonkeyPatch, hidden: str) -> None:
    machine(monkeypatch, TorchBuild("2.13.0+cpu"))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", hidden)
    assert unused_gpu_error() is None
    check_gpu_is_usable()


def test_no_gpu_needs_no_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    machine(monkeypatch, TorchBuild("2.13.0+cpu"))
    monkeypatch.setattr(device.shutil, "which", lambda name: None)
    assert unused_gpu_error() is None
    check_gpu_is_usable()


@pytest.mark.parametrize(
    ("architectures", "capability", "usable"),
    [
        (["sm_75", "sm_86"], (8, 6), True),
        (["sm_75", "sm_86"], (8, 9), True),
        (["sm_75", "sm_86"], (6, 1), False),
        (["sm_75", "sm_90"], (12, 0), False),
        (["sm_75", "compute_90"], (12, 0), True),
        (["sm_75", "sm_120"], (12, 1), True),
    ],
)
def test_an_available_gpu_needs_code_in_the_build(
    monkeypatch: pytest.MonkeyPatch, architectures: list[str], capability: tuple[int, int], usable: bool
) -> None:
    machine(monkeypatch, TorchBuild("2.13.0+cu130", "13.0"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: architectures)
    if usable:
        check_gpu_is_usable()
    else:
        assert raised_by(check_gpu_is_usable).code == "gpu"


def raised_by(check: Callable[[], None]) -> InputError:
    with pytest.raises(InputError) as caught:
        check()
    return caught.value


@pytest.mark.parametrize(
    ("system", "release", "given", "expected"),
    [
        ("linux", "6.8.0-generic", {}, {"PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True"}),
        ("linux", "6.8.0", {"PYTORCH_ALLOC_CONF": "a:1"}, {"PYTORCH_ALLOC_CONF": "a:1"}),
        ("linux", "6.8.0", {"PYTORCH_CUDA_ALLOC_CONF": "a:1"}, {"PYTORCH_CUDA_ALLOC_CONF": "a:1"}),
        ("linux", "5.15.0-microsoft-standard-WSL2", {}, {}),
        ("win32", "11", {}, {}),
    ],
    ids=["Linux", "set by the user", "set by its older name", "WSL", "Windows"],
)
def test_expandable_segments_are_used_on_linux(
    monkeypatch: pytest.MonkeyPatch, system: str, release: str, given: dict[str, str], expected: dict[str, str]
) -> None:
    monkeypatch.setattr(device.sys, "platform", system)
    monkeypatch.setattr(device.platform, "release", lambda: release)
    monkeypatch.setattr(device.os, "environ", given)
    use_expandable_segments()
    assert given == expected


@pytest.mark.parametrize(
    ("system", "release", "fractions"),
    [("win32", "11", [0.75]), ("linux", "5.15.0-microsoft-standard-WSL2", [0.75]), ("linux", "6.8.0-generic", [])],
    ids=["Windows", "WSL", "Linux"],
)
def test_windows_drivers_get_no_more_memory_than_is_free(
    monkeypatch: pytest.MonkeyPatch, system: str, release: str, fractions: list[float]
) -> None:
    """5 of 8 GiB are free, and one that torch has reserved can be used again."""
    found: list[float] = []
    monkeypatch.setattr(device.sys, "platform", system)
    monkeypatch.setattr(device.platform, "release", lambda: release)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (5 * 2**30, 8 * 2**30))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda: 2**30)
    monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", found.append)
    limit_gpu_memory()
    assert found == fractions
