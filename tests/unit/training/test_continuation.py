"""A run that is continued for more epochs: a new run with the state, losses and samples of the other one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from lora_studio.errors import InputError
from lora_studio.events import SampleEvent, StepEvent
from lora_studio.settings.job_specs import TrainJob
from lora_studio.training.continuation import continue_run, epochs_of
from lora_studio.training.progress import Progress
from lora_studio.training.resume_state import ResumeState, load_state, save_state
from lora_studio.workspace.job_folder import JobFolder, JobState, JobStatus
from tests.support.jobs import running_status


@pytest.fixture
def source(tmp_path: Path) -> JobFolder:
    """Return a finished run of 2 epochs of 4 steps."""
    recipe = {"epochs": 2, "stop_text_encoder_training": 0.5, "token_warmup_step": 0.25, "max_train_steps": 8}
    job = TrainJob.parse({"name": "ink", "dataset": tmp_path, "base": "x", "recipe": recipe})
    folder = JobFolder.create(tmp_path / "001-ink", job)
    folder.emit(StepEvent(step=8, total=8, epoch=2, loss=0.5, lr=1e-4))
    folder.emit(SampleEvent(step=8, epoch=2, index=0, prompt="a", seed=1, path="samples/a.png"))
    for name in (
        "samples/a.png",
        "checkpoints/ink-000002.safetensors",
        "ink.safetensors",
        "dataset.jsonl",
        "notes.json",
    ):
        (folder.path / name).parent.mkdir(exist_ok=True)
        (folder.path / name).write_bytes(name.encode())
    progress = Progress(step=8, epochs_finished=2, losses=[0.5] * 8)
    state = ResumeState(progress, "images", 4, 1, folder.sync_events(), {}, {})
    save_state(folder.path / "checkpoints" / "state", state)
    folder.write_result({"lora": "ink.safetensors"})
    folder.set_status(JobStatus(state=JobState.DONE, done=8, total=8))
    return folder


def state_of(folder: JobFolder) -> ResumeState:
    damage: list[str] = []
    state = load_state(folder.path / "checkpoints" / "state", on_damage=damage.append)
    assert state is not None
    assert not damage
    return state


def test_the_new_run_begins_with_the_state_of_the_other(source: JobFolder, tmp_path: Path) -> None:
    before = {path: path.read_bytes() for path in source.path.rglob("*") if path.is_file()}
    folder = continue_run(source, tmp_path / "002-ink", 3)
    job: Any = folder.job()
    assert (job.recipe.epochs, job.recipe.max_train_steps, job.parent, job.continues) == (5, None, source.path, True)
    assert folder.status().state is JobState.CREATED
    assert folder.result() is None
    progress = state_of(folder).progress
    assert (progress.step, progress.losses) == (8, [0.5] * 8)
    assert progress.continued is not None
    assert (progress.continued.step, progress.continued.factor) == (8, None)
    assert [event.name for event in folder.events()[0]] == ["step", "sample"]
    assert (folder.path / "samples" / "a.png").read_bytes() == b"samples/a.png"
    assert (folder.path / "checkpoints" / "ink-000002.safetensors").is_file()
    assert not (folder.path / "ink.safetensors").exists() | (folder.path / "notes.json").exists()
    folder.emit(StepEvent(step=9, total=20, epoch=3, loss=0.4, lr=1e-4))
    save_state(folder.path / "checkpoints" / "state", state_of(folder))
    assert {path: path.read_bytes() for path in source.path.rglob("*") if path.is_file()} == before


def test_shares_of_the_run_stay_the_steps_that_they_were(source: JobFolder, tmp_path: Path) -> None:
    job: Any = continue_run(source, tmp_path / "002-ink", 3).job()
    assert (job.recipe.stop_text_encoder_training, job.recipe.token_warmup_step) == (4, 2)


def test_a_run_stopped_within_an_epoch_trains_that_epoch_and_more(source: JobFolder, tmp_path: Path) -> None:
    state = state_of(source)
    state.progress.step, state.progress.epochs_finished = 13, 3
    save_state(source.path / "checkpoints" / "state", state)
    assert epochs_of(source) == 4
    job: Any = continue_run(source, tmp_path / "002-ink", 2).job()
    assert job.recipe.epochs == 6


def test_a_run_that_cannot_be_continued_is_refused(source: JobFolder, tmp_path: Path) -> None:
    def code(more_epochs: int = 1) -> str:
        with pytest.raises(InputError) as caught:
            continue_run(source, tmp_path / "002-ink", more_epochs)
        assert not (tmp_path / "002-ink").exists()
        return caught.value.code

    assert code(0) == "epochs"
    assert code(10_000) == "config"
    source.set_status(JobStatus(**running_status()))
    assert code() == "busy"
    source.set_status(JobStatus(state=JobState.STOPPED))
    manifest = next(source.path.glob("checkpoints/state/*/state.json"))
    manifest.write_text(json.dumps({"version": 1}), "utf-8")
    assert code() == "no_state"
    assert epochs_of(source) is None
