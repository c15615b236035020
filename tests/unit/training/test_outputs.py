"""When a run writes its resume states."""

from __future__ import annotations

from pathlib import Path

import pytest

from lora_studio.training import outputs
from lora_studio.training.resume_state import ResumeState, save_state
from lora_studio.workspace.project import Home
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
