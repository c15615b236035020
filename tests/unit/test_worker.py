"""The worker: queue, status, events, errors; its stage is replaced by small functions."""

from __future__ import annotations

import errno
import os
import signal
import threading
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import psutil
import pytest
from pydantic import BaseModel

from lora_studio import worker
from lora_studio.errors import DiskFullError, InputError, JobError, OutOfMemoryError, StudioError
from lora_studio.events import Event
from lora_studio.planning.automatic_stop import AutomaticStop
from lora_studio.planning.speeds import read_speeds
from lora_studio.settings.job_specs import SweepJob, TagJob, TrainJob
from lora_studio.settings.recipe import Recipe
from lora_studio.workspace.gpu_queue import hold_gpu
from lora_studio.workspace.job_folder import RESUME_REMEDIES, JobFolder, JobState, JobStatus
from lora_studio.workspace.project import Home
from lora_studio.workspace.remote_run import RemoteRun
from tests.support.events import records_of, start_event, step_event


class Result(BaseModel):
    stopped: bool = False
    figure: int = 7


class StoppedResult(Result):
    automatic_stop: AutomaticStop
    lora: Path


@pytest.fixture
def folder(tmp_path: Path) -> JobFolder:
    job = TrainJob(name="a", dataset=tmp_path, base="x", recipe=Recipe(batch_size=4, gradient_checkpointing=False))
    return JobFolder.create(tmp_path / "run", job)


@pytest.fixture
def stage(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[..., BaseModel]], None]:
    return lambda function: monkeypatch.setattr(worker, "stage_for", lambda job: function)


def test_done_job_has_status_events_and_result(folder: JobFolder, home: Home, stage: Any) -> None:
    received: list[Event] = []

    def work(job: TrainJob, folder: JobFolder, **wires: Any) -> Result:
        assert folder.status().state is JobState.RUNNING
        wires["report"](step_event(3, total=3, loss=float("nan"), seconds_left=0.0))
        return Result()

    stage(work)
    result = worker.execute(folder, home=home, listen=received.append)
    assert result == Result()
    status = folder.status()
    assert (status.state, status.done, status.total) == (JobState.DONE, 3, 3)
    assert folder.result() == {"stopped": False, "figure": 7}
    events, _ = folder.events()
    assert [event.name for event in events] == ["step", "done"]
    assert events == [received[0].model_copy(update={"loss": None}), received[1]]


def test_stopped_job_has_no_result(folder: JobFolder, home: Home, stage: Any) -> None:
    stage(lambda job, folder, **wires: Result(stopped=True))
    worker.execute(folder, home=home)
    assert folder.status().state is JobState.STOPPED
    assert folder.result() is None


def test_a_run_that_stopped_by_itself_says_why_and_names_its_result(folder: JobFolder, home: Home, stage: Any) -> None:
    stop = AutomaticStop(code="rise", step=30, message="Stopped automatically at step 30: the loss is rising.")
    result = StoppedResult(stopped=True, automatic_stop=stop, lora=folder.path / "checkpoints" / "a-best.safetensors")
    stage(lambda job, folder, **wires: result)
    worker.execute(folder, home=home)
    status = folder.status()
    assert (status.state, status.code, status.message) == (JobState.STOPPED, "rise", stop.message)
    (event,) = records_of(folder, "stopped")
    assert (event["code"], event["path"]) == ("rise", "checkpoints/a-best.safetensors")
    assert "a-best.safetensors" in event["remedy"]
    assert folder.result() is None


@pytest.mark.parametrize("fails", [False, True])
def test_the_speed_of_a_run_is_remembered_however_it_ends(
    folder: JobFolder, home: Home, stage: Any, fails: bool
) -> None:
    def work(job: TrainJob, folder: JobFolder, **wires: Any) -> Result:
        wires["report"](start_event())
        for step in range(20):
            wires["report"](step_event(step + 1, seconds=0.5))
        if fails:
            raise InputError("The disk is full.", "Delete files.", code="disk_full")
        return Result(stopped=True)

    stage(work)
    with pytest.raises(InputError) if fails else nullcontext():
        worker.execute(folder, home=home)
    assert [(speed.base, speed.seconds) for speed in read_speeds(home)] == [("x", 0.5)]


