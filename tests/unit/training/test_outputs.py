"""When a run writes its resume states, and what it leaves when it stops by itself."""

from __future__ import annotations

from pathlib import Path

import pytest

from lora_studio.planning.automatic_stop import AutomaticStop
from lora_studio.planning.loss_record import LossRecord
from lora_studio.training import outputs
from lora_studio.training.resume_state import ResumeState, save_state
from lora_studio.workspace.project import Home
from tests.support.events import of
from tests.support.training_runs import make_images, make_job, train_into


@pytest.mark.slow
@pytest.mark.parametrize(
    ("interval", "saved"),
    [(0.0, [(1, 1), (2, 2), (3, 3)]), (120.0, [(2, 2), (3, 3)])],
    ids=["epochs longer than the interval", "short epochs"],
)
def test_short_epochs_share_a_resume_state(
    training_inputs: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    interval: float,
    saved: list[tuple[int, int]],
) -> None:
    """A state is saved at a stop and at the end in any case."""
    states: list[tuple[int, int]] = []

    def recorded(folder: Path, state: ResumeState) -> Path:
        states.append((state.progress.step, state.progress.epochs_finished))
        return save_state(folder, state)

    monkeypatch.setattr(outputs, "save_state", recorded)
    monkeypatch.setattr(outputs, "EPOCH_STATE_INTERVAL", interval)
    home = Home(training_inputs / "home")
    images = make_images(tmp_path / "images", [(64, 64)])
    job = make_job(training_inputs / "base", images, epochs=3)  # of one step
    train_into(job, tmp_path / "run", home, stop_after=2)
    train_into(job, tmp_path / "run", home, resume=True)
    assert states == saved


@pytest.mark.slow
@pytest.mark.parametrize(
    ("lowest", "result", "saved"),
    [(2, "ink-000002.safetensors", []), (None, "ink-step00000003.safetensors", ["ink-step00000003.safetensors"])],
    ids=["rise", "plateau"],
)
def test_a_run_that_stops_by_itself_has_a_result_and_is_resumed_to_its_end(
    training_inputs: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    lowest: int | None,
    result: str,
    saved: list[str],
) -> None:
    """After a rise the result is the checkpoint before it, which `keep_checkpoints` must not delete."""

    def stop_at_three(record: LossRecord, recipe: object, *, ignored: set[str]) -> AutomaticStop | None:
        if len(record.losses) < 3 or "rise" in ignored:
            return None
        return AutomaticStop(code="rise", step=len(record.losses), message="It stops.", lowest=lowest)

    monkeypatch.setattr(outputs, "automatic_stop", stop_at_three)
    home, run = Home(training_inputs / "home"), tmp_path / "run"
    images = make_images(tmp_path / "images", [(64, 64)])
    job = make_job(training_inputs / "base", images, epochs=4, save_every_n_epochs=2, keep_checkpoints=1)
    stopped, _ = train_into(job, run, home)
    assert stopped.automatic_stop is not None
    assert (stopped.stopped, stopped.steps, stopped.automatic_stop.step) == (True, 3, 3)
    assert stopped.lora == run / "checkpoints" / result
    assert stopped.lora.is_file()
    assert [path.name for path in run.glob("checkpoints/ink-step*")] == saved
    resumed, events = train_into(job, run, home, resume=True)
    assert [values["step"] for values in of(events, "step")] == [4]
    assert (resumed.stopped, resumed.automatic_stop, resumed.lora) == (False, None, run / "ink.safetensors")
