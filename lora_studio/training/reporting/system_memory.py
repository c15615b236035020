"""Notice that a GPU's driver has moved to system memory: steps far slower than planned, with the GPU's memory full.

Windows' drivers do that instead of failing ("system memory fallback"), for example when another program starts to use
the GPU during a run.
"""

from __future__ import annotations

import statistics
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

import torch

from lora_studio.events import Report, WarningEvent
from lora_studio.models.catalogue import find_base
from lora_studio.planning.memory import GIB, saving_advice
from lora_studio.planning.timing import step_seconds
from lora_studio.settings.job_specs import TrainJob

FACTOR = 3.0  # times the longest planned step
FULL = 0.05  # share of the GPU's memory that is free at most
WARM_UP, COUNT = 3, 5  # steps that are left out, and whose median counts
_REMEDY = (
    "Close other programs that use the GPU. In the NVIDIA Control Panel, under Manage 3D settings, set CUDA - Sysmem "
    "Fallback Policy to Prefer No Sysmem Fallback: then the studio notices that memory is short, and uses less."
)


@dataclass
class SystemMemoryWatch:
    """Watches the seconds per step, and warns once. `planned` is the longest step that was to be expected.

    `free_share` returns the share (0 to 1) of the GPU's memory that is free, `saving` is what to change to need less.
    """

    planned: float
    free_share: Callable[[], float]
    saving: str
    report: Report
    steps: int = 0
    last: deque[float] = field(default_factory=lambda: deque(maxlen=COUNT))
    warned: bool = False

    def add(self, seconds: float) -> None:
        """Add the time of a step."""
        self.steps += 1
        if self.warned or self.steps <= WARM_UP:
            return
        self.last.append(seconds)
        typical = statistics.median(self.last)
        if len(self.last) < COUNT or typical <= FACTOR * self.planned or self.free_share() > FULL:
            return
        self.warned = True
        self.report(
            WarningEvent(
                code="system_memory",
                message=f"A step takes {typical:.1f} s, planned were {self.planned:.1f} s at most, and the GPU's "
                "memory is full: your driver is using system memory.",
                why=f"{_REMEDY} Or need less: {self.saving}",
            )
        )


def watch_system_memory(job: TrainJob, device: torch.device, report: Report) -> Callable[[float], None]:
    """Return a function that is to be called with the seconds of each step; it does nothing without a CUDA GPU."""
    if device.type != "cuda":
        return lambda seconds: None
    name, (_, total) = torch.cuda.get_device_name(device), torch.cuda.mem_get_info(device)
    planned = step_seconds(job.recipe, find_base(job.base), total / GIB, gpu=name)

    def free_share() -> float:
        free, size = torch.cuda.mem_get_info(device)
        return free / size

    return SystemMemoryWatch(planned.high, free_share, saving_advice(job.recipe), report).add