def test_studio_error_is_written_to_the_status(folder: JobFolder, home: Home, stage: Any) -> None:
    def work(job: TrainJob, folder: JobFolder, **wires: Any) -> Result:
        raise InputError("base 'x' is missing.", "Give a folder.", code="no_base")

    stage(work)
    with pytest.raises(InputError):
        worker.execute(folder, home=home)
    status = folder.status()
    assert (status.state, status.message, status.remedy) == (JobState.FAILED, "base 'x' is missing.", "Give a folder.")
    assert records_of(folder, "failed")[-1]["code"] == "no_base"


@pytest.mark.parametrize(
    "error", [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")]
)
def test_out_of_memory_suggests_the_next_saving(folder: JobFolder, home: Home, stage: Any, error: Exception) -> None:
    def work(job: TrainJob, folder: JobFolder, **wires: Any) -> Result:
        raise error

    stage(work)
    with pytest.raises(OutOfMemoryError) as caught:
        worker.execute(folder, home=home)
    assert "checkpointing" in caught.value.remedy.lower()
    assert folder.status().remedy == caught.value.remedy
    assert records_of(folder, "failed")[-1]["code"] == "out_of_memory"


def test_out_of_memory_in_a_sweep_suggests_smaller_images(tmp_path: Path, home: Home, stage: Any) -> None:
    def work(job: SweepJob, folder: JobFolder, **wires: Any) -> Result:
        raise MemoryError

    stage(work)
    job = SweepJob(loras=[tmp_path / "a.safetensors"], bases=["embedded"], prompts=["a cat"])
    with pytest.raises(OutOfMemoryError, match="width and height"):
        worker.execute(JobFolder.create(tmp_path / "sweep", job), home=home)


def test_a_gpu_that_torch_cannot_use_is_named(folder: JobFolder, home: Home, stage: Any) -> None:
    def work(job: TrainJob, folder: JobFolder, **wires: Any) -> Result:
        raise RuntimeError("CUDA error: no kernel image is available for execution on the device\nmore")

    stage(work)
    with pytest.raises(InputError, match="no kernel image"):
        worker.execute(folder, home=home)
    assert records_of(folder, "failed")[-1]["code"] == "gpu"


@pytest.fixture
def unusable_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the check of the GPU fail, as it does if PyTorch is built without CUDA."""

    def refuse() -> None:
        raise InputError("The RTX 4090 cannot be used.", "Run pip install torch==2.13.0+cu130.", code="gpu")

    monkeypatch.setattr(worker, "check_gpu_is_usable", refuse)


REAL_JOBS = {
    "train": TrainJob(dataset=Path(), base="SDXL 1.0"),
    "own base": TrainJob(dataset=Path(), base="models/mine.safetensors"),
    "tag": TagJob(dataset=Path(), tagger="wd14"),
    "tag, two": TagJob(dataset=Path(), tagger="demo", also=["blip"]),
    "sweep": SweepJob(loras=[Path("a.safetensors")], bases=["embedded", "SDXL 1.0"], prompts=["a"]),
}
EMBEDDED_JOBS = {
    "train": TrainJob(dataset=Path(), base="Embedded"),
    "tag": TagJob(dataset=Path(), tagger="demo", also=["demo-captioner"]),
    "sweep": SweepJob(loras=[Path("a.safetensors")], bases=["embedded"], prompts=["a"]),
}


@pytest.mark.parametrize("kind", REAL_JOBS)
@pytest.mark.usefixtures("unusable_gpu")
def test_a_job_does_not_fall_back_to_the_cpu_beside_an_unusable_gpu(
    tmp_path: Path, home: Home, stage: Any, kind: str
) -> None:
    folder = JobFolder.create(tmp_path / "job", REAL_JOBS[kind])
    stage(lambda job, folder, **wires: Result())
    with pytest.raises(InputError):
        worker.execute(folder, home=home)
    assert folder.status().state is JobState.FAILED
    assert "pip install torch" in folder.status().remedy
    assert records_of(folder, "failed")[-1]["code"] == "gpu"


@pytest.mark.parametrize("kind", EMBEDDED_JOBS)
@pytest.mark.usefixtures("unusable_gpu")
def test_jobs_with_embedded_models_need_no_gpu(tmp_path: Path, home: Home, stage: Any, kind: str) -> None:
    folder = JobFolder.create(tmp_path / "job", EMBEDDED_JOBS[kind])
    stage(lambda job, folder, **wires: Result())
    assert worker.execute(folder, home=home) == Result()


def test_the_gpus_memory_is_configured_before_the_job_runs(
    folder: JobFolder, home: Home, stage: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []

    def work(job: TrainJob, folder: JobFolder, **wires: Any) -> Result:
        calls.append("work")
        return Result()

    monkeypatch.setattr(worker, "use_expandable_segments", lambda: calls.append("segments"))
    monkeypatch.setattr(worker, "limit_gpu_memory", lambda: calls.append("limit"))
    stage(work)
    worker.execute(folder, home=home)
    assert calls == ["segments", "limit", "work"]


def test_full_disk_names_the_file(folder: JobFolder, home: Home, stage: Any) -> None:
    def work(job: TrainJob, folder: JobFolder, **wires: Any) -> Result:
        raise OSError(errno.ENOSPC, "No space left on device", "/somewhere/file")

    stage(work)
    with pytest.raises(DiskFullError, match="/somewhere/file"):
        worker.execute(folder, home=home)
    assert folder.status().state is JobState.FAILED


def test_missing_file_is_named(folder: JobFolder, home: Home, stage: Any, tmp_path: Path) -> None:
    stage(lambda job, folder, **wires: (tmp_path / "gone.png").read_bytes())
    with pytest.raises(JobError, match=r"gone\.png"):
        worker.execute(folder, home=home)
    assert RESUME_REMEDIES["train"] in folder.status().remedy
    assert records_of(folder, "failed")[-1]["code"] == "file_vanished"


def test_incompatible_library_suggests_an_upgrade(folder: JobFolder, home: Home, stage: Any) -> None:
    def work(job: TrainJob, folder: JobFolder, **wires: Any) -> Result:
        from peft import NoSuchThing  # type: ignore[attr-defined]  # noqa: F401

        return Result()

    stage(work)
    with pytest.raises(InputError, match="cannot import name 'NoSuchThing'"):
        worker.execute(folder, home=home)
    assert records_of(folder, "failed")[-1]["code"] == "libraries"
    assert "pip install" in folder.status().remedy


def test_several_processes_are_started_by_accelerates_launcher(
    folder: JobFolder, home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    commands: list[list[str]] = []

    class Process:
        pid = 1

        def __init__(self, command: list[str], **options: Any) -> None:
            commands.append(command)

        def wait(self) -> int:
            return 0

    monkeypatch.setattr(worker.subprocess, "Popen", Process)
    worker.start(folder, home)
    text = folder.job_file.read_text("utf-8")
    folder.job_file.write_text(text.replace("num_processes = 1", "num_processes = 3"), "utf-8")
    worker.start(folder, home, resume=True)
    one, three = commands
    assert one[1:] == [str(worker.MAIN_FILE), "worker", str(folder.path), "--home", str(home.path)]
    assert three[1:6] == ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "3"]
    assert three[-len(one) :] == [*one[1:], "--resume"]


def test_unexpected_error_is_raised_and_fails_the_job(folder: JobFolder, home: Home, stage: Any) -> None:
    def work(job: TrainJob, folder: JobFolder, **wires: Any) -> Result:
        raise ZeroDivisionError("oh")

    stage(work)
    with pytest.raises(ZeroDivisionError):
        worker.execute(folder, home=home)
    assert folder.status().message == "ZeroDivisionError: oh"


def test_waiting_job_is_queued_and_can_be_stopped(folder: JobFolder, home: Home, stage: Any) -> None:
    stage(lambda job, folder, **wires: Result())
    failures: list[BaseException] = []

    def run() -> None:
        try:
            worker.execute(folder, home=home)
        except StudioError as error:
            failures.append(error)

    with hold_gpu(home.queue, "001-other"):
        thread = threading.Thread(target=run)
        thread.start()
        _until(lambda: "001-other" in folder.status().message)
        assert folder.status().state is JobState.QUEUED
        folder.request_stop()
        thread.join(10)
    assert [error.code for error in failures if isinstance(error, StudioError)] == ["stopped"]
    assert folder.status().state is JobState.STOPPED


def test_sigterm_is_a_stop_request(folder: JobFolder, home: Home, stage: Any) -> None:
    def work(job: TrainJob, folder: JobFolder, **wires: Any) -> Result:
        os.kill(os.getpid(), signal.SIGTERM)
        _until(wires["should_stop"])
        return Result(stopped=True)

    stage(work)
    before = signal.getsignal(signal.SIGTERM)
    worker.execute(folder, home=home)
    assert folder.status().state is JobState.STOPPED
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.slow
def test_detached_worker_writes_its_error_to_the_status(tmp_path: Path, home: Home) -> None:
    job = TrainJob(name="a", dataset=tmp_path / "nowhere", base="x")
    folder = JobFolder.create(tmp_path / "run", job)
    worker.start(folder, home)
    assert folder.status().state is JobState.QUEUED
    _until(lambda: not folder.status().state.is_active, seconds=180)
    status = folder.status()
    assert status.state is JobState.FAILED
    assert "nowhere" in status.message
    _until(lambda: "Traceback" in folder.log_tail(), seconds=60)


def test_killed_worker_leaves_a_failed_job(tmp_path: Path, home: Home) -> None:
    folder = JobFolder.create(tmp_path / "run", TrainJob(name="a", dataset=tmp_path, base="x"))
    with hold_gpu(home.queue, "001-other"):
        worker.start(folder, home)
        _until(lambda: "001-other" in folder.status().message, seconds=60)
        os.kill(folder.status().pid or 0, signal.SIGKILL)
        _until(lambda: not folder.status().state.is_active)
    assert folder.status().state is JobState.FAILED


def _until(condition: Callable[[], bool], seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "timeout"
        time.sleep(0.02)


def test_a_notification_that_fails_is_a_warning_before_the_end(folder: JobFolder, home: Home, stage: Any) -> None:
    home.path.mkdir(parents=True, exist_ok=True)
    home.notify_file.write_text('command = ["/nonexistent"]\nmin_minutes = 0', "utf-8")
    stage(lambda job, folder, **wires: Result())
    worker.execute(folder, home=home)
    assert folder.status().state is JobState.DONE
    assert [record["event"] for record in records_of(folder)] == ["warning", "done"]
    assert records_of(folder, "warning")[0]["code"] == "notify_failed"


def test_a_remote_run_whose_worker_was_killed_is_taken_up_again(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    """Other runs are not: a training here waits for its user, and a remote one that has ended or is followed stays."""
    project = home.create_project("ink")
    lost = {"state": JobState.RUNNING, "pid": 0, "pid_started": 1.0}
    own = {"pid": os.getpid(), "pid_started": psutil.Process().create_time()}
    states = [(True, lost), (False, lost), (True, {**lost, **own}), (True, {**lost, "state": JobState.FAILED})]
    for is_remote, status in states:
        job = TrainJob(name="ink", dataset=project.dataset_dir, base="x")
        run = JobFolder.create(project.new_run_dir("ink"), job)
        if is_remote:
            RemoteRun(flavor="a10g-large", timeout="3h", key="key", job_id="job").write(run.path)
        run.set_status(JobStatus.model_validate(status))
    first = project.runs()[0]
    first.request_stop()
    started: list[tuple[JobFolder, bool]] = []

    def start(folder: JobFolder, home: Home, *, resume: bool = False) -> None:
        folder.clear_stop()
        folder.update_status(**own)
        started.append((folder, resume))

    monkeypatch.setattr(worker, "start", start)
    assert worker.take_up_remote_runs(home) == [first]
    assert started == [(first, True)]
    assert first.stop_requested()
    assert worker.take_up_remote_runs(home) == []
