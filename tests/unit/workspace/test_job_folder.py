from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import psutil
import pytest

from lora_studio.errors import InputError
from lora_studio.events import Event, FailedEvent, PhaseEvent, ResumeEvent, StepEvent, TimestepsEvent
from lora_studio.settings.job_specs import AnyJob, DownloadJob, SweepJob, TagJob, TrainJob
from lora_studio.workspace.job_folder import (
    JobFolder,
    JobState,
    JobStatus,
    is_process_alive,
    job_folders,
    numbered_folder,
    slugify,
)
from tests.support.events import step_event

LOADING = PhaseEvent(message="Loading")


@pytest.fixture
def job() -> TrainJob:
    return TrainJob.parse({"name": "saria", "dataset": "/data", "base": "SDXL 1.0", "recipe": {"epochs": 3}})


@pytest.fixture
def folder(tmp_path: Path, job: TrainJob) -> JobFolder:
    return JobFolder.create(tmp_path / "001-saria", job)


def own_status(state: JobState) -> JobStatus:
    own = psutil.Process()
    return JobStatus(state=state, pid=own.pid, pid_started=own.create_time())


def untimed(folder: JobFolder) -> list[Event]:
    """Return a folder's events without their times."""
    return [event.model_copy(update={"time": 0.0}) for event in folder.events()[0]]


def test_new_folder_contains_its_job(folder: JobFolder, job: TrainJob) -> None:
    assert folder.exists
    assert folder.job() == job
    assert folder.status().state is JobState.CREATED
    assert folder.result() is None
    assert folder.events() == ([], 0)
    assert folder.log_tail() == ""


def test_folder_with_a_job_is_refused(folder: JobFolder, job: TrainJob) -> None:
    with pytest.raises(InputError) as caught:
        JobFolder.create(folder.path, job)
    assert caught.value.code == "job_exists"


