"""Try what a device can do: each precision and optimizer takes one real step on a tiny problem.

Every function returns the error message of each thing that was tried, by its name; an empty one means that it works.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from enum import StrEnum
from functools import partial
from typing import TypeVar

import torch
from torch import Tensor, nn

from lora_studio.device import free_gpu_cache, torch_device, torch_dtype
from lora_studio.errors import StudioError
from lora_studio.models.compatibility import check_peft_compatibility
from lora_studio.models.quantize import check_quantization
from lora_studio.settings.choices import BasePrecision, Optimizer, Precision
from lora_studio.settings.recipe import Recipe
from lora_studio.training.optim.optimizers import check_optimizer

Results = dict[str, str]
Choice = TypeVar("Choice", bound=StrEnum)


def list_devices() -> list[torch.device]:
    """Return every device that PyTorch can use, GPUs first."""
    found = [torch.device("cuda", number) for number in range(torch.cuda.device_count())]
    if torch.backends.mps.is_available():
        found.append(torch.device("mps"))
    return [*found, torch.device("cpu")]


def is_used(device: torch.device) -> bool:
    """Return whether jobs of one process run on this device."""
    used = torch_device()
    return device.type == used.type and (device.index or 0) == 0


def gpu_memory(device: torch.device) -> tuple[int, int] | None:
    """Return the free and the total memory of a CUDA device in bytes; None for other devices."""
    return torch.cuda.mem_get_info(device) if device.type == "cuda" else None


def run_dtype(device: torch.device) -> torch.dtype:
    """Return the precision of a run on this device."""
    return torch_dtype(Precision.AUTO, device)[0]


def try_libraries() -> Results:
    """Inject a LoRA with the installed peft into a model of the installed transformers."""
    return {"peft and transformers": _error_of(check_peft_compatibility)}


def try_precisions(device: torch.device) -> Results:
    """Train a small network for one step in each precision that the recipe offers on this device."""
    wanted = [Precision.FP32, Precision.BF16, *([] if device.type == "cpu" else [Precision.FP16])]
    return _try_each(wanted, lambda precision: _train_one_step(torch_dtype(precision, device)[0], device))


def try_base_precisions(device: torch.device) -> Results:
    """Run a backward pass through a layer with quantized weights, in each format."""
    wanted = [precision for precision in BasePrecision if precision is not BasePrecision.FULL]
    return _try_each(wanted, lambda precision: check_quantization(precision, device))


def try_optimizers(device: torch.device) -> Results:
    """Take one step with each optimizer."""
    return _try_each(Optimizer, lambda optimizer: check_optimizer(Recipe(optimizer=optimizer), device))


def _try_each(choices: Iterable[Choice], check: Callable[[Choice], None]) -> Results:
    return {choice.value: _error_of(partial(check, choice)) for choice in choices}


def _error_of(check: Callable[[], object]) -> str:
    """Return the message of whatever a check raises: a broken library can raise anything."""
    try:
        check()
    except StudioError as error:
        return error.message
    except Exception as error:
        lines = str(error).strip().splitlines()
        return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
    finally:
        free_gpu_cache()
    return ""


def _train_one_step(dtype: torch.dtype, device: torch.device) -> None:
    """Train a convolution, a norm and a linear layer for one step as a run does; raise RuntimeError if that fails."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        layers = nn.Sequential(nn.Conv2d(4, 8, 3, padding=1), nn.GroupNorm(2, 8), nn.SiLU(), nn.Flatten())
        model = layers.append(nn.Linear(8 * 64, 4)).to(device)
        images = torch.randn(2, 4, 8, 8).to(device)
    before = [weight.detach().clone() for weight in model.parameters()]
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    scaler = torch.amp.GradScaler(device.type, init_scale=256, enabled=dtype == torch.float16)
    with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
        loss: Tensor = model(images).float().square().mean()
    scaler.scale(loss).backward()
    scaler.step(optimizer)
    after = list(model.parameters())
    if not all(bool(weight.isfinite().all()) for weight in after):
        raise RuntimeError("weights are NaN or infinite after one step")
    if all(torch.equal(old, new) for old, new in zip(before, after, strict=True)):
        raise RuntimeError("one step did not change the weights")
