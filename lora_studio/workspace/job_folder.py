"""Job folders: one piece of work of a worker process, as files that anybody can read.

```
001-NAME/
  job.toml         what was asked for, written before the first step
  environment.json versions, device, seed of the machine that did it
  status.json      where it stands now (replaced atomically)
  events.jsonl     one JSON object a line, flushed a line at a time: {"event": ..., "time": ...}
  worker.log       what the worker process printed
  stop             its presence asks the worker to end at the next step, with a checkpoint
  result.json      written last: its existence means that the work is complete
```

The worker writes, everybody else reads and may write `stop`. A status that says "running" while its process is gone is
read as "failed", so no job seems to run for ever.
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
from typing import Any, Protocol

import psutil
from pydantic import BaseModel, ValidationError

from lora_studio.errors import InputError, disk_errors
from lora_studio.files import write_bytes, write_json, write_text
from lora_studio.settings.job_specs import AnyJob, job_from_toml, job_to_toml


class Report(Protocol):
    """How a piece of work tells what it does: `report("step", step=3, total=100, loss=0.1)`.

    Values are JSON. Of every event, `done` (or `step`), `total`, `seconds_left` and `message` go to the status too.
    """

    def __call__(self, event: str, /, **values: Any) -> None:
        """Tell one event."""


class JobState(StrEnum):
    """Where a job stands."""

    CREATED = "created"
    QUEUED = "queued"
    RUNNING = "running"
    DONE = "done"
    STOPPED = "stopped"
    FAILED = "failed"

    @property
    def is_active(self) -> bool:
        """True while a worker process is, or should be, at it."""
        return self in (JobState.QUEUED, JobState.RUNNING)


class JobStatus(BaseModel):
    """The content of status.json. `done` of `total` are steps, images or cells, by the kind of job."""

    state: JobState = JobState.CREATED
    message: str = ""
    remedy: str = ""
    done: int = 0
    total: int = 0
    seconds_left: float | None = None
    started_at: float | None = None
    updated_at: float = 0.0
    pid: int | None = None
    pid_started: float | None = None


@dataclass(frozen=True)
class JobFolder:
    """The reader and writer of one job folder."""

    path: Path

    @classmethod
    def create(cls, path: Path, job: AnyJob) -> JobFolder:
        """Make the folder with its job.toml; raises InputError if the folder already holds a job."""
        folder = cls(path)
        with disk_errors(path):
            path.mkdir(parents=True, exist_ok=True)
        if folder.job_file.exists():
            raise InputError(f"{path} already holds a job.", "Choose another name, or resume it.", code="job_exists")
        write_text(folder.job_file, job_to_toml(job))
        folder.set_status(JobStatus())
        return folder

    @property
    def name(self) -> str:
        """The folder's own name, like `003-inkstamp`."""
        return self.path.name

    @property
    def job_file(self) -> Path:
        """job.toml."""
        return self.path / "job.toml"

    @property
    def log_file(self) -> Path:
        """worker.log."""
        return self.path / "worker.log"

    @property
    def events_file(self) -> Path:
        """events.jsonl."""
        return self.path / "events.jsonl"

    @property
    def exists(self) -> bool:
        """Whether this folder holds a job."""
        return self.job_file.is_file()

    def job(self) -> AnyJob:
        """What was asked for; raises InputError if there is no job or it cannot be read."""
        if not self.exists:
            raise InputError(f"{self.path} holds no job.toml.", "Give the folder of a run.", code="no_job")
        return job_from_toml(self.job_file.read_text("utf-8"), str(self.job_file))

    def status(self) -> JobStatus:
        """Where the job stands; a job whose worker is gone without a word is reported as failed."""
        try:
            status = JobStatus.model_validate_json((self.path / "status.json").read_bytes())
        except (OSError, ValidationError):
            return JobStatus()
        if status.state.is_active and not is_process_alive(status.pid, status.pid_started):
            return status.model_copy(
                update={
                    "state": JobState.FAILED,
                    "seconds_left": None,
                    "message": "The worker process ended without a word; the system may have run out of memory.",
                    "remedy": f"Resume continues from the last checkpoint. Its last lines are in {self.log_file.name}.",
                }
            )
        return status

    def set_status(self, status: JobStatus) -> None:
        """Replace status.json."""
        write_text(
            self.path / "status.json", status.model_copy(update={"updated_at": time.time()}).model_dump_json(indent=1)
        )

    def update_status(self, **changes: Any) -> JobStatus:
        """Replace some fields of status.json and return the new status."""
        status = self.status().model_copy(update=changes)
        self.set_status(status)
        return status

    def emit(self, event: str, **values: Any) -> dict[str, Any]:
        """Append one event, flushed; returns it with its time. Values must be JSON; NaN is written as null."""
        record = {"event": event, "time": round(time.time(), 3)} | values
        try:
            line = json.dumps(record, ensure_ascii=False, allow_nan=False)
        except ValueError:
            line = json.dumps(_without_nan(record), ensure_ascii=False)
        with disk_errors(self.events_file), self.events_file.open("a+b") as file:
            if file.tell():
                file.seek(-1, os.SEEK_END)
                if file.read(1) != b"\n":
                    line = "\n" + line  # a line that was torn when the machine died spoils no other
            file.write(line.encode() + b"\n")
        return record

    def events(self, offset: int = 0) -> tuple[list[dict[str, Any]], int]:
        """Complete events after byte `offset`, and the offset to go on from. A torn last line waits for its end."""
        try:
            with self.events_file.open("rb") as file:
                file.seek(offset)
                data = file.read()
        except FileNotFoundError:
            return [], offset
        end = data.rfind(b"\n") + 1
        records = []
        for line in data[:end].splitlines():
            try:
                records.append(json.loads(line))
            except ValueError:
                continue
        return records, offset + end

    def sync_events(self) -> int:
        """Flush the events to disk and return their length in bytes."""
        try:
            with disk_errors(self.events_file), self.events_file.open("rb+") as file:
                os.fsync(file.fileno())
                return file.seek(0, os.SEEK_END)
        except FileNotFoundError:
            return 0

    def drop_events(self, unwanted: Callable[[dict[str, Any], int], bool]) -> None:
        """Rewrite the log without torn lines and the events for which `unwanted(event, byte offset)` is true."""
        try:
            data = self.events_file.read_bytes()
        except FileNotFoundError:
            return
        kept, place = [], 0
        for line in data.splitlines(keepends=True):
            with suppress(ValueError):
                if not unwanted(json.loads(line), place):
                    kept.append(line if line.endswith(b"\n") else line + b"\n")
            place += len(line)
        if (left := b"".join(kept)) != data:
            write_bytes(self.events_file, left)

    def request_stop(self) -> None:
        """Ask the worker to end at its next step, with a checkpoint."""
        with disk_errors(self.path):
            (self.path / "stop").touch()

    def clear_stop(self) -> None:
        """Withdraw a stop, as a resume does."""
        (self.path / "stop").unlink(missing_ok=True)

    def stop_requested(self) -> bool:
        """Whether somebody asked the worker to end."""
        return (self.path / "stop").exists()

    def finish(self, result: dict[str, Any]) -> None:
        """Write result.json: the marker that the work is complete. Call it last."""
        write_json(self.path / "result.json", result)

    def result(self) -> dict[str, Any] | None:
        """The result, or None while the work is not complete."""
        try:
            value = json.loads((self.path / "result.json").read_bytes())
        except (OSError, ValueError):
            return None
        return value if isinstance(value, dict) else None

    def log_tail(self, lines: int = 40) -> str:
        """The last lines that the worker printed."""
        try:
            return "\n".join(self.log_file.read_text("utf-8", errors="replace").splitlines()[-lines:])
        except OSError:
            return ""


def numbered_folder(parent: Path, name: str = "") -> Path:
    """The next free folder `001-NAME` (or `001` without a name) below `parent`; created, so that it stays ours."""
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
    """All job folders directly below `parent`, oldest first."""
    if parent.is_dir():
        for path in sorted(parent.iterdir()):
            if (path / "job.toml").is_file():
                yield JobFolder(path)


def slugify(name: str) -> str:
    """A file name made of a free text: word characters and dashes, at most 60."""
    return re.sub(r"[^\w]+", "-", name.strip()).strip("-")[:60]


def is_process_alive(pid: int | None, started: float | None) -> bool:
    """Whether the process `pid` that started at `started` (seconds since 1970) still runs; numbers are reused."""
    if pid is None:
        return False
    try:
        process = psutil.Process(pid)
        return process.status() != psutil.STATUS_ZOMBIE and (
            started is None or abs(process.create_time() - started) < 1.0
        )
    except psutil.Error:
        return False


def _without_nan(value: Any) -> Any:
    """The same JSON value with null for every number that is not finite."""
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(item) for item in value]
    return None if isinstance(value, float) and not isfinite(value) else value
