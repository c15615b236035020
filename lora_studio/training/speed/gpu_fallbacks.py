"""Which fast paths a GPU computes wrongly: it is tested once, at its first run, and those are not used on it.

The results are in `self-test.json` in the studio's home, by GPU, driver, PyTorch and precision.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from pydantic import BaseModel, ValidationError

from lora_studio.device import find_gpus
from lora_studio.events import PhaseEvent, Report, WarningEvent
from lora_studio.files import write_json
from lora_studio.settings.choices import BasePrecision, GradientCheckpointing
from lora_studio.settings.recipe import Recipe
from lora_studio.training.speed.self_test import Comparison, FastPath, self_test
from lora_studio.workspace.project import Home

FILE = "self-test.json"
Test = Callable[[FastPath], Iterator[Comparison]]


class GpuResults(BaseModel):
    """The results for one GPU; None for a path that it does not have, or that could not be tried.

    `begun` is the path that is being tested: one that ends the process has failed.
    """

    results: dict[FastPath, Comparison | None] = {}
    begun: FastPath | None = None

    @property
    def failed(self) -> frozenset[FastPath]:
        """The paths that must not be used."""
        return frozenset(path for path, result in self.results.items() if result is not None and not result.works)


def failures_of(device: torch.device, dtype: torch.dtype, home: Home, report: Report) -> frozenset[FastPath]:
    """Return the fast paths that a GPU must not use, after testing it if it was not tested before.

    Each is reported as a warning. Nothing is tested on other devices.
    """
    if device.type != "cuda":
        return frozenset()
    return _test_missing(gpu_key(device, dtype), home, report, lambda path: self_test(device, dtype, paths=[path]))


def known_failures(device: torch.device, dtype: torch.dtype, home: Home) -> frozenset[FastPath]:
    """Return the fast paths that a GPU must not use, as far as it was tested."""
    if device.type != "cuda":
        return frozenset()
    return _read(home.path / FILE).get(gpu_key(device, dtype), GpuResults()).failed


def gpu_key(device: torch.device, dtype: torch.dtype) -> str:
    """Return the text that identifies a GPU with its driver, PyTorch and a precision."""
    name = torch.cuda.get_device_name(device)
    driver = next((gpu.driver for gpu in find_gpus() if gpu.name == name), "")
    return f"{name}, driver {driver or 'unknown'}, torch {torch.__version__}, {str(dtype).removeprefix('torch.')}"


def plain_recipe(recipe: Recipe, failed: frozenset[FastPath]) -> Recipe:
    """Return the recipe without the settings whose fast paths have failed."""
    changes: dict[str, object] = {}
    quantized = {BasePrecision.INT8: FastPath.INT8, BasePrecision.NF4: FastPath.NF4}
    if quantized.get(recipe.base_precision) in failed:
        changes["base_precision"] = BasePrecision.FULL
    if FastPath.CHECKPOINTING in failed:
        changes["gradient_checkpointing"] = GradientCheckpointing.OFF
    if FastPath.CUDA_GRAPHS in failed:
        changes["cuda_graphs"] = False
    return recipe.model_copy(update=changes)


def _test_missing(key: str, home: Home, report: Report, test: Test) -> frozenset[FastPath]:
    """Test the paths without a result, writing each before and after it."""
    file = home.path / FILE
    found = _read(file)
    gpu = found.setdefault(key, GpuResults())
    if gpu.begun is not None:
        message = "the process ended while this was tested"
        gpu.results[gpu.begun] = Comparison(path=gpu.begun, tolerance=0, error=message)
        gpu.begun = None
    missing = [path for path in FastPath if path not in gpu.results]
    if missing:
        report(PhaseEvent(message="Testing this GPU, once: about a minute"))
    for path in missing:
        gpu.begun = path
        _write(file, found)
        gpu.results[path] = next(iter(test(path)), None)
        gpu.begun = None
        _write(file, found)
    for result in gpu.results.values():
        if result is not None and not result.works:
            message = f"This GPU computes {result.path.value} wrongly: {result.summary}."
            report(WarningEvent(code="self_test", message=message, why=f"Tested once; delete {file} to test it again."))
    return gpu.failed


def _read(file: Path) -> dict[str, GpuResults]:
    """Return the results by GPU; none if the file is missing or damaged."""
    try:
        content = json.loads(file.read_text("utf-8"))
        return {key: GpuResults.model_validate(value) for key, value in content.items()}
    except (OSError, ValueError, AttributeError, ValidationError):
        return {}


def _write(file: Path, found: dict[str, GpuResults]) -> None:
    write_json(file, {key: gpu.model_dump(mode="json") for key, gpu in found.items()})
