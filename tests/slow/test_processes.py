"""Data-parallel training with two processes on a CPU: the launcher, a stop, and the death of one process."""

from __future__ import annotations

import itertools
import os
import signal
import socket
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from lora_studio import worker
from lora_studio.settings.job_specs import TrainJob
from lora_studio.training.batch_loss import BatchLoss
from lora_studio.training.data.batch import BatchTensors
from lora_studio.workspace.job_folder import JobFolder, JobState
from lora_studio.workspace.project import Home
from tests.support.forked import events_of, start_worker, wait_for
from tests.support.tiny_sdxl import save_tiny_sdxl
from tests.support.training_runs import make_images, make_job, train_into

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shared")
    make_images(folder / "images", [(64, 64), (32, 64), (64, 64), (64, 64)])
    save_tiny_sdxl(folder / "base", layers=1)
    return folder


def job_for(shared: Path, processes: int, batch_size: int, **recipe: Any) -> TrainJob:
    """Three images of one size and one of another: with a batch of two, one rank has an empty shard in some steps."""
    rates = {"text_encoder_lr": [5e-4, 1e-4], "loraplus_unet_lr_ratio": 2, "stop_text_encoder_training": 0.5}
    recipe = {**rates, "noise_offset": 0.05, "weight_decay": 0.1, "lr_warmup_steps": 1} | recipe
    job = make_job(shared / "base", shared / "images", batch_size=batch_size, **recipe)
    return job.model_copy(update={"num_processes": processes})


def run_out_of_memory_once() -> None:
    """Let the second rank run out of memory at its third forward pass."""
    compute, calls = BatchLoss.__call__, itertools.count(1)

    def limited(batch_loss: BatchLoss, batch: BatchTensors) -> torch.Tensor:
        if os.environ["RANK"] == "1" and next(calls) == 3:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return compute(batch_loss, batch)

    BatchLoss.__call__ = limited  # type: ignore[method-assign]


def start_two(
    folder: JobFolder, home: Home, *, resume: bool = False, prepare: Callable[[], None] | None = None
) -> list[BaseProcess]:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    meeting = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    return [
        start_worker(folder, home, resume=resume, prepare=prepare, RANK=str(rank), LOCAL_RANK=str(rank), **meeting)
        for rank in (0, 1)
    ]


def test_two_processes_equal_one_with_twice_the_batch_size(shared: Path, tmp_path: Path) -> None:
    home = Home(shared / "home")
    folder = JobFolder.create(tmp_path / "two", job_for(shared, 2, 1, save_every_n_epochs=2))
    worker.start(folder, home)
    _, alone = train_into(job_for(shared, 1, 2, save_every_n_epochs=2), tmp_path / "one", home)
    wait_for(lambda: not folder.status().state.is_active, 500)
    assert folder.status().state is JobState.DONE, folder.log_tail()
    expected = [values["loss"] for kind, values in alone if kind == "step"]
    assert [event["loss"] for event in events_of(folder, "step")] == pytest.approx(expected, rel=1e-5)
    assert events_of(folder, "start")[0]["device"].startswith("2 x CPU")
    assert (
        len(events_of(folder, "start")) == len(events_of(folder, "done")) == len(events_of(folder, "checkpoint")) == 1
    )
    one, two = (load_file(tmp_path / name / "ink.safetensors") for name in ("one", "two"))
    assert one.keys() == two.keys()
    for name, weight in one.items():
        assert torch.allclose(two[name].float(), weight.float(), rtol=1e-3, atol=2e-5), name
    with safe_open(folder.path / "ink.safetensors", "pt") as file:
        assert file.metadata()["ss_batch_size_per_device"] == "1"
        assert file.metadata()["ss_total_batch_size"] == "2"


def test_a_stop_or_a_dead_process_ends_all_and_the_run_can_be_resumed(shared: Path, tmp_path: Path) -> None:
    """A stop, then the death of the second process, then the end; steps are neither lost nor repeated."""
    home = Home(shared / "home")
    folder, whole = (JobFolder.create(tmp_path / name, job_for(shared, 2, 1, epochs=40)) for name in ("parts", "whole"))
    job = folder.job_file.read_text("utf-8")
    processes = start_two(folder, home)
    wait_for(lambda: len(events_of(folder, "step")) >= 2)
    folder.request_stop()
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    assert folder.status().state is JobState.STOPPED

    processes = start_two(folder, home, resume=True)
    reached = events_of(folder, "step")[-1]["step"]
    wait_for(lambda: events_of(folder, "step")[-1]["step"] > reached)
    os.kill(processes[1].pid or 0, signal.SIGKILL)
    for process in processes:
        process.join(60)
        assert process.exitcode not in (0, None)
    assert folder.status().state is JobState.FAILED
    assert events_of(folder, "failed")[-1]["code"] == "process_lost"

    end = events_of(folder, "step")[-1]["step"] + 3
    for path in (folder, whole):
        path.job_file.write_text(job.replace("epochs = 40", f"epochs = 40\nmax_train_steps = {end}"), "utf-8")
        for process in start_two(path, home, resume=path is folder):
            process.join(180)
            assert process.exitcode == 0, path.log_tail()
    assert [event["step"] for event in events_of(folder, "step")] == list(range(1, end + 1))


def test_resuming_with_another_number_of_processes_is_an_error(shared: Path, tmp_path: Path) -> None:
    home = Home(shared / "home")
    folder = JobFolder.create(tmp_path / "run", job_for(shared, 1, 1, max_train_steps=1))
    for process in start_two(folder, home):
        process.join(180)
        assert process.exitcode == 0, folder.log_tail()
    process = start_worker(folder, home, resume=True)
    process.join(180)
    assert process.exitcode == 2
    assert events_of(folder, "failed")[-1]["code"] == "resume_processes"
    assert "num_processes to 2" in folder.status().remedy


def test_both_processes_go_on_after_one_runs_out_of_memory(shared: Path, tmp_path: Path) -> None:
    """The step is computed again by both, so that no loss changes; the other rank reports it."""
    home, losses = Home(shared / "home"), []
    for name, prepare in (("whole", None), ("short", run_out_of_memory_once)):
        folder = JobFolder.create(tmp_path / name, job_for(shared, 2, 2, gradient_checkpointing="auto"))
        for process in start_two(folder, home, prepare=prepare):
            process.join(180)
            assert process.exitcode == 0, folder.log_tail()
        losses.append([event["loss"] for event in events_of(folder, "step")])
        warnings = [event["code"] for event in events_of(folder, "warning") if event["code"] == "memory_short"]
        assert warnings == (["memory_short"] if prepare else [])
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)
