"""Follow a training on Hugging Face Jobs: the stage of a job folder that has a remote.json.

It uploads the inputs and starts the job, unless that was done; then it reads the log of the job into the events of the
folder until the job ends, and downloads the results. If it is closed, a resume continues where it was.
"""

from __future__ import annotations

import json
import queue
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from lora_studio.errors import InputError, JobError, StopRequested, StudioError
from lora_studio.events import (
    DoneEvent,
    Event,
    FailedEvent,
    PhaseEvent,
    Report,
    StepEvent,
    StoppedEvent,
    WarningEvent,
    parse_event,
)
from lora_studio.remote.inputs import collect_inputs
from lora_studio.remote.outputs import download_outputs, result_of
from lora_studio.remote.service import JobsService
from lora_studio.settings.hf_jobs import HfJobsSettings
from lora_studio.settings.job_specs import TrainJob
from lora_studio.workspace.job_folder import JobFolder
from lora_studio.workspace.project import Home
from lora_studio.workspace.remote_run import RemoteRun

if TYPE_CHECKING:
    from huggingface_hub import JobInfo

    from lora_studio.training.train import TrainResult

LOOK_SECONDS = 0.5  # between looks at a stop request
STAGE_SECONDS = 15.0  # between looks at the stage of the job
FIRST_WAIT_SECONDS = 2.0  # before the first retry without a connection; each of the next waits twice as long
MAX_WAIT_SECONDS = 120.0
RETRIES = 36  # without an answer in between: a good hour
SAVE_SECONDS = 1.0
ENDED = ("COMPLETED", "CANCELED", "ERROR", "DELETED")


def train_on_hf_jobs(
    job: TrainJob,
    folder: JobFolder,
    *,
    home: Home,
    report: Report,
    should_stop: Callable[[], bool],
    resume: bool = False,
) -> TrainResult:
    """Train a job on Hugging Face Jobs into its folder and return the result; a stop request cancels the job.

    Raises InputError if the service refuses it, JobError if it fails or cannot be followed.
    """
    service = JobsService.connect()
    remote = RemoteRun.read(folder.path)
    if remote.log_bytes is not None:
        end = remote.log_bytes
        folder.drop_events(lambda event, offset: offset >= end and not isinstance(event, FailedEvent | StoppedEvent))
    if not remote.job_id:
        _start(job, folder.path, service, remote, report, should_stop)
    follower = _Follower(service, folder, remote, report, should_stop)
    try:
        info = follower.follow()
    finally:
        follower.save()
    return _result(folder, service, remote, follower, info)


def _start(
    job: TrainJob,
    path: Path,
    service: JobsService,
    remote: RemoteRun,
    report: Report,
    should_stop: Callable[[], bool],
) -> None:
    """Upload the inputs and start the job, or find the one that was started before; record each step."""
    remote.namespace = service.namespace
    remote.repo = remote.repo or f"{service.namespace}/lora-studio-{remote.key}"
    remote.write(path)
    started = service.find(remote.key)
    if started is None:
        files = collect_inputs(job)
        size = sum(item.stat().st_size if isinstance(item, Path) else len(item) for item in files.values())
        report(
            PhaseEvent(
                message=f"Uploading {len(files)} files ({size / 1e6:.1f} MB) to the private repository {remote.repo}"
            )
        )
        service.upload(remote.repo, files)
        if should_stop():
            raise StopRequested
        started = service.start(remote.repo, remote.key, HfJobsSettings(flavor=remote.flavor, timeout=remote.timeout))
    remote.job_id, remote.url = started.id, started.url
    remote.write(path)


