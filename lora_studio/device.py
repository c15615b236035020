"""Find the GPUs, and choose the device and data type of a job. Only functions that return torch types import torch."""

from __future__ import annotations

import shutil
import subprocess
import sys
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

from lora_studio.errors import InputError
from lora_studio.settings.choices import Precision

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


@dataclass(frozen=True)
class Gpu:
    """A GPU as its driver reports it."""

    name: str
    vram_gib: float


def find_gpu() -> Gpu | None:
    """Return the first NVIDIA GPU; None if there is none."""
    return next(iter(find_gpus()), None)


@cache
def find_gpus() -> tuple[Gpu, ...]:
    """Return the NVIDIA GPUs as nvidia-smi lists them, without importing torch."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return ()
    query = [program, "--query-gpu=name,memory.total", "--format=csv,noheader,nounits"]
    try:
        answer = subprocess.run(query, capture_output=True, text=True, timeout=10, check=True).stdout
        parts = [line.rpartition(",") for line in answer.splitlines() if line.strip()]
        return tuple(Gpu(name.strip(), round(float(mib) / 1024, 1)) for name, _, mib in parts)
    except (OSError, subprocess.SubprocessError, ValueError):
        return ()


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
    return InputError(f"PyTorch cannot use the GPU: {text.splitlines()[0].rstrip('.')}.", remedy, code="gpu")


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an exception says that memory ran out, on the GPU or the CPU, in any library's wording."""
    torch = sys.modules.get("torch")
    if isinstance(error, MemoryError) or (torch is not None and isinstance(error, torch.OutOfMemoryError)):
        return True
    text = str(error).lower()
    return isinstance(error, RuntimeError) and ("out of memory" in text or "can't allocate memory" in text)


def free_gpu_cache() -> None:
    """Return unused memory of torch's allocator to the GPU, if torch is loaded."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        torch.cuda.empty_cache()
