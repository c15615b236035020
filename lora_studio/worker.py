"""Run a job in this process (`execute`) or in a detached worker process (`start`).

The stage's function does the work; this module waits for the GPU and writes status, events and result.
"""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any, Protocol

import psutil
from filelock import Timeout
from pydantic import BaseModel

from lora_studio.dataset.tagging.catalogue import CATALOGUE
from lora_studio.device import (
    check_gpu_is_usable,
    limit_gpu_memory,
    use_expandable_segments,
)
from lora_studio.errors import (
    StopRequested,
    StudioError,
    disk_errors,
)
from lora_studio.event_recorder import EventRecorder, Listener, stopped_event
from lora_studio.events import (
    DoneEvent,
    Event,
    FailedEvent,
    Report,
    StoppedEvent,
)
from lora_studio.file_lock import change_file
from lora_studio.job_errors import library_errors
from lora_studio.models.catalogue import find_base
from lora_studio.planning.speeds import remember_speed
from lora_studio.settings.job_specs import AnyJob, DownloadJob, SweepJob, TagJob, TrainJob
from lora_studio.workspace.gpu_queue import hold_gpu, live_tickets
from lora_studio.workspace.job_environment import HUB_SECRETS, can_start, secrets_of, worker_environment
from lora_studio.workspace.job_folder import JobFolder, JobState, JobStatus
from lora_studio.workspace.processes import start_detached
from lora_studio.workspace.project import Home
from lora_studio.workspace.remote_run import REMOTE_FILE, is_remote
from lora_studio.workspace.run_queue import RunQueue

MAIN_FILE = Path(__file__).with_name("__main__.py")
POLL_SECONDS = 0.5
HAND_OVER_SECONDS = 120.0  # the most that a process takes to start on a busy machine
SAME_SIGNAL_SECONDS = 1.0  # a launcher forwards the interrupt that the terminal has already sent to all processes


class Stage(Protocol):
    """The function that runs one kind of job; its result has a field `stopped`."""

    def __call__(
        self,
        job: Any,
        folder: JobFolder,
        *,
        home: Home,
        report: Report,
        should_stop: Callable[[], bool],
        resume: bool = False,
    ) -> BaseModel:
        """Run the job until it is complete or `should_stop` returns True."""


def stage_for(job: AnyJob) -> Stage:
    """Return the function that runs this kind of job; imported here, since it may import torch."""
    match job:
        case TrainJob():
            from lora_studio.training.train import train

            return train
        case TagJob():
            from lora_studio.dataset.tagging.stage import tag

            return tag
        case SweepJob():
            from lora_studio.sampling.sweep import sweep

            return sweep
        case DownloadJob():
            from lora_studio.models.download import download_base

            return download_base


def _remote_stage() -> Stage:
    """Return the function that follows a training on Hugging Face Jobs."""
    from lora_studio.remote.follow import train_on_hf_jobs

    return train_on_hf_jobs


def needs_gpu(job: AnyJob) -> bool:
    """Return whether a job uses a model other than the small ones that ship with the studio."""
    match job:
        case TagJob():
            taggers = [CATALOGUE.get(name.lower()) for name in (job.tagger, *job.also)]
            return not all(tagger is not None and tagger.is_embedded for tagger in taggers)
        case TrainJob():
            bases = [job.base]
        case SweepJob():
            bases = job.bases
        case DownloadJob():
            return False
    known = [find_base(base) for base in bases]
    return not all(base is not None and base.is_embedded for base in known)


def start(folder: JobFolder, home: Home, *, resume: bool = False, trusted: bool = True) -> None:
    """Start a detached worker process for the job; it outlives this process.

    It gets the secrets of the environment that the job needs; without `trusted` none, and no access to the Hub.

    Writes the state "queued" before it returns, so that the job counts as active from the first moment. A job for
    several processes is started by accelerate's launcher. The worker runs `lora_studio/__main__.py` by its path, which
    works from any working directory and without an installed package.
    """
    job = folder.job()
    command = [sys.executable, *([] if is_remote(folder.path) else _launcher_arguments(job)), str(MAIN_FILE)]
    command += ["worker", str(folder.path.resolve()), "--home", str(home.path)]
    if resume:
        command.append("--resume")
    folder.clear_stop()
    own = psutil.Process()
    folder.set_status(
        JobStatus(
            state=JobState.QUEUED,
            message="Starting",
            pid=own.pid,
            pid_started=own.create_time(),
            started_at=time.time(),
        )
    )
    needed = secrets_of(job) | (HUB_SECRETS if is_remote(folder.path) else frozenset())
    with disk_errors(folder.log_file), folder.log_file.open("ab") as log:
        process = start_detached(command, log, folder.path, worker_environment(needed, trusted=trusted))
    threading.Thread(target=_reap, args=(process, folder, own.pid), daemon=True, name=f"reap {process.pid}").start()


