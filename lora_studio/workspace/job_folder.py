"""Job folders: the settings, progress and results of one job as plain files.

```
001-NAME/
  job.toml         the settings, written before the first step
  environment.json versions, device and seed of the machine that ran it
  remote.json      of a training on Hugging Face Jobs: its job and repository, see remote_run
  status.json      current state and progress, replaced atomically
  events.jsonl     the events of lora_studio.events, one JSON object per line, flushed line by line
  dataset.jsonl    of a training: its images with their hashes and captions
  image_losses.json  of a training: the loss of each image, see training.reporting.loss_by_image
  worker.log       output of the worker process
  stop             if it exists, the worker ends after the current step and saves its state
  sample           if it exists, a training draws its samples after the current step and removes it
  save             if it exists, a training saves its LoRA and its state after the current step and removes it
  notes.json       the user's notes and stars, see run_notes
  stars.json       of a sweep: the images that the user starred, see cell_stars
  result.json      written last: if it exists, the job is complete
```

Only the worker writes; every other process reads, and may write notes.json and stars.json and create `stop`, `sample`
and `save`. A state "running" whose process is gone is read as "failed", so that no job seems to run endlessly.
"""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum
from math import isfinite
from pathlib import Path
from typing import Any

import psutil
from pydantic import BaseModel, ValidationError

from lora_studio.errors import InputError, disk_errors
from lora_studio.events import Event, parse_event
from lora_studio.files import cached_by_stamp, write_bytes, write_json, write_text
from lora_studio.settings.job_specs import AnyJob, job_from_toml, job_to_toml
from lora_studio.workspace.job_paths import with_found_paths, with_stored_paths
from lora_studio.workspace.remote_run import is_remote

DATASET_FILE = "dataset.jsonl"
IMAGE_LOSSES_FILE = "image_losses.json"

# What is left after a job ended early, by its kind.
RESUME_REMEDIES = {
    "train": "Resume continues from the last saved state.",
    "tag": "Resume tags the remaining images; undo restores the previous captions.",
    "sweep": "Resume draws the missing images; those that are complete are kept.",
    "download": "Start the download again: it continues with what is missing.",
}


MAX_CACHED_JOBS = 4096


class JobState(StrEnum):
    """The state of a job. A waiting one is in the run queue and has no process; a queued one waits for the GPU."""

    CREATED = "created"
    WAITING = "waiting"
    QUEUED = "queued"
    RUNNING = "running"
    DONE = "done"
    STOPPED = "stopped"
    FAILED = "failed"

    @property
    def is_active(self) -> bool:
        """True while a worker process runs the job or waits for the GPU."""
        return self in (JobState.QUEUED, JobState.RUNNING)


class JobStatus(BaseModel):
    """The content of status.json. `done` and `total` count steps, images, cells or bytes, by the kind of job.

    `unit` says what a phase before the first step counts: images, captions or bytes. `code` is that of the error of a
    failed job, and says why a run stopped by itself: plateau, rise or break.
    """

    state: JobState = JobState.CREATED
    message: str = ""
    remedy: str = ""
    code: str = ""
    done: int = 0
    total: int = 0
    unit: str = ""
    seconds_left: float | None = None
    started_at: float | None = None
    updated_at: float = 0.0
    pid: int | None = None
    pid_started: float | None = None


@cached_by_stamp(MAX_CACHED_JOBS)
def _parse_job(job_file: Path) -> AnyJob:
    """Return the content of a job.toml, which callers do not change: a project with 200 runs reads each many times."""
    return job_from_toml(job_file.read_text("utf-8"), str(job_file))


