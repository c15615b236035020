"""The active jobs of a home."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from lora_studio.ui.state.jobs import Jobs
from lora_studio.workspace.job_folder import JobFolder, JobState, JobStatus
from lora_studio.workspace.project import Home
from tests.support.jobs import make_project, make_run, make_sweep, running_status


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path / "home")


def test_the_running_job_comes_before_the_queued_ones(home: Home) -> None:
    project = make_project(home)
    ended = make_run(project)
    queued = make_run(project, **{**running_status(), "state": JobState.QUEUED})
    sweep = make_sweep(project, [ended.path / "ink.safetensors"], drawn=3, **running_status())
    active = Jobs(home).active()
    assert [job.folder for job in active] == [sweep, queued]
    assert [job.kind for job in active] == ["Testing", "Training"]
    assert active[0].text == "Testing 50% · 9 s left"


def test_a_job_that_ended_is_active_again_after_a_resume(home: Home) -> None:
    folder = make_run(make_project(home), final=False, state=JobState.STOPPED)
    hour_ago = time.time() - 3600
    os.utime(folder.path / "status.json", (hour_ago, hour_ago))
    jobs = Jobs(home)
    assert [jobs.active() for _ in range(2)] == [[], []]
    folder.set_status(JobStatus(**running_status()))
    assert [job.folder for job in jobs.active()] == [folder]


def test_a_job_whose_worker_died_is_not_active(home: Home) -> None:
    folder = make_run(make_project(home), final=False, **{**running_status(), "pid_started": 1.0})
    assert JobFolder(folder.path).status().state is JobState.FAILED
    assert Jobs(home).active() == []