def enqueue(folder: JobFolder, home: Home, *, resume: bool = False) -> None:
    """Put a run at the end of the queue, and start the first one if the GPU is free. Raises InputError if it waits."""
    RunQueue(home).add(folder, resume=resume)
    start_next(home)


def start_next(home: Home, *, wait: bool = False) -> JobFolder | None:
    """Start the first waiting run and return its folder; None if none waits, or while a job of this home is active.

    Until the worker process has taken over, this process counts as the run's, and the run would seem to have died
    without it: `wait` for that before this process ends.
    """
    taken = RunQueue(home).take(
        lambda: bool(live_tickets(home.queue)), lambda run: start(run.folder, home, resume=run.resume)
    )
    deadline = time.monotonic() + HAND_OVER_SECONDS
    while wait and taken and taken.folder.status().pid == os.getpid() and time.monotonic() < deadline:
        time.sleep(POLL_SECONDS)
    return taken.folder if taken else None


def take_up_remote_runs(home: Home) -> list[JobFolder]:
    """Follow the trainings on Hugging Face Jobs again whose worker process was killed; return their folders.

    The jobs continued meanwhile. A request to stop that was not carried out yet stays.
    """
    runs = [folder for project in home.projects() for folder in project.runs() if is_remote(folder.path)]
    taken = []
    for folder in runs:
        if not folder.has_lost_worker():
            continue
        try:
            with change_file(folder.path / REMOTE_FILE):
                if folder.has_lost_worker():
                    stops = folder.stop_requested()
                    start(folder, home, resume=True)
                    if stops:
                        folder.request_stop()
                    taken.append(folder)
        except (StudioError, OSError):
            logging.getLogger(__name__).exception("%s is not followed again", folder.path)
    return taken


def _hand_over(home: Home) -> None:
    """Start the next waiting run at the end of a worker process.

    A run that needs a token that this process did not get is left to the app, which looks every few seconds.
    """
    try:
        if all(can_start(run.folder.job()) for run in RunQueue(home).runs()[:1]):
            start_next(home, wait=True)
    except (StudioError, OSError, Timeout):
        traceback.print_exc()


def _launcher_arguments(job: AnyJob) -> list[str]:
    """Return Python's arguments that launch one process per GPU, with a free rendezvous port; none for one process."""
    count = job.num_processes if isinstance(job, TrainJob) else 1
    if count == 1:
        return []
    options = {"num_processes": count, "num_machines": 1, "main_process_port": 0, "mixed_precision": "no"}
    options |= {"dynamo_backend": "no"}
    given = [text for name, value in options.items() for text in (f"--{name}", str(value))]
    return ["-m", "accelerate.commands.launch", "--multi_gpu", *given]


def _reap(process: subprocess.Popen[bytes], folder: JobFolder, starter: int) -> None:
    """Wait for a worker process; mark the job as failed if it ended before it wrote a status of its own."""
    exit_status = process.wait()
    if folder.status().pid == starter:
        folder.update_status(
            state=JobState.FAILED,
            message=f"The worker process could not start (exit status {exit_status}).",
            remedy=f"Its last output is in {folder.log_file.name}.",
        )


