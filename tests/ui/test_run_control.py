"""Train: save now, continue for more epochs, and restart with less memory."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from lora_studio.events import CheckpointEvent
from lora_studio.files import write_json
from lora_studio.ui.train.control import RunControl
from lora_studio.ui.train.extend import USE_FILE
from lora_studio.ui.train.tab import TrainTab
from lora_studio.workspace.job_folder import JobFolder, JobState
from lora_studio.workspace.project import Home, Project
from tests.support.interface import Interface, error_code
from tests.support.jobs import LORA, make_project, make_run, running_status

Started = list[tuple[JobFolder, bool]]


@pytest.fixture
def project(home: Home) -> Project:
    return make_project(home)


def save_state(folder: JobFolder, step: int, steps_per_epoch: int = 4) -> Path:
    """Write a training state of which only the manifest is read here."""
    state = folder.path / "checkpoints" / "state" / f"{step:08d}-{step // steps_per_epoch:05d}"
    for name in ("lora.safetensors", "optimizer.pt"):
        (state / name).parent.mkdir(parents=True, exist_ok=True)
        (state / name).write_bytes(b"tensors")
    write_json(state / "state.json", {"version": 2, "progress": {"step": step}, "steps_per_epoch": steps_per_epoch})
    return state


def test_a_finished_run_continues_as_a_new_run(project: Project, interface: Interface, started: Started) -> None:
    folder = make_run(project)
    assert "train_continue_note" not in interface.open_project("ink")  # it has no saved state
    save_state(folder, 8)
    shown = interface.call(TrainTab.select_run, pick=folder.name)
    assert "2 epochs" in shown["train_continue_note"]
    shown = interface.call(RunControl.continue_run, train_more_epochs=3)
    [(new, resume)] = started
    assert (new.name, resume, shown["run"]) == ("002-ink", True, "002-ink")
    job: Any = new.job()
    assert (job.recipe.epochs, job.parent, job.continues) == (5, folder.path, True)
    [manifest] = new.path.glob("checkpoints/state/*/state.json")
    assert json.loads(manifest.read_text("utf-8"))["progress"] == {"step": 8, "continued": {"step": 8}}


@pytest.mark.parametrize("epochs", [None, 0, 2.5])
def test_a_wrong_number_of_epochs_creates_nothing(
    project: Project, interface: Interface, started: Started, epochs: float | None
) -> None:
    save_state(make_run(project), 8)
    interface.open_project("ink")
    shown = interface.call(RunControl.continue_run, train_more_epochs=epochs)
    assert error_code(shown["train_notice"]) == "epochs"
    assert len(project.runs()) == len(list((project.path / "runs").iterdir())) == 1
    assert not started


def test_a_running_training_is_asked_to_save(project: Project, interface: Interface) -> None:
    folder = make_run(project, final=False, **running_status())
    assert interface.open_project("ink")["train_save"]["interactive"]
    shown = interface.call(RunControl.save_now)
    assert folder.save_requested()
    assert not shown["train_save"]["interactive"]
    folder.clear_save_request()
    assert interface.call(TrainTab.tick)["train_save"]["interactive"]
    folder.update_status(state=JobState.DONE)
    assert interface.call(TrainTab.tick)["train_save"] == {"visible": False}
    assert error_code(interface.call(RunControl.save_now)["train_notice"]) == "not_running"


def test_checkpoints_are_listed_with_those_saved_by_hand(project: Project, interface: Interface) -> None:
    folder = make_run(project)
    saved = folder.path / "checkpoints" / "ink-step00000003-saved.safetensors"
    saved.touch()
    for name in (saved.name, "gone.safetensors"):
        folder.emit(CheckpointEvent(step=3, epoch=None, path=f"checkpoints/{name}"))
    film = interface.open_project("ink")["train_film"]
    assert saved.name in film
    assert "ink-000002.safetensors" in film
    assert "gone" not in film


def test_after_out_of_memory_the_next_rung_is_one_click_away(
    project: Project, interface: Interface, started: Started
) -> None:
    folder = make_run(project, final=False, state=JobState.FAILED, code="out_of_memory")
    first: Any = folder.job()
    shown = interface.open_project("ink")
    assert "batch size to 1" in shown["train_restart"]["value"]
    interface.call(RunControl.restart_smaller)
    [(new, resume)] = started
    job: Any = new.job()
    assert not resume
    assert job.parent == folder.path
    assert (job.recipe.batch_size, job.recipe.gradient_accumulation_steps) == (1, first.recipe.batch_size)
    changed = {name for name, value in job.recipe.model_dump().items() if getattr(first.recipe, name) != value}
    assert changed == {"batch_size", "gradient_accumulation_steps"}


def test_another_failure_offers_no_restart(project: Project, interface: Interface) -> None:
    make_run(project, final=False, state=JobState.FAILED, code="nan")
    assert "train_restart" not in interface.open_project("ink")


def test_the_settings_of_a_lora_to_start_from_are_offered(
    project: Project, interface: Interface, started: Started, tmp_path: Path
) -> None:
    interface.open_project("ink")
    shown = interface.call(TrainTab.offer_file_settings, train_network_weights=str(LORA))
    assert "dim 8, alpha 4" in shown["train_file_offer"]
    assert error_code(interface.call(TrainTab.start_training)["train_notice"]) == "config"
    assert not started
    shown = interface.call(TrainTab.use_file_settings, pick=USE_FILE)
    assert (shown["recipe_network_dim"]["value"], shown["recipe_network_alpha"]["value"]) == ("8", "4")
    assert USE_FILE not in shown["train_file_offer"].split('"')
    interface.call(TrainTab.start_training)
    [(folder, _)] = started
    job: Any = folder.job()
    assert (job.network_weights, job.recipe.network_dim) == (LORA, 8)
    refused = interface.call(TrainTab.offer_file_settings, train_network_weights=str(tmp_path / "none.safetensors"))
    assert error_code(refused["train_notice"]) == "lora_missing"
