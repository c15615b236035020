"""The history of a run: events are read incrementally, and a resume drops the steps that it repeats."""

from __future__ import annotations

from pathlib import Path

import pytest

from lora_studio.errors import InputError
from lora_studio.events import (
    BaseLossEvent,
    CheckpointEvent,
    EventAtStep,
    NanEvent,
    ResumeEvent,
    StoppedEvent,
    ValidationEvent,
)
from lora_studio.ui.state.run_history import RunHistories, RunView, run_named
from lora_studio.workspace.project import Home, Project
from tests.support.events import step_event
from tests.support.jobs import make_project, make_run, make_sweep


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return make_project(Home(tmp_path / "home"))


def test_new_events_are_added(project: Project) -> None:
    folder = make_run(project)
    histories = RunHistories()
    history = histories.history(folder)
    assert history.last_step == folder.events()[0][-2]
    folder.emit(step_event(9, total=10, epoch=2, loss=0.5, lr=1e-4, seconds=0.5))
    folder.emit(NanEvent(step=10, total=10, epoch=2))
    folder.emit(ValidationEvent(step=9, epoch=2, loss=0.25))
    assert histories.history(folder) is history
    steps, losses, smoothed = history.loss_curve()
    assert (steps[-2:], losses[-2:]) == ([9, 10], [0.5, None])
    assert len(smoothed) == 10
    assert history.last_step.step == 9
    assert history.validation_losses == {9: 0.25}


def test_a_resume_drops_later_steps(project: Project) -> None:
    folder = make_run(project)
    folder.emit(ValidationEvent(step=8, epoch=2, loss=0.25))
    folder.emit(ResumeEvent(step=4))
    folder.emit(step_event(5, total=8, epoch=2, loss=0.125, lr=1e-4, seconds=0.5))
    history = RunHistories().history(folder)
    assert list(history.losses) == [1, 2, 3, 4, 5]
    assert history.losses[5] == 0.125
    assert history.validation_losses == {}


def test_the_lora_of_a_run_that_stopped_by_itself_is_its_result_until_it_is_resumed(project: Project) -> None:
    folder = make_run(project, final=False)
    folder.emit(StoppedEvent(message="It stopped.", code="rise", path="checkpoints/ink-000001.safetensors"))
    lora = RunView.load(folder, RunHistories()).lora
    assert lora is not None
    assert lora.name == "ink-000001.safetensors"
    folder.emit(ResumeEvent(step=8))
    lora = RunView.load(folder, RunHistories()).lora
    assert lora is not None
    assert lora.name == "ink-000002.safetensors"


def test_the_curves_are_on_the_scale_of_the_base_s_loss(project: Project) -> None:
    """The smoothed curve has no noise of timesteps: here no noise at all."""
    folder = make_run(project)
    folder.drop_events(lambda event, number: isinstance(event, EventAtStep))
    folder.emit(BaseLossEvent(loss=0.2, timesteps=[0, 999], losses=[0.4, 0.1], evaluations=24))
    for step, fixed in ((0, 0.1), (4, 0.08)):
        folder.emit(ValidationEvent(step=step, epoch=0, loss=fixed, split="training", base_loss=0.1))
    for step, loss in enumerate((0.3, 0.1, 0.2, 0.4), 1):
        folder.emit(step_event(step, loss=loss, relative_loss=0.9))
    history = RunHistories().history(folder)
    _, raw, smoothed = history.loss_curve()
    assert raw == [0.3, 0.1, 0.2, 0.4]
    assert smoothed == pytest.approx([0.18] * 4)
    assert dict(history.fixed_noise_curve()) == pytest.approx({0: 0.2, 4: 0.16})
    record = history.loss_record(folder.path)
    assert record.curve == [0.9] * 4
    assert (record.fixed, record.base, record.validates) == ({0: 0.1, 4: 0.08}, 0.1, False)


def test_only_checkpoints_that_exist_are_named(project: Project) -> None:
    folder = make_run(project)
    for step, name in ((2, "a.safetensors"), (4, "b.safetensors")):
        folder.emit(CheckpointEvent(step=step, epoch=1, path=f"checkpoints/{name}"))
    (folder.path / "checkpoints").mkdir(exist_ok=True)
    (folder.path / "checkpoints" / "b.safetensors").write_bytes(b"")
    record = RunHistories().history(folder).loss_record(folder.path)
    assert record.checkpoints.get(4) == "checkpoints/b.safetensors"
    assert "checkpoints/a.safetensors" not in record.checkpoints.values()


def test_a_replaced_log_is_read_again(project: Project) -> None:
    folder = make_run(project)
    histories = RunHistories()
    assert len(histories.history(folder).losses) == 8
    folder.drop_events(lambda event, number: isinstance(event, EventAtStep) and event.step > 2)
    assert len(histories.history(folder).losses) == 2


def test_the_lora_is_the_final_file_or_the_latest_checkpoint(project: Project) -> None:
    finished, stopped = make_run(project), make_run(project, final=False)
    stopped.emit(CheckpointEvent(step=9, epoch=3, path="../../../outside.safetensors"))
    histories = RunHistories()
    assert RunView.load(finished, histories).lora == finished.path.resolve() / "ink.safetensors"
    assert RunView.load(stopped, histories).lora == stopped.path.resolve() / "checkpoints" / "ink-000002.safetensors"


def test_verdicts_are_computed_after_new_events_only(project: Project) -> None:
    folder = make_run(project)
    histories = RunHistories()
    first = RunView.load(folder, histories).verdict
    assert RunView.load(folder, histories).verdict is first
    folder.emit(step_event(9, total=10, epoch=2, loss=0.5, lr=1e-4, seconds=0.5))
    assert RunView.load(folder, histories).verdict is not first


def test_other_jobs_are_not_runs(project: Project) -> None:
    run = make_run(project)
    sweep = make_sweep(project, [run.path / "ink.safetensors"])
    with pytest.raises(InputError) as raised:
        RunView.load(sweep, RunHistories())
    assert raised.value.code == "no_run"
    with pytest.raises(InputError) as raised:
        run_named(project, "../sweeps/001")
    assert raised.value.code == "no_run"
