"""A training run through the worker: the content of its job folder while it runs, when stopped, and when done."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from lora_studio import api, worker
from lora_studio.errors import ConfigError, OutOfMemoryError
from lora_studio.events import Event, SampleEvent, StepEvent
from lora_studio.training.outputs import Outputs
from lora_studio.workspace.job_folder import JobFolder, JobState
from lora_studio.workspace.project import Home
from tests.support.events import records_of
from tests.support.tiny_sdxl import save_tiny_sdxl
from tests.support.training_runs import make_images, make_job, same


@pytest.mark.slow
def test_a_run_is_stopped_and_resumed_through_its_folder(tmp_path: Path, home: Home) -> None:
    base = save_tiny_sdxl(tmp_path / "base", layers=1)
    images = make_images(tmp_path / "images", [(64, 64)] * 3)
    job = make_job(base, images, sample_every_n_epochs=2, sample_steps=1, sample_prompts=["{trigger}, round"])
    whole = JobFolder.create(tmp_path / "whole", job)
    folder = JobFolder.create(tmp_path / "run", job)
    states: list[JobState] = []

    def listen(event: Event) -> None:
        states.append(folder.status().state)
        if isinstance(event, StepEvent) and event.step == 1:
            folder.request_stop()

    stopped: Any = worker.execute(folder, home=home, listen=listen)
    assert stopped.stopped
    assert JobState.RUNNING in states
    status = folder.status()
    assert (status.state, status.done, status.total) == (JobState.STOPPED, 1, 4)
    assert folder.result() is None
    assert not (folder.path / "ink.safetensors").exists()

    folder.clear_stop()
    done: Any = worker.execute(folder, home=home, resume=True)
    status = folder.status()
    assert (status.state, status.done, status.total, status.seconds_left) == (JobState.DONE, 4, 4, None)
    assert folder.result() == done.model_dump(mode="json")
    assert done.lora == folder.path / "ink.safetensors"
    assert (done.steps, done.epochs) == (4, 2)

    events = records_of(folder)
    steps = [event for event in events if event["event"] == "step"]
    assert [event["step"] for event in steps] == [1, 2, 3, 4]
    assert [event["epoch"] for event in steps] == [1, 1, 2, 2]
    assert all(event["loss"] > 0 and event["lr"] > 0 and event["seconds"] > 0 for event in steps)
    names = [event["event"] for event in events]
    assert names.count("epoch") == 2
    assert names[-2:] == ["saved", "done"]
    for event in events:
        if event["event"] in ("checkpoint", "sample", "saved"):
            assert (folder.path / event["path"]).is_file()
    (sample,) = [event for event in events if event["event"] == "sample"]
    assert sample["prompt"] == "inkstamp, round"
    means = [event["loss"] for event in events if event["event"] == "epoch"]
    assert means[0] == pytest.approx(sum(event["loss"] for event in steps[:2]) / 2)

    environment = json.loads((folder.path / "environment.json").read_text("utf-8"))
    assert environment["precision"] == "fp32"
    assert environment["seed"] == 42
    assert environment["libraries"]["torch"]

    worker.execute(whole, home=home)
    assert same(load_file(folder.path / "ink.safetensors"), load_file(whole.path / "ink.safetensors"))


def test_an_invalid_job_fails_with_all_errors_and_writes_no_results(tmp_path: Path, home: Home) -> None:
    folder = JobFolder.create(tmp_path / "run", make_job("nothing", tmp_path / "nowhere"))
    with pytest.raises(ConfigError):
        worker.execute(folder, home=home)
    status = folder.status()
    assert status.state is JobState.FAILED
    assert "nowhere" in status.message
    assert "'nothing'" in status.message
    assert {path.name for path in folder.path.iterdir()} == {"job.toml", "status.json", "events.jsonl"}


@pytest.mark.slow
def test_first_samples_that_a_stop_cut_short_are_drawn_again_after_a_resume(tmp_path: Path, home: Home) -> None:
    base = save_tiny_sdxl(tmp_path / "base", layers=1)
    images = make_images(tmp_path / "images", [(64, 64)])
    job = make_job(base, images, sample_at_first=True, sample_steps=1, sample_prompts=["a", "b"], epochs=1)
    folder = JobFolder.create(tmp_path / "run", job)

    def stop_after_the_first_sample(event: Event) -> None:
        if isinstance(event, SampleEvent):
            folder.request_samples()
            folder.request_stop()

    stopped: Any = worker.execute(folder, home=home, listen=stop_after_the_first_sample)
    assert (stopped.stopped, stopped.steps) == (True, 0)
    assert not folder.samples_requested()
    worker.execute(folder, home=home, resume=True)
    drawn = [(event["step"], event["index"]) for event in records_of(folder) if event["event"] == "sample"]
    assert drawn == [(0, 0), (0, 1)]


@pytest.mark.slow
def test_an_epoch_whose_end_failed_is_reported_once_after_a_resume(
    tmp_path: Path, home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Memory runs out during sampling, after the epoch and its checkpoint are reported."""
    base = save_tiny_sdxl(tmp_path / "base", layers=1)
    images = make_images(tmp_path / "images", [(64, 64)])
    job = make_job(base, images, sample_every_n_epochs=1, sample_steps=1, batch_size=1)
    folder = JobFolder.create(tmp_path / "run", job)
    write_samples = Outputs.write_samples

    def out_of_memory(*arguments: Any, **options: Any) -> None:
        raise MemoryError

    monkeypatch.setattr(Outputs, "write_samples", out_of_memory)
    with pytest.raises(OutOfMemoryError):
        worker.execute(folder, home=home)
    monkeypatch.setattr(Outputs, "write_samples", write_samples)
    (folder.path / "checkpoints" / ".left.tmp.safetensors").touch()
    worker.execute(folder, home=home, resume=True)
    names = [event["event"] for event in records_of(folder)]
    assert {name: names.count(name) for name in ("step", "epoch", "checkpoint", "sample", "saved", "done")} == {
        "step": 2,
        "epoch": 2,
        "checkpoint": 2,
        "sample": 2,
        "saved": 1,
        "done": 1,
    }
    assert names.count("failed") == names.count("resume") == 1
    assert not list(folder.path.rglob("*.tmp*"))


@pytest.mark.slow
def test_a_finished_run_is_continued_for_an_epoch(tmp_path: Path, home: Home) -> None:
    base = save_tiny_sdxl(tmp_path / "base", layers=1)
    job = make_job(base, make_images(tmp_path / "images", [(64, 64)] * 3), lr_scheduler="cosine")
    folder = JobFolder.create(tmp_path / "001-ink", job)
    worker.execute(folder, home=home)
    lora = (folder.path / "ink.safetensors").read_bytes()
    result = api.continue_training(folder.path, more_epochs=1, home=home)
    continued = JobFolder(tmp_path / "002-ink")
    assert (result.run, result.steps, result.epochs) == (continued.path, 6, 3)
    steps = records_of(continued, "step")
    assert [event["step"] for event in steps] == [1, 2, 3, 4, 5, 6]
    assert [event["total"] for event in steps] == [4] * 4 + [6] * 2
    assert [event["lr"] for event in steps[4:]] == pytest.approx([0.25e-3, 0.5e-3])
    assert (folder.path / "ink.safetensors").read_bytes() == lora
    assert len(records_of(continued, "saved")) == 1