def test_folder_without_a_job_is_an_input_error(tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        JobFolder(tmp_path).job()
    assert caught.value.code == "no_job"


@pytest.mark.parametrize("state", list(JobState))
def test_status_of_a_living_worker_is_returned_unchanged(folder: JobFolder, state: JobState) -> None:
    folder.set_status(own_status(state))
    assert folder.status().state is state


@pytest.mark.parametrize(
    ("job", "left"),
    [
        (TrainJob(dataset=Path("d"), base="b"), "last saved state"),
        (TagJob(dataset=Path("d"), tagger="wd14"), "remaining images"),
        (SweepJob(loras=[Path("a")], bases=["b"], prompts=["c"]), "missing images"),
        (DownloadJob(base="b"), "download again"),
    ],
    ids=lambda value: getattr(value, "kind", ""),
)
def test_a_lost_job_says_what_a_resume_of_its_kind_does(tmp_path: Path, job: AnyJob, left: str) -> None:
    folder = JobFolder.create(tmp_path / "001", job)
    folder.set_status(JobStatus(state=JobState.RUNNING, pid=2**22 + 1))
    status = folder.status()
    assert status.state is JobState.FAILED
    assert left in status.remedy
    assert "worker.log" in status.remedy
    folder.job_file.unlink()
    assert folder.status().remedy == "See the end of worker.log."


@pytest.mark.parametrize("state", [JobState.QUEUED, JobState.RUNNING])
def test_status_of_a_dead_worker_is_failed(folder: JobFolder, state: JobState) -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        started = psutil.Process(process.pid).create_time()
    folder.set_status(JobStatus(state=state, pid=process.pid, pid_started=started, done=7, total=10, seconds_left=3))
    status = folder.status()
    assert status.state is JobState.FAILED
    assert "worker.log" in status.remedy
    assert (status.done, status.total, status.seconds_left) == (7, 10, None)


def test_done_job_needs_no_living_worker(folder: JobFolder) -> None:
    folder.set_status(JobStatus(state=JobState.DONE, pid=2**22 - 1, pid_started=1.0))
    assert folder.status().state is JobState.DONE


def test_reused_process_id_is_not_the_worker() -> None:
    own = psutil.Process()
    assert is_process_alive(own.pid, own.create_time())
    assert is_process_alive(own.pid, None)
    assert not is_process_alive(own.pid, own.create_time() - 100)
    assert not is_process_alive(None, None)


def test_update_changes_only_the_given_fields(folder: JobFolder) -> None:
    folder.set_status(own_status(JobState.RUNNING))
    folder.update_status(done=3, total=9, message="Step 3")
    status = folder.status()
    assert (status.state, status.done, status.total, status.message) == (JobState.RUNNING, 3, 9, "Step 3")
    assert status.updated_at > 0


def test_broken_status_file_is_read_as_created(folder: JobFolder) -> None:
    (folder.path / "status.json").write_text('{"state": "runn', "utf-8")
    assert folder.status() == JobStatus()


def test_events_are_read_in_order_and_once(folder: JobFolder) -> None:
    phase = folder.emit(PhaseEvent(message="grüße\u2028\n"))
    first, offset = folder.events()
    step = folder.emit(step_event(1))
    second, end = folder.events(offset)
    assert (first, second) == ([phase], [step])
    assert folder.events(end) == ([], end)
    assert step.time > 0


def test_event_after_an_incomplete_line_is_readable(folder: JobFolder) -> None:
    folder.emit(LOADING)
    with folder.events_file.open("ab") as file:
        file.write(b'{"event": "step", "st')
    folder.emit(step_event(2))
    assert untimed(folder) == [LOADING, step_event(2)]


def test_incomplete_line_is_read_when_it_is_complete(folder: JobFolder) -> None:
    folder.emit(LOADING)
    whole, offset = folder.events()
    with folder.events_file.open("ab") as file:
        file.write(b'{"event": "resume", "st')
    assert folder.events(offset) == ([], offset)
    with folder.events_file.open("ab") as file:
        file.write(b'ep": 1}\n')
    assert folder.events(offset)[0] == [ResumeEvent(step=1)]
    assert len(whole) == 1


def test_broken_line_is_skipped(folder: JobFolder) -> None:
    folder.emit(LOADING)
    with folder.events_file.open("ab") as file:
        file.write(b"\x00\x00 torn by a crash\n")
    folder.emit(step_event(1))
    assert untimed(folder) == [LOADING, step_event(1)]


def test_event_of_a_later_version_is_skipped(folder: JobFolder) -> None:
    with folder.events_file.open("ab") as file:
        file.write(b'{"event": "lap", "time": 1, "lap": 3}\n')
    folder.emit(LOADING)
    assert untimed(folder) == [LOADING]
    folder.drop_events(lambda event, byte: False)
    assert b"lap" in folder.events_file.read_bytes()
    folder.drop_events(lambda event, byte: event is None)
    assert b"lap" not in folder.events_file.read_bytes()


def test_non_finite_numbers_are_written_as_null(folder: JobFolder) -> None:
    bins = TimestepsEvent(epoch=1, bins=[(0, 500), (500, 1000)], loss=[float("inf"), 1.0], count=[1, 2])
    folder.emit(step_event(1, loss=float("nan")))
    folder.emit(bins)
    text = folder.events_file.read_text("utf-8")
    assert "NaN" not in text
    assert "Infinity" not in text
    assert untimed(folder) == [step_event(1, loss=None), bins.model_copy(update={"loss": [None, 1.0]})]


def test_stop_request_is_a_file(folder: JobFolder) -> None:
    assert not folder.stop_requested()
    folder.request_stop()
    folder.request_stop()
    assert folder.stop_requested()
    assert (folder.path / "stop").exists()
    folder.clear_stop()
    folder.clear_stop()
    assert not folder.stop_requested()


def test_request_for_samples_is_a_file_of_its_own(folder: JobFolder) -> None:
    folder.request_samples()
    folder.request_samples()
    assert folder.samples_requested()
    assert not folder.stop_requested()
    folder.clear_sample_request()
    folder.clear_sample_request()
    assert not folder.samples_requested()


def test_result_is_none_until_written(folder: JobFolder) -> None:
    folder.write_result({"steps": 3})
    assert folder.result() == {"steps": 3}
    (folder.path / "result.json").write_text("[1]", "utf-8")
    assert folder.result() is None


def test_log_tail_returns_the_last_lines(folder: JobFolder) -> None:
    folder.log_file.write_bytes(b"\n".join(b"line %d" % number for number in range(100)) + b"\n\xff end")
    assert folder.log_tail(2).splitlines()[0] == "line 99"
    assert folder.log_tail(2).endswith("end")


def test_numbered_folder_follows_the_highest_number(tmp_path: Path) -> None:
    assert numbered_folder(tmp_path / "runs", "My LoRA / v2!").name == "001-My-LoRA-v2"
    (tmp_path / "runs" / "007-other").mkdir()
    assert numbered_folder(tmp_path / "runs").name == "008"
    assert (tmp_path / "runs" / "008").is_dir()


def test_numbered_folders_are_unique_among_threads(tmp_path: Path) -> None:
    names: list[str] = []
    threads = [threading.Thread(target=lambda: names.append(numbered_folder(tmp_path, "x").name)) for _ in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(names)) == 20


def test_job_folders_are_those_with_a_job_file(tmp_path: Path, job: TrainJob) -> None:
    for number in (2, 1):
        JobFolder.create(numbered_folder(tmp_path / "runs", f"run {number}"), job)
    (tmp_path / "runs" / "notes").mkdir()
    assert [item.name for item in job_folders(tmp_path / "runs")] == ["001-run-2", "002-run-1"]
    assert list(job_folders(tmp_path / "nowhere")) == []


@pytest.mark.parametrize(
    ("name", "slug"), [("a b", "a-b"), ("../x", "x"), ("画風", "画風"), ("  ", ""), ("x" * 99, "x" * 60)]
)
def test_slugs_are_valid_file_names(name: str, slug: str) -> None:
    assert slugify(name) == slug
    assert os.sep not in slugify(name)


def test_status_file_is_json(folder: JobFolder) -> None:
    folder.set_status(own_status(JobState.RUNNING))
    assert json.loads((folder.path / "status.json").read_text("utf-8"))["state"] == "running"


def test_dropping_events_also_removes_broken_lines(folder: JobFolder) -> None:
    folder.emit(LOADING)
    folder.emit(step_event(1))
    offset = folder.sync_events()
    assert offset == folder.events_file.stat().st_size
    folder.emit(step_event(2))
    folder.emit(FailedEvent(message="Failed"))
    with folder.events_file.open("ab") as file:
        file.write(b'{"event": "st')
    folder.drop_events(lambda event, byte: isinstance(event, StepEvent) and byte >= offset)
    folder.emit(step_event(2))
    assert untimed(folder) == [LOADING, step_event(1), FailedEvent(message="Failed"), step_event(2)]
    assert folder.events_file.read_bytes().count(b"\n") == 4


def test_missing_event_file_has_length_0(tmp_path: Path) -> None:
    folder = JobFolder(tmp_path)
    folder.drop_events(lambda event, byte: True)
    assert folder.sync_events() == 0
    assert not folder.events_file.exists()