def execute(folder: JobFolder, *, home: Home, resume: bool = False, listen: Listener = lambda event: None) -> BaseModel:
    """Run the job of `folder` in this process and return the stage's result.

    `listen` is called with every event after it is written. Raises StudioError if the job fails; the status is then
    "failed", with the remedy.
    """
    job = folder.job()
    _let_idle_threads_sleep()
    use_expandable_segments()
    _silence_libraries()
    started = time.time()
    recorder = EventRecorder(folder, listen, home)
    folder.set_status(
        JobStatus(
            state=JobState.QUEUED,
            message="Waiting for the GPU",
            pid=os.getpid(),
            pid_started=psutil.Process().create_time(),
            started_at=started,
        )
    )
    try:
        with (
            stop_on_signals(folder),
            _turn(job, folder, home, recorder),
        ):
            folder.update_status(state=JobState.RUNNING, message="Starting", started_at=time.time())
            with library_errors(job):
                stage = _remote_stage() if is_remote(folder.path) else stage_for(job)
                if not is_remote(folder.path):
                    if needs_gpu(job):
                        check_gpu_is_usable()
                    limit_gpu_memory()
                result = stage(
                    job, folder, home=home, report=recorder, should_stop=folder.stop_requested, resume=resume
                )
    except StopRequested:
        recorder.finish(
            JobState.STOPPED,
            StoppedEvent(message="Stopped before it started.", remedy="Resume puts it back into the queue."),
        )
        raise StudioError("Stopped before it started.", "Start it again at any time.", code="stopped") from None
    except StudioError as error:
        recorder.finish(JobState.FAILED, FailedEvent(message=error.message, remedy=error.remedy, code=error.code))
        raise
    except KeyboardInterrupt:
        recorder.finish(JobState.FAILED, FailedEvent(message="Interrupted.", remedy=folder.resume_remedy()))
        raise
    except Exception as error:
        recorder.finish(
            JobState.FAILED,
            FailedEvent(
                message=f"{type(error).__name__}: {error}",
                remedy=f"This is a bug in the studio. The traceback is in {folder.log_file.name}.",
                code="unexpected",
            ),
        )
        raise
    finally:
        folder.clear_stop()
        folder.clear_sample_request()
        folder.clear_save_request()
        if not is_remote(folder.path):
            remember_speed(home, folder)
    if getattr(result, "stopped", False):
        recorder.finish(JobState.STOPPED, stopped_event(result, folder))
    else:
        folder.write_result(result.model_dump(mode="json"))
        recorder.finish(JobState.DONE, DoneEvent(message="Done", remedy=""))
    return result


def _turn(job: AnyJob, folder: JobFolder, home: Home, recorder: EventRecorder) -> AbstractContextManager[None]:
    """Return what waits for the job's turn; a download or a job elsewhere needs no GPU and does not wait."""
    if isinstance(job, DownloadJob) or is_remote(folder.path):
        return nullcontext()
    return hold_gpu(home.queue, folder.name, should_stop=folder.stop_requested, on_wait=recorder.report_wait)


def _let_idle_threads_sleep() -> None:
    """Let idle OpenMP threads sleep instead of spin, if torch is not imported yet.

    When other programs use the same cores, spinning threads wait for one another's time slices: a training step on two
    busy cores took 20 s with them and 0.3 s without.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def _silence_libraries() -> None:
    """Silence the warning of bitsandbytes on CPUs about a missing 4-bit kernel, which is not used here."""
    logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)


def run_detached(path: Path, home: Home, *, resume: bool = False) -> int:
    """Run the job as the body of a worker process and return its exit status; errors are in the status and the log.

    Of several processes that a launcher started for one job, rank 0 executes it and the others `follow`. At the end the
    next run of the queue is started.
    """
    try:
        if int(os.environ.get("RANK", "0")) > 0:
            follow(JobFolder(path), home=home, resume=resume)
        else:
            try:
                execute(JobFolder(path), home=home, resume=resume)
            finally:
                _hand_over(home)
    except StudioError as error:
        traceback.print_exc()
        return error.exit_status
    except Exception:
        traceback.print_exc()
        return 1
    return 0


def follow(folder: JobFolder, *, home: Home, resume: bool = False) -> None:
    """Take part in a training run as a process of rank 1 or higher.

    Only rank 0 waits for the GPU, writes status and events, and handles signals: it ends the run for all.
    """
    job = folder.job()
    if not isinstance(job, TrainJob):
        return
    _let_idle_threads_sleep()
    use_expandable_segments()
    _silence_libraries()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    stage_for(job)(job, folder, home=home, report=_ignore, should_stop=folder.stop_requested, resume=resume)


def _ignore(event: Event) -> None:
    pass


@contextmanager
def stop_on_signals(folder: JobFolder) -> Iterator[None]:
    """Treat the first SIGINT or SIGTERM as a request to stop and save; a second one ends the process immediately."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    received: list[float] = []

    def request_stop(number: int, frame: object) -> None:
        folder.request_stop()
        received.append(time.monotonic())
        if received[-1] - received[0] > SAME_SIGNAL_SECONDS:
            signal.signal(number, previous[number])
            signal.raise_signal(number)

    previous: dict[int, Any] = {
        number: signal.signal(number, request_stop) for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
