"""Check the installation: libraries, GPU and driver, memory, disk, and what each device can do.

The report is plain text that can be pasted into a bug report: it has no secrets, and the user's folder is `~`.
"""

from __future__ import annotations

import io
import os
import platform
import re
import shutil
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
from pydantic import BaseModel, ConfigDict, computed_field

from lora_studio.device import check_gpu_is_usable, find_gpus
from lora_studio.errors import StudioError
from lora_studio.settings.choices import Optimizer, Precision
from lora_studio.torch_build import installed_torch
from lora_studio.versions import VERSION, installed_version, requirements
from lora_studio.workspace.project import Home

if TYPE_CHECKING:
    from lora_studio.training.speed.self_test import Comparison

GIB = 2**30
# Made for CUDA: a failure on another device is not a defect of the installation.
MADE_FOR_CUDA = {Optimizer.ADAMW8BIT, Optimizer.PAGED_ADAMW8BIT, Optimizer.LION8BIT, "int8", "nf4"}


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True)


class Check(_Part):
    """One thing that was tried. `message` is the error, or a figure; `needed` is False if the studio works without."""

    name: str
    works: bool
    needed: bool = True
    message: str = ""

    @property
    def mark(self) -> str:
        """The word at the beginning of the check's line."""
        return "ok" if self.works else "FAILED" if self.needed else "no"


class DeviceChecks(_Part):
    """What was tried on a device; `memory_gib` is the free and the total memory of a GPU.

    `self_test` has the figures of each fast path that was compared with the plain one, which is done on GPUs.
    """

    device: str
    name: str
    memory_gib: tuple[float, float] | None = None
    checks: list[Check]
    self_test: list[dict[str, Any]] = []


class Diagnosis(_Part):
    """The state of an installation."""

    lora_studio: str
    python: str
    platform: str
    pytorch: dict[str, str | None]
    gpus: list[dict[str, Any]]
    memory_gib: tuple[float, float]
    libraries: list[Check]
    gpu: list[Check]
    disk: list[Check]
    devices: list[DeviceChecks]

    @computed_field  # type: ignore[prop-decorator]
    @property
    def ok(self) -> bool:
        """True if everything that the studio needs works."""
        return all(check.works or not check.needed for check in self._checks())

    def _checks(self) -> Iterator[Check]:
        yield from (*self.libraries, *self.gpu, *self.disk)
        for device in self.devices:
            yield from device.checks

    def lines(self) -> list[str]:
        """Return the report as text."""
        lines = [f"LoRA Studio {self.lora_studio}, Python {self.python}, {self.platform}"]
        lines += ["", "Libraries", *_table(self.libraries), "", "GPU and driver"]
        for gpu in self.gpus:
            capability = gpu["compute_capability"]
            known = "" if capability is None else f", compute capability {capability:g}"
            lines.append(f"  {gpu['name']}, {gpu['vram_gib']:g} GiB, driver {gpu['driver'] or 'unknown'}{known}")
        lines += [*_table(self.gpu), "", "Memory and disk", f"  {_memory(self.memory_gib)}", *_table(self.disk)]
        for device in self.devices:
            memory = f", {_memory(device.memory_gib)}" if device.memory_gib else ""
            lines += ["", f"{device.device}: {device.name}{memory}", *_table(device.checks)]
        failed = sum(not check.works and check.needed for check in self._checks())
        summary = f"{failed} of the needed checks failed." if failed else "Everything that the studio needs works."
        return [*lines, "", summary]


def doctor(home: Home | None = None) -> Diagnosis:
    """Check libraries, GPU, driver, memory and disk, and try each precision and optimizer on every device.

    On a GPU the fast paths of a run are compared with the plain ones, too. Takes about half a minute, most of it for
    loading libraries, and about a minute more on a GPU. Nothing is written.
    """
    build = installed_torch()
    memory = psutil.virtual_memory()
    libraries = list(_check_versions())
    with _libraries_silenced():
        gpu = _check_gpu()
        devices, more = _check_devices()
    report = Diagnosis(
        lora_studio=VERSION,
        python=platform.python_version(),
        platform=platform.platform(),
        pytorch={name: getattr(build, name, None) for name in ("version", "cuda", "hip")},
        gpus=[
            {
                "name": found.name,
                "vram_gib": found.vram_gib,
                "driver": found.driver,
                "compute_capability": found.compute_capability,
            }
            for found in find_gpus()
        ],
        memory_gib=(_gib(memory.available), _gib(memory.total)),
        libraries=[*libraries, *more],
        gpu=[gpu],
        disk=list(_check_disk(home or Home.locate())),
        devices=devices,
    )
    return Diagnosis.model_validate(_without_home(report.model_dump(exclude={"ok"})))


