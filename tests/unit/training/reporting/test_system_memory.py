from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from lora_studio.planning.memory import saving_advice
from lora_studio.training.reporting.system_memory import COUNT, FACTOR, WARM_UP, SystemMemoryWatch, watch_system_memory
from tests.support.events import Events, append_to, ignore, of
from tests.support.training_runs import make_job

SLOW = 1.1 * FACTOR


def warnings_after(steps: list[float], free: float = 0.01) -> list[str]:
    events = Events()
    watch = SystemMemoryWatch(1.0, lambda: free, "Lower the batch size.", append_to(events))
    for seconds in steps:
        watch.add(seconds)
    return [warning["why"] for warning in of(events, "warning") if warning["code"] == "system_memory"]


def test_slow_steps_with_full_memory_are_named_once_with_the_remedy() -> None:
    (why,) = warnings_after([0.5] * WARM_UP + [SLOW] * 3 * COUNT)
    assert "Sysmem" in why
    assert "Lower the batch size." in why


@pytest.mark.parametrize(
    ("steps", "free"),
    [
        ([SLOW] * 20, 0.5),
        ([0.9 * FACTOR] * 20, 0.01),
        ([100.0] * WARM_UP + [0.5] * 20, 0.01),
        ([0.5, 0.5, 0.5, 100.0, 0.5, 0.5, 100.0] * 3, 0.01),
        ([SLOW] * (WARM_UP + COUNT - 1), 0.01),
    ],
    ids=["memory is free", "not much slower", "slow warm-up", "slow now and then", "too few steps"],
)
def test_other_slow_steps_are_not(steps: list[float], free: float) -> None:
    assert warnings_after(steps, free) == []


def test_a_gpu_is_watched_with_its_plan_and_a_cpu_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    job, events = make_job("SDXL 1.0", Path("data"), resolution=1024, bucket_reso_steps=64), Events()
    add = watch_system_memory(job, torch.device("cpu"), ignore)
    for _ in range(20):
        add(1e6)
    memory = SimpleNamespace(free=0)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "RTX 3060")
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (memory.free, 12 * 2**30))
    add = watch_system_memory(job, torch.device("cuda"), append_to(events))
    for _ in range(20):
        add(200.0)
    (warning,) = of(events, "warning")
    assert saving_advice(job.recipe) in warning["why"]
