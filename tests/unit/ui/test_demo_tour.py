"""The guided tour follows what was done in the example project."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lora_studio.example import EXAMPLE_NAME
from lora_studio.settings.job_specs import SweepJob, TagJob, TrainJob
from lora_studio.ui.demo_tour import CURATE, DONE, DRAW, TAG, TEST, TRAIN, WATCH, tour_card, tour_step
from lora_studio.workspace.job_folder import JobFolder, JobState
from lora_studio.workspace.project import Home
from tests.support.jobs import running_status


def job(path: Path, spec: Any, **status: Any) -> JobFolder:
    folder = JobFolder.create(path, spec)
    folder.update_status(**(status or {"state": JobState.DONE}))
    return folder


def test_the_tour_leads_through_all_steps(home: Home) -> None:
    project = home.create_project(EXAMPLE_NAME)
    assert tour_step(project) == CURATE
    project.rejected_dir.mkdir()
    (project.rejected_dir / "guitar-mirrored.png").touch()
    assert tour_step(project) == TAG
    job(project.new_tag_dir(), TagJob(dataset=project.dataset_dir, tagger="demo"))
    assert tour_step(project) == TRAIN
    spec = TrainJob.parse({"name": "a", "dataset": project.dataset_dir, "base": "embedded"})
    run = job(project.new_run_dir("a"), spec, **running_status())
    assert tour_step(project) == WATCH
    run.update_status(state=JobState.DONE)
    assert tour_step(project) == TEST
    test = SweepJob.parse({"loras": [run.path / "a.safetensors"], "bases": ["embedded"], "prompts": ["x"]})
    sweep = job(project.new_sweep_dir(), test, **running_status())
    assert tour_step(project) == DRAW
    sweep.update_status(state=JobState.DONE)
    assert tour_step(project) == DONE


def test_other_projects_have_no_tour(home: Home) -> None:
    assert tour_card(None) == ""
    assert tour_card(home.create_project("my-lora")) == ""
    assert "#curate-apply" in tour_card(home.create_project(f"{EXAMPLE_NAME} 2"))
