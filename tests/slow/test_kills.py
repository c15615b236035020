"""A run killed at any moment, also while it writes a file, and resumed has the same weights, files and events."""

from __future__ import annotations

import random
import signal
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from lora_studio.training.resume_state import load_state
from lora_studio.workspace.job_folder import JobFolder, JobState
from lora_studio.workspace.project import Home
from tests.support.forked import die_in_write, events_of, start_worker, wait_for, without_times
from tests.support.kills import kill_count
from tests.support.tiny_sdxl import save_tiny_sdxl
from tests.support.training_runs import make_images, make_job, same

pytestmark = pytest.mark.slow

KILLS = 25  # three in five after a random time, the others while a random file is written
SEED = 4


def save_at_every_step() -> None:
    from lora_studio.training import outputs

    outputs.STATE_INTERVAL = outputs.EPOCH_STATE_INTERVAL = 0.0


def save_at_every_step_and_die(number: int) -> None:
    save_at_every_step()
    die_in_write(number)


def contents(folder: JobFolder) -> dict[str, Any]:
    """Return everything that a run wrote: LoRA files, samples, the last state, the events."""
    state = load_state(folder.path / "checkpoints" / "state", on_damage=pytest.fail)
    assert state is not None
    loras = {
        path.name: load_file(path) for path in sorted(folder.path.rglob("*.safetensors")) if "state" not in str(path)
    }
    samples = {path.name: path.read_bytes() for path in sorted((folder.path / "samples").iterdir())}
    return {
        "loras": loras,
        "samples": samples,
        "progress": state.progress.model_copy(update={"started": 0.0}).to_dict(),
        "run": (state.dataset, state.steps_per_epoch, state.processes),
        "weights": state.weights,
        "optimizer": state.optimizer,
        "events": without_times(folder),
    }


def equal(first: Any, second: Any) -> bool:
    """Return True if nested values are equal, tensors bit for bit."""
    if isinstance(first, torch.Tensor):
        return torch.equal(first, second)
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(equal(first[key], second[key]) for key in first)
    if isinstance(first, list | tuple):
        return len(first) == len(second) and all(map(equal, first, second))
    return bool(first == second)


def test_a_killed_run_resumes_to_the_same_result(tmp_path: Path) -> None:
    base = save_tiny_sdxl(tmp_path / "base", layers=1)
    images = make_images(tmp_path / "images", [(64, 64), (32, 64), (64, 64)])
    recipe = {"noise_offset": 0.05, "epochs": 2, "batch_size": 1, "keep_checkpoints": 1, "lr_warmup_steps": 2}
    job = make_job(base, images, **recipe, sample_every_n_epochs=2, sample_steps=1)
    home = Home(tmp_path / "home")

    def run(folder: JobFolder, **options: Any) -> int | None:
        process = start_worker(folder, home, **{"prepare": save_at_every_step} | options)
        process.join()
        return process.exitcode

    whole = JobFolder.create(tmp_path / "whole", job)
    assert run(whole) == 0, whole.log_tail()
    expected = contents(whole)
    assert len(expected["events"]) == len(set(expected["events"]))
    lasted = events_of(whole, "done")[0]["time"] - events_of(whole, "start")[0]["time"]

    def killed(folder: JobFolder, delay: float) -> bool:
        process = start_worker(folder, home, prepare=save_at_every_step)
        wait_for(lambda: bool(events_of(folder, "start")) or not process.is_alive())
        time.sleep(delay)
        process.kill()
        process.join()
        return process.exitcode == -signal.SIGKILL

    source = random.Random(SEED)
    kills = kill_count(KILLS)
    for number in range(kills):
        folder = JobFolder.create(tmp_path / f"run {number}", job)
        moment = source.random()
        if number < kills * 3 // 5:
            delay = moment * 0.8 * lasted
            while not killed(folder, delay):  # the run ended before the kill
                delay /= 2
                folder = JobFolder.create(tmp_path / f"run {number}, {delay:.3f}", job)
        else:
            died = run(folder, prepare=partial(save_at_every_step_and_die, 7 + int(moment * 22)))
            assert died == -signal.SIGKILL
        where = f"kill {number} (seed {SEED}) after step {folder.status().done}"
        assert folder.status().state is JobState.FAILED or folder.result() is not None, where
        assert run(folder, resume=True) == 0, f"{where}: {folder.log_tail()}"
        found = contents(folder)
        for part, value in expected.items():
            assert equal(found[part], value), f"{where}: {part} differ"
        assert same(load_file(folder.path / "ink.safetensors"), load_file(whole.path / "ink.safetensors"))
        assert folder.status().state is JobState.DONE
        left = [path.name for path in folder.path.rglob("*") if ".tmp" in path.name or path.suffix == ".partial"]
        assert not left, where
