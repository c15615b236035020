"""The optimizer step: operations, memory and synchronisation with the device."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path

import pytest
import torch

from lora_studio.training.step import train_step
from lora_studio.training.trainer import Trainer
from lora_studio.workspace.project import Home
from tests.support.counting import CountedOperations, HostReads
from tests.support.step_operations import count_studio
from tests.support.tiny_sdxl import save_tiny_sdxl
from tests.support.training_runs import make_images, make_job, start


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shared")
    make_images(folder / "images", [(64, 64)] * 4)
    save_tiny_sdxl(folder / "base", layers=1)
    return folder


@pytest.fixture
def trainer(shared: Path, tmp_path: Path) -> Trainer:
    job = make_job(shared / "base", shared / "images", mixed_precision="bf16", unet_lr=1e-5)
    return start(job, tmp_path, Home(shared / "home"))


@pytest.mark.slow
def test_operations_and_saved_memory_of_a_step_at_sdxls_size() -> None:
    """UNet, 1024 px, batch 1, rank 32; with peft's layers it is 10,656 operations."""
    counted = count_studio()
    assert counted.operations <= 6850
    assert counted.saved <= 5.5 * 2**30


def test_a_step_never_synchronises_and_a_nan_loss_changes_nothing(
    trainer: Trainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a GPU with AdamW: no value is read on the host before `read`, and a step with a NaN loss is skipped."""
    train_step(trainer, 0)
    trainer.__dict__["skips_nonfinite_on_gpu"] = True
    trainer.optimizer.found_inf = None
    with HostReads() as reads:
        taken = train_step(trainer, 1)
    assert reads.modules <= {"objective", "cache"}  # random numbers and cache files on the CPU
    with CountedOperations() as update:
        trainer.optimizer.step()
    assert update.total <= 5
    assert taken.read() == pytest.approx(1.0, abs=0.9)
    before = trainer.adapters.state(), deepcopy(trainer.optimizer.state_dict()["state"])
    monkeypatch.setitem(trainer.collator.__dict__, "loss_weights", torch.full((1000,), float("nan")))
    assert train_step(trainer, 1).read() is None
    for one, two in zip(before[0].values(), trainer.adapters.state().values(), strict=True):
        assert torch.equal(one, two)
    for number, values in trainer.optimizer.state_dict()["state"].items():
        assert all(torch.equal(values[name], before[1][number][name]) for name in values)
