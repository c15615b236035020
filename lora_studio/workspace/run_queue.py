"""The runs that wait for their turn: a list on disk, which survives a restart of the studio and of the machine.

`$LORA_STUDIO_HOME/queue.json` has the folders of the waiting runs in their order, each with the state "waiting" in its
own status.json, and the run that was started last. No process belongs to a waiting run: `worker.start_next` starts the
first one as soon as the GPU is free.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock
from pydantic import BaseModel, ValidationError

from lora_studio.errors import InputError, disk_errors
from lora_studio.files import write_text
from lora_studio.workspace.job_folder import JobFolder, JobState
from lora_studio.workspace.project import Home

LOCK_SECONDS = 30


class _Entry(BaseModel):
    """A waiting run: its folder, relative to the home if it is in it; `resume` continues from its last state."""

    folder: str
    resume: bool = False


class _Contents(BaseModel):
    """The content of queue.json. `started` is the folder of the run that was started last."""

    waiting: list[_Entry] = []
    started: str | None = None


@dataclass(frozen=True)
class QueuedRun:
    """A waiting run; `key` identifies it in the queue."""

    key: str
    folder: JobFolder
    resume: bool


@dataclass(frozen=True)
class RunQueue:
    """Reads and changes the queue of a home."""

    home: Home

    @property
    def file(self) -> Path:
        """The path of queue.json."""
        return self.home.path / "queue.json"

    def runs(self) -> list[QueuedRun]:
        """Return the waiting runs in their order; those that were deleted or started otherwise are left out."""
        return [run for run in map(self._run, self._read().waiting) if _is_waiting(run)]

    def signature(self) -> str:
        """Return a text that changes whenever the queue does."""
        try:
            return str(self.file.stat().st_mtime_ns)
        except OSError:
            return ""

    def add(self, folder: JobFolder, *, resume: bool = False) -> None:
        """Put a run at the end of the queue; raise InputError if it is active or waits already."""
        if folder.status().state in (JobState.QUEUED, JobState.RUNNING, JobState.WAITING):
            raise InputError(f"{folder.name} is running or waits already.", "Wait for it, or stop it.", code="busy")
        with self._changed() as contents:
            key = self.key(folder)
            contents.waiting = [entry for entry in contents.waiting if entry.folder != key]
            contents.waiting.append(_Entry(folder=key, resume=resume))
            folder.clear_stop()
            folder.update_status(
                state=JobState.WAITING, message="Waiting in the queue", remedy="", code="", seconds_left=None
            )

    def cancel(self, folder: JobFolder) -> None:
        """Remove a waiting run; its folder stays, and Resume puts it back. Raises InputError if it does not wait."""
        with self._changed() as contents:
            if folder.status().state is not JobState.WAITING:
                raise InputError(
                    f"{folder.name} does not wait in the queue.",
                    "Reload the page: it may have started.",
                    code="not_queued",
                )
            contents.waiting = [entry for entry in contents.waiting if entry.folder != self.key(folder)]
            folder.update_status(
                state=JobState.STOPPED, message="Removed from the queue.", remedy="Resume puts it back."
            )

    def move(self, key: str, places: int) -> None:
        """Move a waiting run by `places`, towards the front if negative. Raises InputError if it does not wait."""
        with self._changed() as contents:
            position = _position(contents, key)
            entry = contents.waiting.pop(position)
            contents.waiting.insert(max(0, position + places), entry)

    def find(self, key: str) -> QueuedRun:
        """Return the waiting run with this key; raise InputError if there is none."""
        for run in self.runs():
            if run.key == key:
                return run
        raise _unknown(key)

    def take(self, is_busy: Callable[[], bool], start: Callable[[QueuedRun], None]) -> QueuedRun | None:
        """Start the first waiting run and return it, unless the last one is active or `is_busy`; None if none starts.

        A run that cannot be started is left out of the queue, and the error is raised.
        """
        if not self.file.exists():
            return None
        with self._changed() as contents:
            waiting = [(entry, self._run(entry)) for entry in contents.waiting]
            waiting = [(entry, run) for entry, run in waiting if _is_waiting(run)]
            contents.waiting = [entry for entry, _ in waiting]
            last = JobFolder(self._path(contents.started)) if contents.started else None
            if not waiting or (last is not None and last.status().state.is_active) or is_busy():
                return None
            (entry, first), *_ = waiting
            contents.waiting.remove(entry)
            contents.started = entry.folder
            self._write(contents)
            start(first)
            return first

    @contextmanager
    def _changed(self) -> Iterator[_Contents]:
        """Return the contents to change; after the block they are written if they differ, unless it raised."""
        with disk_errors(self.file):
            self.home.queue.mkdir(parents=True, exist_ok=True)
        with FileLock(self.home.queue / "runs.lock", timeout=LOCK_SECONDS):
            contents = self._read()
            before = contents.model_copy(deep=True)
            yield contents
            if contents != before:
                self._write(contents)

    def _read(self) -> _Contents:
        try:
            return _Contents.model_validate_json(self.file.read_bytes())
        except FileNotFoundError:
            return _Contents()
        except (OSError, ValidationError) as error:
            raise InputError(
                f"{self.file} cannot be read: {error}", "Delete it: runs stay, and Resume puts them back.", code="queue"
            ) from error

    def _write(self, contents: _Contents) -> None:
        write_text(self.file, contents.model_dump_json(indent=1))

    def _run(self, entry: _Entry) -> QueuedRun:
        return QueuedRun(entry.folder, JobFolder(self._path(entry.folder)), entry.resume)

    def _path(self, folder: str) -> Path:
        return self.home.path / folder

    def key(self, folder: JobFolder) -> str:
        """Return what identifies a run in the queue: its folder, relative to the home if it is in it."""
        path = folder.path.resolve()
        return path.relative_to(self.home.path).as_posix() if path.is_relative_to(self.home.path) else str(path)


def _is_waiting(run: QueuedRun) -> bool:
    return run.folder.exists and run.folder.status().state is JobState.WAITING


def _position(contents: _Contents, key: str) -> int:
    for position, entry in enumerate(contents.waiting):
        if entry.folder == key:
            return position
    raise _unknown(key)


def _unknown(key: str) -> InputError:
    return InputError(
        f"{key!r} does not wait in the queue.", "Reload the page: it may have started.", code="not_queued"
    )
