from __future__ import annotations

import pytest
import torch

from lora_studio.errors import InputError
from lora_studio.settings.choices import Optimizer, Precision
from lora_studio.settings.recipe import Recipe
from lora_studio.training import probes

CPU = torch.device("cpu")


def test_the_cpu_is_listed_last() -> None:
    assert probes.list_devices()[-1] == CPU
    assert probes.gpu_memory(CPU) is None


@pytest.mark.parametrize(("best", "used"), [("cpu", ["cpu"]), ("cuda", ["cuda:0"]), ("mps", ["mps"])])
def test_jobs_use_the_first_of_the_best_kind_of_device(
    monkeypatch: pytest.MonkeyPatch, best: str, used: list[str]
) -> None:
    monkeypatch.setattr(probes, "torch_device", lambda: torch.device(best))
    devices = ["cuda:0", "cuda:1", "mps", "cpu"]
    assert [name for name in devices if probes.is_used(torch.device(name))] == used


def test_a_cpu_trains_in_fp32_and_bf16() -> None:
    assert probes.try_precisions(CPU) == {"fp32": "", "bf16": ""}


def test_a_step_that_gives_nan_or_changes_nothing_does_not_work(monkeypatch: pytest.MonkeyPatch) -> None:
    for broken in (torch.nan, 0.0):
        monkeypatch.setattr(torch.optim.AdamW, "step", lambda self, value=broken: _scale_step(self, value))
        assert probes.try_precisions(CPU)[Precision.FP32] != ""


def _scale_step(optimizer: torch.optim.Optimizer, factor: float) -> None:
    for group in optimizer.param_groups:
        for weight in group["params"]:
            weight.data.add_(weight.grad, alpha=factor)


@pytest.mark.parametrize(
    "error", [InputError("AdamW does not work.", "Choose another."), RuntimeError("CUDA error: x\nmore"), KeyError()]
)
def test_the_error_of_one_optimizer_does_not_hide_the_others(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def check(recipe: Recipe, device: torch.device) -> None:
        if recipe.optimizer is Optimizer.ADAMW:
            raise error

    monkeypatch.setattr(probes, "check_optimizer", check)
    results = probes.try_optimizers(CPU)
    assert set(results) == set(Optimizer)
    assert [name for name, message in results.items() if message] == [Optimizer.ADAMW]
    assert results[Optimizer.ADAMW].splitlines()[0] in (
        "AdamW does not work.",
        "RuntimeError: CUDA error: x",
        "KeyError",
    )