@dataclass(frozen=True)
class JobFolder:
    """Reads and writes one job folder."""

    path: Path

    @classmethod
    def create(cls, path: Path, job: AnyJob) -> JobFolder:
        """Create the folder with its job.toml; raise InputError if it already contains a job."""
        folder = cls(path)
        with disk_errors(path):
            path.mkdir(parents=True, exist_ok=True)
        if folder.job_file.exists():
            raise InputError(f"{path} already contains a job.", "Choose another name, or resume it.", code="job_exists")
        write_text(folder.job_file, job_to_toml(with_stored_paths(job, path)))
        folder.set_status(JobStatus())
        return folder

    @staticmethod
    def is_job_file(file: Path) -> bool:
        """Return whether a file is the job.toml of a job folder, rather than one that was written by hand."""
        return file.name == "job.toml" and (file.parent / "status.json").is_file()

    @property
    def name(self) -> str:
        """The name of the folder, like `003-inkstamp`."""
        return self.path.name

    @property
    def job_file(self) -> Path:
        """The path of job.toml."""
        return self.path / "job.toml"

    @property
    def log_file(self) -> Path:
        """The path of worker.log."""
        return self.path / "worker.log"

    @property
    def events_file(self) -> Path:
        """The path of events.jsonl."""
        return self.path / "events.jsonl"

    @property
    def exists(self) -> bool:
        """True if the folder contains a job."""
        return self.job_file.is_file()

    def job(self) -> AnyJob:
        """Read job.toml, with absolute paths; raise InputError if it is missing or cannot be read."""
        job = self.stored_job()
        try:
            return with_found_paths(job, self.path)
        except (OSError, ValueError) as error:  # a path with a NUL character
            raise self._unreadable(error) from error

    def stored_job(self) -> AnyJob:
        """Read job.toml, with paths as they are in it; raise InputError if it is missing or cannot be read."""
        if not self.exists:
            raise InputError(f"{self.path} does not contain a job.toml.", "Give the folder of a job.", code="no_job")
        try:
            return _parse_job(self.job_file)
        except (OSError, ValueError) as error:  # not UTF-8
            raise self._unreadable(error) from error

    def _unreadable(self, error: Exception) -> InputError:
        return InputError(f"{self.job_file} cannot be read: {error}.", "Correct it.", code="job_file")

    def status(self) -> JobStatus:
        """Read status.json; a job whose worker process died is returned as failed."""
        status = self._stored_status()
        if status is None:
            return self._status_without_file()
        if _has_lost_worker(status):
            return status.model_copy(
                update={
                    "state": JobState.FAILED,
                    "seconds_left": None,
                    "message": "The worker process died unexpectedly; the system may have run out of memory.",
                    "remedy": f"{self.resume_remedy()} See the end of {self.log_file.name}.".strip(),
                }
            )
        return status

    def has_lost_worker(self) -> bool:
        """Return whether status.json calls the job active while its worker process does not exist."""
        status = self._stored_status()
        return status is not None and _has_lost_worker(status)

    def _stored_status(self) -> JobStatus | None:
        """Return the content of status.json; None if it is missing or damaged."""
        try:
            status = JobStatus.model_validate_json((self.path / "status.json").read_bytes())
        except (OSError, ValidationError):
            return None
        return status if "state" in status.model_fields_set else None

    def _status_without_file(self) -> JobStatus:
        """Return what the other files say about a job whose status.json is missing or damaged."""
        if self.result() is not None:
            return JobStatus(state=JobState.DONE, message="Done")
        if self.events_file.exists():
            return JobStatus(
                state=JobState.FAILED,
                message="How the job ended is unknown: its status.json is missing or damaged.",
                remedy=self.resume_remedy(),
            )
        return JobStatus()

    def resume_remedy(self) -> str:
        """Return what a resume of this kind of job does; empty if job.toml does not tell the kind."""
        if is_remote(self.path):
            return "Resume follows the job on Hugging Face Jobs again."
        try:
            found = re.search(r'^kind = "(\w+)"', self.job_file.read_text("utf-8", errors="replace"), re.MULTILINE)
        except OSError:
            return ""
        return RESUME_REMEDIES.get(found[1], "") if found else ""

    def stopped_remedy(self) -> str:
        """Return what can be done after a stop; a job on Hugging Face Jobs was cancelled by it."""
        if is_remote(self.path):
            return (
                "A cancelled job cannot be continued: start a new run, with one of the saved checkpoints as "
                "--network-weights if there is one."
            )
        return self.resume_remedy()

    def set_status(self, status: JobStatus) -> None:
        """Write status.json."""
        write_text(
            self.path / "status.json", status.model_copy(update={"updated_at": time.time()}).model_dump_json(indent=1)
        )

    def update_status(self, **changes: Any) -> JobStatus:
        """Change some fields of status.json and return the new status."""
        status = self.status().model_copy(update=changes)
        self.set_status(status)
        return status

    def emit(self, event: Event) -> Event:
        """Append an event to events.jsonl and return it with its time. NaN and infinity are written as null."""
        event = event.model_copy(update={"time": round(time.time(), 3)})
        record = event.record()
        try:
            line = json.dumps(record, ensure_ascii=False, allow_nan=False)
        except ValueError:
            line = json.dumps(_without_nan(record), ensure_ascii=False)
        with disk_errors(self.events_file), self.events_file.open("a+b") as file:
            if file.tell():
                file.seek(-1, os.SEEK_END)
                if file.read(1) != b"\n":
                    line = "\n" + line  # the last line was cut off by a crash: begin a new one
            file.write(line.encode() + b"\n")
        return event

    def events(self, offset: int = 0) -> tuple[list[Event], int]:
        """Return the events in the complete lines after byte `offset`, and the offset to read from next.

        Damaged lines and events that only later versions know are skipped.
        """
        try:
            with self.events_file.open("rb") as file:
                file.seek(offset)
                data = file.read()
        except FileNotFoundError:
            return [], offset
        end = data.rfind(b"\n") + 1
        events = []
        for line in data[:end].splitlines():
            with suppress(ValueError):
                if (event := parse_event(line)) is not None:
                    events.append(event)
        return events, offset + end

    def sync_events(self) -> int:
        """Flush events.jsonl to disk and return its length in bytes."""
        try:
            with disk_errors(self.events_file), self.events_file.open("rb+") as file:
                os.fsync(file.fileno())
                return file.seek(0, os.SEEK_END)
        except FileNotFoundError:
            return 0

    def drop_events(self, unwanted: Callable[[Event | None, int], bool]) -> None:
        """Rewrite events.jsonl without damaged lines and the events for which `unwanted(event, byte_offset)` is true.

        The event is None if only a later version knows it.
        """
        try:
            data = self.events_file.read_bytes()
        except FileNotFoundError:
            return
        kept, offset = [], 0
        for line in data.splitlines(keepends=True):
            with suppress(ValueError):
                if not unwanted(parse_event(line), offset):
                    kept.append(line if line.endswith(b"\n") else line + b"\n")
            offset += len(line)
        if (remaining := b"".join(kept)) != data:
            write_bytes(self.events_file, remaining)

    def request_stop(self) -> None:
        """Ask the worker to end after the current step and save its state."""
        with disk_errors(self.path):
            (self.path / "stop").touch()

    def clear_stop(self) -> None:
        """Withdraw a stop request; a resume does so."""
        (self.path / "stop").unlink(missing_ok=True)

    def stop_requested(self) -> bool:
        """Return True if the worker was asked to end."""
        return (self.path / "stop").exists()

    def request_samples(self) -> None:
        """Ask a training to draw its samples after the current step."""
        with disk_errors(self.path):
            (self.path / "sample").touch()

    def clear_sample_request(self) -> None:
        """Remove a request for samples: it was granted, or the job has ended."""
        (self.path / "sample").unlink(missing_ok=True)

    def samples_requested(self) -> bool:
        """Return True if a training was asked for samples that are not complete yet."""
        return (self.path / "sample").exists()

    def request_save(self) -> None:
        """Ask a training to save its LoRA and its state after the current step."""
        with disk_errors(self.path):
            (self.path / "save").touch()

    def clear_save_request(self) -> None:
        """Remove a request to save: it was granted, or the job has ended."""
        (self.path / "save").unlink(missing_ok=True)

    def save_requested(self) -> bool:
        """Return True if a training was asked to save and has not done so yet."""
        return (self.path / "save").exists()

    def write_result(self, result: dict[str, Any]) -> None:
        """Write result.json, which marks the job as complete. Call it last."""
        write_json(self.path / "result.json", result)

    def result(self) -> dict[str, Any] | None:
        """Return the result; None while the job is not complete."""
        try:
            value = json.loads((self.path / "result.json").read_bytes())
        except (OSError, ValueError):
            return None
        return value if isinstance(value, dict) else None

    def log_tail(self, lines: int = 40) -> str:
        """Return the last lines of worker.log."""
        try:
            return "\n".join(self.log_file.read_text("utf-8", errors="replace").splitlines()[-lines:])
        except OSError:
            return ""


