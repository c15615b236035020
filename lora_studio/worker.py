"""Doing a job: in this process (`execute`) or in a detached one of its own (`start`).

The stage's function does the work; this module gives it its turn on the GPU, and writes status, events and result.
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
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import psutil
from pydantic import BaseModel

from lora_studio.device import is_out_of_memory
from lora_studio.errors import (
    DiskFullError,
    InputError,
    JobError,
    OutOfMemoryError,
    StopRequested,
    StudioError,
    disk_errors,
)
from lora_studio.planning.memory import next_saving
from lora_studio.settings.job_specs import AnyJob, SweepJob, TagJob, TrainJob
from lora_studio.versions import incompatible_libraries_error
from lora_studio.workspace.gpu_queue import hold_gpu
from lora_studio.workspace.job_folder import JobFolder, JobState, JobStatus, Report
from lora_studio.workspace.project import Home

MAIN_FILE = Path(__file__).with_name("__main__.py")
STATUS_SECONDS = 0.5
SAME_SIGNAL_SECONDS = 1.0  # a launcher passes on the interrupt that the terminal has sent to all
Listener = Callable[[dict[str, Any]], None]


class Stage(Protocol):
    """What does the work of one kind of job; its result has a field `stopped`."""

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
        """Do the job, or as much of it as `should_stop` lets it."""


def stage_for(job: AnyJob) -> Stage:
    """The function that does this kind of job; imported only now, since it may bring torch."""
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


def start(folder: JobFolder, home: Home, *, resume: bool = False) -> None:
    """Start a detached worker process for the job; it outlives this process.

    Writes the state "queued" before it returns, so that the job counts as active from the first moment. A job for
    several processes is started by accelerate's launcher. The worker runs `lora_studio/__main__.py` by its path, which
    works from any working directory and without an installed package.
    """
    command = [sys.executable, *_launcher_arguments(folder.job()), str(MAIN_FILE)]
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
    with disk_errors(folder.log_file), folder.log_file.open("ab") as log:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            cwd=folder.path,
        )
    threading.Thread(target=_reap, args=(process, folder, own.pid), daemon=True, name=f"reap {process.pid}").start()


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
    """Wait for a worker; if it ended before it took over the status, say so there."""
    exit_status = process.wait()
    if folder.status().pid == starter:
        folder.update_status(
            state=JobState.FAILED,
            message=f"The worker process could not start (exit status {exit_status}).",
            remedy=f"Its last lines are in {folder.log_file.name}.",
        )


def execute(folder: JobFolder, *, home: Home, resume: bool = False, listen: Listener = lambda event: None) -> BaseModel:
    """Do the job of `folder` in this process and return the stage's result.

    `listen` hears every event as it is written. Raises StudioError; the status then says failed, with the remedy.
    """
    job = folder.job()
    _share_cores()
    _hush_libraries()
    started = time.time()
    progress = _Progress(folder, listen)
    folder.set_status(
        JobStatus(
            state=JobState.QUEUED,
            message="Waiting for its turn",
            pid=os.getpid(),
            pid_started=psutil.Process().create_time(),
            started_at=started,
        )
    )
    try:
        with (
            stop_on_signals(folder),
            hold_gpu(home.queue, folder.name, should_stop=folder.stop_requested, on_wait=progress.waits),
        ):
            folder.update_status(state=JobState.RUNNING, message="Starting", started_at=time.time())
            with translated(job):
                result = stage_for(job)(
                    job, folder, home=home, report=progress, should_stop=folder.stop_requested, resume=resume
                )
    except StopRequested:
        progress.ends(JobState.STOPPED, "Stopped before its turn came.", "Resume puts it back into the queue.")
        raise StudioError("Stopped before its turn came.", "Start it again when you like.", code="stopped") from None
    except StudioError as error:
        progress.ends(JobState.FAILED, error.message, error.remedy, code=error.code)
        raise
    except KeyboardInterrupt:
        progress.ends(JobState.FAILED, "Interrupted at once.", "Resume goes on from the last checkpoint.")
        raise
    except Exception as error:
        progress.ends(
            JobState.FAILED,
            f"{type(error).__name__}: {error}",
            f"This should not happen. The traceback is in {folder.log_file.name}.",
            code="unexpected",
        )
        raise
    finally:
        folder.clear_stop()
    if getattr(result, "stopped", False):
        progress.ends(JobState.STOPPED, "Stopped; everything up to here is kept.", "Resume goes on from here.")
    else:
        folder.finish(result.model_dump(mode="json"))
        progress.ends(JobState.DONE, "Done")
    return result


def _share_cores() -> None:
    """Let idle OpenMP threads sleep instead of spin, if torch is not loaded yet.

    Where other programs share the cores, spinning threads wait for one another's time slices: a training step on two
    busy cores took 20 s with them and 0.3 s without.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def _hush_libraries() -> None:
    """On CPUs bitsandbytes warns that an optional 4-bit kernel is missing, which nothing here uses."""
    logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)


