"""The queue of runs: their order is on disk, and each change is complete or not made."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from lora_studio.errors import InputError
from lora_studio.settings.job_specs import TrainJob
from lora_studio.workspace.job_folder import JobFolder, JobState, JobStatus
from lora_studio.workspace.project import Home
from lora_studio.workspace.run_queue import QueuedRun, RunQueue
from tests.support.jobs import running_status


@pytest.fixture
def queue(home: Home) -> RunQueue:
    return RunQueue(home)


@pytest.fixture
def runs(home: Home, queue: RunQueue) -> list[JobFolder]:
    """Three waiting runs."""
    job = TrainJob(dataset=home.path, base="x")
    folders = [JobFolder.create(home.path / "projects" / "ink" / "runs" / f"00{n}", job) for n in (1, 2, 3)]
    for folder in folders:
        queue.add(folder)
    return folders


def order(queue: RunQueue) -> list[str]:
    return [run.folder.name for run in RunQueue(queue.home).runs()]


def take(queue: RunQueue, *, busy: bool = False) -> str | None:
    """Take the next run, whose worker is this process."""

    def start(run: QueuedRun) -> None:
        run.folder.set_status(JobStatus(**running_status()))

    taken = queue.take(lambda: busy, start)
    return taken.folder.name if taken else None


def test_waiting_runs_are_found_again_in_their_order(queue: RunQueue, runs: list[JobFolder]) -> None:
    assert order(queue) == ["001", "002", "003"]
    assert {folder.status().state for folder in runs} == {JobState.WAITING}
    before = queue.signature()
    queue.move(queue.runs()[2].key, -2)
    assert order(queue) == ["003", "001", "002"]
    assert queue.signature() != before
    queue.move(queue.runs()[0].key, 1)
    assert order(queue) == ["001", "003", "002"]


def test_a_cancelled_run_keeps_its_folder_and_can_be_added_again(queue: RunQueue, runs: list[JobFolder]) -> None:
    queue.cancel(runs[1])
    assert order(queue) == ["001", "003"]
    assert runs[1].status().state is JobState.STOPPED
    with pytest.raises(InputError) as caught:
        queue.cancel(runs[1])
    assert caught.value.code == "not_queued"
    queue.add(runs[1], resume=True)
    assert order(queue) == ["001", "003", "002"]
    assert queue.runs()[2].resume


def test_runs_are_taken_one_at_a_time(queue: RunQueue, runs: list[JobFolder]) -> None:
    assert take(queue, busy=True) is None
    assert take(queue) == "001"
    assert take(queue) is None, "the first one is running"
    runs[0].set_status(JobStatus(state=JobState.FAILED))
    assert take(queue) == "002"
    assert order(queue) == ["003"]


def test_after_a_restart_the_others_still_wait(queue: RunQueue, runs: list[JobFolder]) -> None:
    take(queue)
    runs[0].update_status(pid_started=1.0)  # of a process that has ended
    assert runs[0].status().state is JobState.FAILED
    assert order(queue) == ["002", "003"]
    queue.add(runs[0], resume=True)
    assert order(queue) == ["002", "003", "001"]


def test_runs_that_were_deleted_or_started_otherwise_are_left_out(queue: RunQueue, runs: list[JobFolder]) -> None:
    shutil.rmtree(runs[0].path)
    runs[1].set_status(JobStatus(state=JobState.DONE))
    assert order(queue) == ["003"]
    assert take(queue) == "003"


def test_a_run_is_added_once(queue: RunQueue, runs: list[JobFolder]) -> None:
    with pytest.raises(InputError) as caught:
        queue.add(runs[0])
    assert caught.value.code == "busy"
    with pytest.raises(InputError) as caught:
        queue.move("projects/../../etc", 1)
    assert caught.value.code == "not_queued"


def test_a_home_that_was_moved_keeps_its_queue(queue: RunQueue, runs: list[JobFolder], tmp_path: Path) -> None:
    moved = Home(queue.home.path.rename(tmp_path / "moved"))
    [first, *_] = RunQueue(moved).runs()
    assert first.folder.path == moved.path / "projects" / "ink" / "runs" / "001"


def test_a_damaged_queue_is_reported(queue: RunQueue) -> None:
    queue.home.path.mkdir(parents=True, exist_ok=True)
    queue.file.write_text("{", "utf-8")
    with pytest.raises(InputError) as caught:
        queue.runs()
    assert caught.value.code == "queue"
