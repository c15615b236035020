"""The charts of a run have its events' figures, and marks at what happened."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from lora_studio.events import (
    BaseLossEvent,
    EventAtStep,
    HintEvent,
    ResumeEvent,
    SampleEvent,
    ValidationEvent,
)
from lora_studio.ui.state.run_history import RunHistories, RunView
from lora_studio.ui.train.plots import run_charts
from lora_studio.workspace.job_folder import JobFolder
from lora_studio.workspace.project import Home
from tests.support.charts import charts_in, marks_of, points_of
from tests.support.events import step_event
from tests.support.jobs import make_project, make_run


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path / "home")


@pytest.fixture
def run(home: Home) -> JobFolder:
    """Create a run of 8 steps in 2 epochs, without the events of its steps."""
    folder = make_run(make_project(home))
    folder.drop_events(lambda event, number: isinstance(event, EventAtStep))
    return folder


def drawn(run: JobFolder, home: Home) -> dict[str, dict[str, Any]]:
    return charts_in(run_charts(RunView.load(run, RunHistories()), home))


def test_values_of_the_steps_are_curves(run: JobFolder, home: Home) -> None:
    run.emit(BaseLossEvent(loss=0.2, timesteps=[0, 999], losses=[0.4, 0.1], evaluations=24))
    for step in range(1, 9):
        norms = {"mean_weight_norm": step / 10, "max_weight_norm": step / 5} if step % 2 == 0 else {}
        rates = {"lr": step * 1e-4, "text_encoder_lr": 0.0, "text_encoder_lr2": 1e-5}
        event = step_event(step, loss=1 / step, relative_loss=0.5, gradient_norm=step, total=8, **rates, **norms)
        run.emit(event)
    charts = drawn(run, home)
    assert points_of(charts["Loss"], "each step") == [(step, pytest.approx(1 / step, rel=1e-5)) for step in range(1, 9)]
    assert points_of(charts["Loss"], "smoothed")[-1] == (8, pytest.approx(0.1))
    assert points_of(charts["Loss"], "smoothed / base")[-1] == (8, pytest.approx(0.5))
    assert points_of(charts["Learning rate"], "UNet")[1] == (2, pytest.approx(2e-4))
    assert [series["name"] for series in charts["Learning rate"]["series"]] == ["UNet", "second text encoder"]
    assert points_of(charts["Gradient norm"], "each step")[2] == (3, 3)
    assert points_of(charts["Weight norm"], "mean of the layers") == [(2, 0.2), (4, 0.4), (6, 0.6), (8, 0.8)]
    assert points_of(charts["Weight norm"], "largest layer")[-1] == (8, 1.6)
    over_steps = [charts[title] for title in ("Loss", "Learning rate", "Gradient norm", "Weight norm")]
    assert len({chart["group"] for chart in over_steps}) == 1
    assert all(chart["x"]["domain"] == [0, 8] for chart in over_steps)


def test_a_run_without_norms_has_no_charts_of_them(run: JobFolder, home: Home) -> None:
    run.emit(step_event(1, loss=0.5, total=8))
    assert list(drawn(run, home)) == ["Loss", "Learning rate"]


def test_checkpoints_resumes_verdicts_and_the_best_validation_are_marked(home: Home) -> None:
    run = make_run(make_project(home))
    for step, loss in ((0, 0.1), (4, 0.3), (8, 0.2)):
        run.emit(ValidationEvent(step=step, epoch=0, loss=loss))
    run.emit(HintEvent(code="healthy", message="Healthy", why=""))
    run.emit(HintEvent(about="recipe", code="schedule_free", message="On the recipe", why=""))
    found = drawn(run, home)["Loss"]
    assert marks_of(found) == {"checkpoint": [4, 8], "best": [8], "verdict": [8]}
    assert [mark["y"] for mark in found["marks"] if mark["kind"] == "best"] == [0.2]
    (run.path / "checkpoints" / "ink-000001.safetensors").unlink()
    run.emit(ResumeEvent(step=6))
    assert marks_of(drawn(run, home)["Loss"]) == {"checkpoint": [8], "best": [4], "resume": [6]}


def test_the_first_prompt_s_samples_are_shown(home: Home) -> None:
    run = make_run(make_project(home))
    (run.path / "samples").mkdir()
    for step, index in ((0, 0), (4, 0), (4, 1), (8, 0)):
        path = f"samples/{step}-{index}.png"
        if step < 8:
            Image.new("RGB", (16, 16), (step, index, 0)).save(run.path / path)
        run.emit(SampleEvent(step=step, epoch=None, index=index, prompt="a", seed=1, path=path))
    samples = drawn(run, home)["Loss"]["samples"]
    assert [sample["x"] for sample in samples] == [0, 4]
    assert len({sample["url"] for sample in samples}) == 2