@contextmanager
def _libraries_silenced() -> Iterator[None]:
    """Discard what libraries print and warn of while they load and run; their exceptions are in the report."""
    with warnings.catch_warnings(), redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        yield


def _check_versions() -> Iterator[Check]:
    for requirement in requirements():
        version = installed_version(requirement.name)
        if version is None:
            yield Check(name=requirement.name, works=False, message=f"is missing: pip install '{requirement}'")
        else:
            fits = requirement.specifier.contains(version, prereleases=True)
            message = version if fits else f"{version}, tested with {requirement.specifier}"
            yield Check(name=requirement.name, works=fits, needed=False, message=message)


def _check_gpu() -> Check:
    name = "PyTorch and the GPU"
    try:
        check_gpu_is_usable()
    except StudioError as error:
        return Check(name=name, works=False, message=str(error))
    except (ImportError, OSError) as error:
        return Check(name=name, works=False, message=f"PyTorch cannot be loaded: {error}")
    build = installed_torch()
    if build is None:
        return Check(name=name, works=False, message="PyTorch is missing")
    kind = f"CUDA {build.cuda}" if build.cuda else f"ROCm {build.hip}" if build.hip else "without CUDA"
    return Check(name=name, works=True, message=f"PyTorch {build.version} ({kind})")


def _check_disk(home: Home) -> Iterator[Check]:
    """Yield a check per folder that the studio writes to: free space, and the permission to write."""
    from huggingface_hub.constants import HF_HUB_CACHE

    for name, folder in (("home", home.path), ("cache", home.cache), ("downloads", Path(HF_HUB_CACHE))):
        existing = next(path for path in (folder, *folder.parents) if path.exists())
        writable = os.access(existing, os.W_OK)
        free = f"{_gib(shutil.disk_usage(existing).free):.1f} GiB free"
        message = f"{folder}: {free}" if writable else f"{folder}: no permission to write"
        yield Check(name=name, works=writable, message=message)


def _check_devices() -> tuple[list[DeviceChecks], list[Check]]:
    """Return what every device can do, and whether the libraries work together."""
    try:
        from lora_studio.training import probes
        from lora_studio.training.reporting.startup import device_name
        from lora_studio.training.speed.self_test import self_test
    except (ImportError, OSError, RuntimeError, AttributeError) as error:
        return [], [Check(name="loading libraries", works=False, message=f"{type(error).__name__}: {error}")]
    libraries = list(_as_checks("", probes.try_libraries(), ()))
    found = []
    for device in probes.list_devices():
        memory = probes.gpu_memory(device)
        compared = list(self_test(device, probes.run_dtype(device))) if device.type == "cuda" else []
        optional = _optional(device.type, is_used=probes.is_used(device))
        found.append(
            DeviceChecks(
                device=str(device),
                name=device_name(device),
                memory_gib=memory and (_gib(memory[0]), _gib(memory[1])),
                checks=[
                    *_as_checks("precision ", probes.try_precisions(device), optional),
                    *_as_checks("base_precision ", probes.try_base_precisions(device), optional),
                    *_as_checks("optimizer ", probes.try_optimizers(device), optional),
                    *(_as_check(comparison) for comparison in compared),
                ],
                self_test=[comparison.model_dump(mode="json") for comparison in compared],
            )
        )
    return found, libraries


def _optional(kind: str, *, is_used: bool) -> set[str]:
    """Return the names of what the studio does not need on a device; everything if jobs use another one."""
    if not is_used:
        return {*Precision, *Optimizer, *MADE_FOR_CUDA}
    return set() if kind == "cuda" else {*MADE_FOR_CUDA, Precision.BF16, Precision.FP16}


def _as_checks(prefix: str, errors: dict[str, str], optional: Iterable[str]) -> Iterator[Check]:
    for name, error in errors.items():
        yield Check(name=f"{prefix}{name}", works=not error, needed=name not in optional, message=error)


def _as_check(comparison: Comparison) -> Check:
    """Return a fast path's comparison as a check; the studio works without the path."""
    name = f"self-test {comparison.path.value}"
    return Check(name=name, works=comparison.works, needed=False, message=comparison.summary)


def _table(checks: Iterable[Check]) -> list[str]:
    return [f"  {check.mark:<6}  {check.name}{f': {check.message}' if check.message else ''}" for check in checks]


def _memory(gib: tuple[float, float]) -> str:
    return f"{gib[0]:.1f} of {gib[1]:.1f} GiB memory free"


def _gib(size: int) -> float:
    return round(size / GIB, 1)


def _without_home(value: Any) -> Any:
    """Return a value with the user's folder shortened to `~` in every text."""
    if isinstance(value, dict):
        return {name: _without_home(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_home(item) for item in value]
    folder = str(Path.home())
    if not isinstance(value, str) or len(folder) < 2:
        return value
    return re.sub(rf"{re.escape(folder)}(?![\w.-])", "~", value)