def _has_lost_worker(status: JobStatus) -> bool:
    return status.state.is_active and not is_process_alive(status.pid, status.pid_started)


def numbered_folder(parent: Path, name: str = "") -> Path:
    """Create and return the next free folder `001-NAME` (`001` without a name) in `parent`."""
    slug = slugify(name)
    with disk_errors(parent):
        parent.mkdir(parents=True, exist_ok=True)
        taken = [int(match[0]) for path in parent.iterdir() if (match := re.match(r"\d+", path.name))]
        number = max(taken, default=0) + 1
        while True:
            folder = parent / (f"{number:03d}-{slug}" if slug else f"{number:03d}")
            try:
                folder.mkdir()
            except FileExistsError:
                number += 1
            else:
                return folder


def job_folders(parent: Path) -> Iterator[JobFolder]:
    """Yield the job folders directly in `parent`, oldest first."""
    if parent.is_dir():
        for path in sorted(parent.iterdir()):
            if (path / "job.toml").is_file():
                yield JobFolder(path)


def slugify(name: str) -> str:
    """Return a text as a file name of word characters and dashes, at most 60 of them."""
    return re.sub(r"[^\w]+", "-", name.strip()).strip("-")[:60]


def is_process_alive(pid: int | None, started: float | None) -> bool:
    """Return True if the process `pid` still runs; `started` (seconds since 1970) guards against a reused number."""
    if pid is None:
        return False
    try:
        process = psutil.Process(pid)
        return process.status() != psutil.STATUS_ZOMBIE and (
            started is None or abs(process.create_time() - started) < 1.0
        )
    except (psutil.Error, ValueError, OverflowError, TypeError):  # a damaged file has any number
        return False


def _without_nan(value: Any) -> Any:
    """Return the JSON value with None for every number that is not finite."""
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(item) for item in value]
    return None if isinstance(value, float) and not isfinite(value) else value