def run_detached(path: Path, home: Home, *, resume: bool = False) -> int:
    """The body of a worker process; returns its exit status. What went wrong stands in the status and the log.

    Of the processes that a launcher started for one job, the first does this, the others `follow` it.
    """
    try:
        if int(os.environ.get("RANK", "0")) > 0:
            follow(JobFolder(path), home=home, resume=resume)
        else:
            execute(JobFolder(path), home=home, resume=resume)
    except StudioError as error:
        traceback.print_exc()
        return error.exit_status
    except Exception:
        traceback.print_exc()
        return 1
    return 0


def follow(folder: JobFolder, *, home: Home, resume: bool = False) -> None:
    """The part of a further process in a training run: it computes, and leaves turn, status and events to the first.

    Signals are the first one's to answer: it ends the work for all.
    """
    job = folder.job()
    if not isinstance(job, TrainJob):
        return
    _share_cores()
    _hush_libraries()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    stage_for(job)(job, folder, home=home, report=_silent, should_stop=folder.stop_requested, resume=resume)


def _silent(event: str, /, **values: Any) -> None:
    pass


@contextmanager
def stop_on_signals(folder: JobFolder) -> Iterator[None]:
    """Take the first interrupt or termination as a request to stop with a checkpoint; a second one ends at once."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    asked: list[float] = []

    def ask(number: int, frame: object) -> None:
        folder.request_stop()
        asked.append(time.monotonic())
        if asked[-1] - asked[0] > SAME_SIGNAL_SECONDS:
            signal.signal(number, previous[number])
            signal.raise_signal(number)

    previous: dict[int, Any] = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


@contextmanager
def translated(job: AnyJob) -> Iterator[None]:
    """Turn what the libraries raise when memory or disk runs out into errors with a remedy."""
    try:
        yield
    except StudioError:
        raise
    except Exception as error:
        if is_out_of_memory(error):
            raise OutOfMemoryError(
                "The memory was not enough.",
                next_saving(job.recipe) if isinstance(job, TrainJob) else "Close other programs that use the GPU.",
                code="out_of_memory",
            ) from error
        if isinstance(error, ImportError):
            raise incompatible_libraries_error(error) from error
        if isinstance(error, FileNotFoundError):
            raise JobError(
                f"A file that the work needs has vanished: {error.filename or error}.",
                "Put it back, then resume: everything up to the last step is kept. What lies in the studio's cache "
                "folder is made anew.",
                code="file_vanished",
            ) from error
        if _is_damaged_file(error):
            raise JobError(
                f"A file that the work needs is damaged: {error}.",
                "Resume: everything up to the last step is kept, and a damaged file of the cache is made anew.",
                code="file_damaged",
            ) from error
        if isinstance(error, OSError):
            with disk_errors(Path(error.filename or "a file")):
                raise
        raise


def _is_damaged_file(error: Exception) -> bool:
    """Whether a safetensors file could not be read."""
    safetensors = sys.modules.get("safetensors")
    return safetensors is not None and isinstance(error, safetensors.SafetensorError)


class _Progress:
    """Writes events, and what they say of the progress into the status, at most twice a second."""

    def __init__(self, folder: JobFolder, listen: Listener) -> None:
        self.folder = folder
        self.listen = listen
        self.written = 0.0
        self.pending: dict[str, Any] = {}

    def __call__(self, event: str, /, **values: Any) -> None:
        record = self.folder.emit(event, **values)
        news: dict[str, Any] = {name: values[name] for name in ("total", "seconds_left", "message") if name in values}
        if event in ("warning", "hint", "image_failed"):
            news.pop("message", None)
        if (done := values.get("done", values.get("step") if event == "step" else None)) is not None:
            news["done"] = done
        self.pending |= news
        if self.pending and time.monotonic() - self.written > STATUS_SECONDS:
            self.folder.update_status(**self.pending)
            self.pending, self.written = {}, time.monotonic()
        self.listen(record)

    def waits(self, ahead: int, label: str) -> None:
        """Say who has the GPU."""
        self("waiting", message=f"Waits for {label}" + (f" and {ahead - 1} more" if ahead > 1 else ""))

    def ends(self, state: JobState, message: str, remedy: str = "", **values: Any) -> None:
        """Write the last event and the final status; a full disk must not hide why the job ended."""
        try:
            record = self.folder.emit(state.value, message=message, remedy=remedy, **values)
            last = {**self.pending, "state": state, "message": message, "remedy": remedy, "seconds_left": None}
            self.folder.update_status(**last)
        except (DiskFullError, InputError, OSError):
            traceback.print_exc()
            return
        self.listen(record)
