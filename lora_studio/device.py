"""Find the GPUs, and choose the device and data type of a job. Only functions that return torch types import torch."""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

from lora_studio.errors import InputError
from lora_studio.events import Report, WarningEvent
from lora_studio.settings.choices import Precision
from lora_studio.torch_build import installed_torch

if TYPE_CHECKING:
    import torch

_UPDATE_DRIVER = "Update the GPU's driver and restart the computer."
_OTHER_PYTORCH = "Install the PyTorch build for your GPU: https://pytorch.org/get-started/locally/ has the command."
# Parts of torch's and CUDA's messages about a GPU that cannot be used at all (lower case), with the remedy.
_GPU_ERRORS = {
    "no kernel image": _OTHER_PYTORCH,
    "not compiled with cuda": _OTHER_PYTORCH,
    "driver initialization failed": _UPDATE_DRIVER,
    "driver version is insufficient": _UPDATE_DRIVER,
    "driver on your system is too old": _UPDATE_DRIVER,
    "no nvidia driver": _UPDATE_DRIVER,
    "no cuda-capable device": _UPDATE_DRIVER,
    "no cuda gpus are available": _UPDATE_DRIVER,
}
_WITHOUT_IT = "The job continues without it. Other programs may be using the GPU: close them."


@dataclass(frozen=True)
class Gpu:
    """A GPU as its driver reports it; an old driver does not know the compute capability (8.9 is Ada)."""

    name: str
    vram_gib: float
    driver: str = ""
    compute_capability: float | None = None

    @property
    def driver_major(self) -> int | None:
        """The first number of the driver's version; None if it is not known."""
        first = self.driver.partition(".")[0]
        return int(first) if first.isdecimal() else None


def device_to_plan_for() -> str:
    """Return the name of the GPU that a job would use, or "CPU"."""
    gpu = find_gpu()
    return gpu.name if gpu else "CPU"


def find_gpu() -> Gpu | None:
    """Return the first NVIDIA GPU; None if there is none."""
    return next(iter(find_gpus()), None)


@cache
def find_gpus() -> tuple[Gpu, ...]:
    """Return the NVIDIA GPUs as nvidia-smi lists them, without importing torch."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return ()
    fields = ("name", "memory.total", "driver_version", "compute_cap")
    for asked in (fields, fields[:-1]):  # drivers before 2021 do not know the last one and answer nothing
        query = [program, f"--query-gpu={','.join(asked)}", "--format=csv,noheader,nounits"]
        try:
            answer = subprocess.run(query, capture_output=True, text=True, timeout=10, check=True).stdout
            return tuple(_parse_gpu(line, len(asked)) for line in answer.splitlines() if line.strip())
        except subprocess.CalledProcessError:
            continue
        except (OSError, subprocess.SubprocessError, ValueError):
            break
    return ()


def _parse_gpu(line: str, fields: int) -> Gpu:
    name, mib, driver, *capability = (part.strip() for part in line.rsplit(",", fields - 1))
    known = capability[0] if capability else ""
    return Gpu(name, round(float(mib) / 1024, 1), driver, float(known) if known[:1].isdigit() else None)


def unused_gpu_error() -> InputError | None:
    """Return an error with the remedy if the installed PyTorch cannot use this machine's NVIDIA GPUs; else None.

    It is found without importing PyTorch, from its version and the driver's. A GPU that CUDA_VISIBLE_DEVICES hides is
    not missed.
    """
    build = installed_torch()
    if not find_gpus() or build is None or build.hip is not None or _gpus_are_hidden():
        return None
    gpu = max(find_gpus(), key=lambda gpu: gpu.compute_capability or 0)
    facts = gpu.compute_capability, gpu.driver_major
    reason = build.mismatch(*facts)
    return _unused(gpu, reason, build.remedy(*facts)) if reason else None


def check_gpu_is_usable() -> None:
    """Raise InputError, with the remedy, if PyTorch cannot use this machine's NVIDIA GPU.

    Without this check a job would run on the CPU, a hundred times slower. Imports PyTorch if there is a GPU.
    """
    if not find_gpus() or _gpus_are_hidden():
        return
    import torch

    if torch.cuda.is_available():
        major, minor = torch.cuda.get_device_capability()
        if torch.version.hip is not None or _has_code_for((major, minor), torch.cuda.get_arch_list()):
            return
    if (error := unused_gpu_error()) is not None:
        raise error
    raise _unused(find_gpus()[0], "CUDA finds no GPU that it can use", f"{_UPDATE_DRIVER} In a container: --gpus all.")


def _has_code_for(capability: tuple[int, int], architectures: Sequence[str]) -> bool:
    """Return whether a build has code for a GPU: `sm_86` runs on 8.6 and 8.9, `compute_90` on 9.0 and later ones."""
    for name in architectures:
        kind, _, digits = name.rstrip("af").partition("_")
        built = int(digits[:-1]), int(digits[-1])
        if built <= capability and (kind == "compute" or built[0] == capability[0]):
            return True
    return False


def _gpus_are_hidden() -> bool:
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    return visible is not None and visible.split(",")[0].strip() in ("", "-1", "NoDevFiles")


def _unused(gpu: Gpu, reason: str, remedy: str) -> InputError:
    return InputError(
        f"The {gpu.name} cannot be used: {reason}.",
        f"{remedy} To use the CPU all the same, set the environment variable CUDA_VISIBLE_DEVICES to -1.",
        code="gpu",
    )


def torch_device() -> torch.device:
    """Return the best device: CUDA, else Apple's MPS, else the CPU."""
    import torch

    if torch.cuda.is_available():
        return torch.device("cuda")
    if torch.backends.mps.is_available():
        return torch.device("mps")
    return torch.device("cpu")