@dataclass
class _Follower:
    """Reads the log of a job into the events of its folder. `failed` is the last event of a training that failed."""

    service: JobsService
    folder: JobFolder
    remote: RemoteRun
    report: Report
    should_stop: Callable[[], bool]
    failed: FailedEvent | None = None
    step: StepEvent | None = None
    has_tried_to_cancel: bool = False
    cancelled: bool = False
    has_gap: bool = False
    is_connected: bool = False
    saved: float = 0.0
    phase: str = ""

    def follow(self) -> JobInfo:
        """Read the log until the job has ended, and return its last state. Raises JobError if it cannot be reached."""
        failures = 0
        while True:
            before = self.remote.events
            try:
                info = self._read_log()
                if info.status.stage in ENDED:
                    self._drain()
                    return info
                failures = 0
            except JobError as error:
                failures = 1 if self.remote.events > before else failures + 1
                if error.code != "jobs_unreachable" or failures > RETRIES:
                    raise
            self._pause(self._lost_wait(failures) if failures else STAGE_SECONDS)

    def _lost_wait(self, failures: int) -> float:
        """Report that the connection is lost, and return the seconds until the next attempt."""
        self.is_connected = False
        wait: float = min(MAX_WAIT_SECONDS, FIRST_WAIT_SECONDS * 2 ** (failures - 1))
        message = f"No connection to Hugging Face Jobs: next attempt in {wait:.0f} s. The job there continues"
        self.report(PhaseEvent(message=message))
        return wait

    def _read_log(self) -> JobInfo:
        """Read the log once, until it ends or breaks or the job has ended, and return the state of the job."""
        lines: queue.Queue[str | None] = queue.Queue()

        def read() -> None:
            try:
                with suppress(StudioError):
                    for line in self.service.logs(self.remote.job_id):
                        lines.put(line)
            finally:
                lines.put(None)

        info = self._inspect()
        if info.status.stage not in ENDED:
            self._cancel_if_asked()
        if info.status.stage == "SCHEDULING":
            return info
        threading.Thread(target=read, daemon=True, name=f"log of {self.remote.job_id}").start()
        looked = time.monotonic()
        while True:
            self._cancel_if_asked()
            try:
                line = lines.get(timeout=LOOK_SECONDS)
            except queue.Empty:
                if time.monotonic() - looked > STAGE_SECONDS:
                    info, looked = self._inspect(), time.monotonic()
                    if info.status.stage in ENDED:
                        return info
                continue
            if line is None:
                return self._inspect()
            self._take(line)

    def _drain(self) -> None:
        """Read what the log has after the end of the job; without it the files of the job still are the result."""
        with suppress(StudioError):
            for line in self.service.logs(self.remote.job_id):
                self._take(line)

    def _inspect(self) -> JobInfo:
        info = self.service.inspect(self.remote.job_id)
        if not self.is_connected:
            self.is_connected = True
            self.report(PhaseEvent(message=f"Following {self.remote.url}"))
        if info.status.stage == "SCHEDULING" and self.phase != info.status.stage:
            self.report(PhaseEvent(message=f"Waiting for {self.remote.flavor} on Hugging Face Jobs"))
        self.phase = info.status.stage
        return info

    def _pause(self, seconds: float) -> None:
        """Wait, at most until the first request to stop."""
        end = time.monotonic() + seconds
        while time.monotonic() < end and (self.has_tried_to_cancel or not self.should_stop()):
            time.sleep(min(LOOK_SECONDS, seconds))

    def _cancel_if_asked(self) -> None:
        """Cancel the job once, if that is requested; one that has ended meanwhile cannot be, and needs not."""
        if self.cancelled or not self.should_stop():
            return
        self.has_tried_to_cancel = True
        try:
            self.service.cancel(self.remote.job_id)
        except InputError:
            if self.service.inspect(self.remote.job_id).status.stage not in ENDED:
                raise
        self.cancelled = True

    def _take(self, line: str) -> None:
        """Report the event of a line of the log, once; other lines go into worker.log."""
        line = self.service.without_token(line)
        number, event = _numbered_event(line)
        if number is None:
            with self.folder.log_file.open("a", encoding="utf-8") as log:
                log.write(line.rstrip("\n") + "\n")
            return
        if number <= self.remote.events:
            return
        if number > self.remote.events + 1 and not self.has_gap:
            self.has_gap = True
            missing = f"{number - self.remote.events - 1} events of the job are missing in its log."
            self.report(
                WarningEvent(code="jobs_log", message=missing, why="The curve has a gap; the LoRA is complete.")
            )
        self.remote.events = number
        match event:
            case FailedEvent():
                self.failed = event
            case None | DoneEvent() | StoppedEvent():
                pass  # the folder gets its own after the download
            case _:
                self.step = event if isinstance(event, StepEvent) else self.step
                self.report(event)
        if time.monotonic() - self.saved > SAVE_SECONDS:
            self.save()

    def save(self) -> None:
        """Record how far the log was read."""
        self.remote.log_bytes, self.saved = self.folder.sync_events(), time.monotonic()
        self.remote.write(self.folder.path)


def _numbered_event(line: str) -> tuple[int | None, Event | None]:
    """Return the number and the event of a line of a job's log; None for a line of another program."""
    try:
        number = json.loads(line)["n"]
        return (number, parse_event(line)) if isinstance(number, int) else (None, None)
    except (ValueError, KeyError, TypeError):
        return None, None


def _result(
    folder: JobFolder, service: JobsService, remote: RemoteRun, follower: _Follower, info: JobInfo
) -> TrainResult:
    """Download the files of a job that has ended and return the result of the training; raise JobError without one."""
    from lora_studio.training.train import TrainResult

    follower.report(PhaseEvent(message=f"Downloading from {remote.repo}"))
    outputs = download_outputs(service, remote.repo, folder.path)
    found = result_of(outputs, folder.path) if outputs else None
    if found is not None:
        return TrainResult.model_validate(found)
    step = follower.step
    if follower.cancelled:
        return TrainResult(
            run=folder.path,
            lora=None,
            steps=step.step if step else 0,
            epochs=step.epoch - 1 if step else 0,
            final_loss=step.loss if step else None,
            seconds=0.0,
            stopped=True,
        )
    if follower.failed is not None:
        failed = follower.failed
        raise JobError(failed.message, failed.remedy, code=failed.code)
    raise _end_error(remote, info)


def _end_error(remote: RemoteRun, info: JobInfo) -> JobError:
    """Return the error of a job that ended without a result: its time limit, a cancellation, or a failure."""
    stage, message = str(info.status.stage), info.status.message or ""
    limit = HfJobsSettings(flavor=remote.flavor, timeout=remote.timeout).timeout_seconds
    seconds = info.durations.running_secs if info.durations else None
    saved = "Saved checkpoints are in the checkpoints folder of the run."
    if "timeout" in message.lower() or (stage == "ERROR" and seconds is not None and seconds >= limit):
        return JobError(
            f"timeout is {remote.timeout}: the service ended the job then, before the training was complete.",
            f"{saved} Start a new run with a longer --timeout, or with one of them as --network-weights.",
            code="jobs_timeout",
        )
    if stage in ("CANCELED", "DELETED"):
        return JobError(
            f"The job was cancelled on the service ({remote.url}).", f"{saved} Start a new run.", code="jobs_cancelled"
        )
    reason = f": {message.rstrip('.')}" if message else ""
    return JobError(
        f"The job on {remote.flavor} ended with {stage}{reason}.",
        f"The end of worker.log has its output, {remote.url} all of it. {saved}",
        code="jobs_failed",
    )