def torch_dtype(precision: Precision, device: torch.device) -> tuple[torch.dtype, str]:
    """Return the data type of a run and the reason as text; raise InputError if the device does not support it."""
    import torch

    if precision is Precision.AUTO:
        if device.type == "cuda":
            if torch.cuda.is_bf16_supported(including_emulation=False):
                return torch.bfloat16, "bf16: half the memory, and this GPU supports it"
            return torch.float16, "fp16: half the memory; this GPU does not support bf16"
        return torch.float32, f"fp32: exact, and the safest on {device.type}"
    if precision is Precision.FP16 and device.type == "cpu":
        raise InputError(
            "mixed_precision is fp16, which needs a GPU.", "Use bf16, fp32 or auto on a CPU.", code="precision"
        )
    chosen = {
        Precision.BF16: torch.bfloat16,
        Precision.FP16: torch.float16,
        Precision.FP32: torch.float32,
    }[precision]
    return chosen, f"{precision.value}: set in the recipe"


def gpu_error(error: BaseException) -> InputError | None:
    """Return an error with a remedy if an exception says that torch cannot use the GPU at all; else None."""
    text = str(error).strip()
    remedy = next((remedy for part, remedy in _GPU_ERRORS.items() if part in text.lower()), None)
    if remedy is None or not isinstance(error, AssertionError | RuntimeError):
        return None
    if (known := unused_gpu_error()) is not None:
        remedy = known.remedy
    return InputError(f"PyTorch cannot use the GPU: {text.splitlines()[0].rstrip('.')}.", remedy, code="gpu")


def uses_windows_driver() -> bool:
    """Return whether the GPU's driver is one for Windows, also of a Linux that runs in Windows (WSL)."""
    return sys.platform == "win32" or "microsoft" in platform.release().lower()


def use_expandable_segments() -> None:
    """Let torch's CUDA allocator grow its blocks, against fragmentation by many shapes, unless the user configured it.

    On Linux only. To be called before a GPU is used. The variable's newer name, PYTORCH_ALLOC_CONF, is ignored by
    PyTorch 2.9 to 2.11 (pytorch/pytorch issue 183387).
    """
    if sys.platform == "linux" and not uses_windows_driver() and "PYTORCH_ALLOC_CONF" not in os.environ:
        os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")


def limit_gpu_memory() -> None:
    """Let torch use only the GPU memory that is free now, if the driver would use main memory instead of failing.

    Windows' drivers do that ("system memory fallback"): steps take minutes, without an out-of-memory error.
    """
    torch = sys.modules.get("torch")
    if torch is None or not uses_windows_driver() or not torch.cuda.is_available():
        return
    free, total = torch.cuda.mem_get_info()
    torch.cuda.set_per_process_memory_fraction(min(1.0, (free + torch.cuda.memory_reserved()) / total))


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an exception says that memory ran out, on the GPU or the CPU, in any library's wording."""
    torch = sys.modules.get("torch")
    if isinstance(error, MemoryError) or (torch is not None and isinstance(error, torch.OutOfMemoryError)):
        return True
    text = str(error).lower()
    return isinstance(error, RuntimeError) and ("out of memory" in text or "can't allocate memory" in text)


def free_gpu_bytes(device: torch.device) -> int | None:
    """Return the bytes of a CUDA GPU that are free or cached by torch; None for other devices."""
    import torch

    if device.type != "cuda":
        return None
    cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return torch.cuda.mem_get_info(device)[0] + cached


def peak_rss_bytes() -> int:
    """Return the peak of this process's resident main memory (RSS) in bytes."""
    if sys.platform == "win32":
        peak = psutil.Process().memory_info().peak_wset
    elif sys.platform == "linux":  # ru_maxrss would include that of the process that started this one
        status = Path("/proc/self/status").read_text("ascii", errors="replace")
        peak = int(re.findall(r"^VmHWM:\s*(\d+) kB", status, re.MULTILINE)[0]) * 1024
    else:
        import resource

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(peak)


def free_gpu_cache() -> None:
    """Return unused memory of torch's allocator to the GPU, if torch is loaded."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        torch.cuda.empty_cache()


@contextmanager
def warn_if_out_of_memory(report: Report, code: str, message: str) -> Iterator[None]:
    """Report a warning instead of raising an out-of-memory error of the block; then free unused GPU memory.

    For work that a job can do without. `message` says what is missing.
    """
    try:
        yield
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        report(WarningEvent(code=code, message=message, why=_WITHOUT_IT))
    free_gpu_cache()
