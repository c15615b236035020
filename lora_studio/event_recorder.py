"""Write the events of a job, and keep its status up to date."""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from lora_studio.errors import DiskFullError, InputError
from lora_studio.events import (
    DoneEvent,
    Event,
    FailedEvent,
    HintEvent,
    ImageFailedEvent,
    StepEvent,
    StoppedEvent,
    WaitingEvent,
    WarningEvent,
)
from lora_studio.workspace.job_folder import JobFolder, JobState
from lora_studio.workspace.notify import EndedJob, notify
from lora_studio.workspace.project import Home

STATUS_SECONDS = 0.5
STATUS_FIELDS = {"done", "total", "unit", "seconds_left", "message"}  # of events, also in status.json
Listener = Callable[[Event], None]


class EventRecorder:
    """Writes events, and updates the status from them at most twice per second."""

    def __init__(self, folder: JobFolder, listen: Listener, home: Home) -> None:
        self.folder = folder
        self.home = home
        self.begun = time.monotonic()
        self.listen = listen
        self.written = 0.0
        self.pending: dict[str, Any] = {}

    def __call__(self, event: Event) -> None:
        """Write an event, and pass it on."""
        event = self.folder.emit(event)
        self.pending |= _status_changes(event)
        if self.pending and time.monotonic() - self.written > STATUS_SECONDS:
            self.folder.update_status(**self.pending)
            self.pending, self.written = {}, time.monotonic()
        self.listen(event)

    def report_wait(self, ahead: int, label: str) -> None:
        """Report which job has the GPU, and how many more are ahead."""
        self(WaitingEvent(message=f"Waiting for {label}" + (f" and {ahead - 1} more" if ahead > 1 else "")))

    def finish(self, state: JobState, event: DoneEvent | StoppedEvent | FailedEvent) -> None:
        """Notify the user, write the last event and the final status; a full disk must not hide why the job ended."""
        try:
            ended = EndedJob(self.folder.name, state.value, self.folder.path, time.monotonic() - self.begun)
            for problem in notify(self.home.notify_file, ended):
                self(WarningEvent(code="notify_failed", message=problem, why="The job itself is not affected."))
            written = self.folder.emit(event)
            last = {"state": state, "message": event.message, "remedy": event.remedy, "seconds_left": None}
            last["code"] = "" if isinstance(event, DoneEvent) else event.code
            self.folder.update_status(**self.pending | last)
        except (DiskFullError, InputError, OSError):
            traceback.print_exc()
            return
        self.listen(written)


def _status_changes(event: Event) -> dict[str, Any]:
    """Return the fields of status.json that an event changes."""
    fields = event.model_dump(include=STATUS_FIELDS, exclude_unset=True)
    match event:
        case StepEvent():
            fields |= {"done": event.step, "unit": ""}
        case WarningEvent() | HintEvent() | ImageFailedEvent():
            fields.pop("message")
    return fields


def stopped_event(result: BaseModel, folder: JobFolder) -> StoppedEvent:
    """Return the last event of a job that was stopped, by the user or by the losses of its training."""
    stop = getattr(result, "automatic_stop", None)
    if stop is None:
        return StoppedEvent(message="Stopped; everything so far is saved.", remedy=folder.stopped_remedy())
    lora: Path | None = getattr(result, "lora", None)
    kept = f"Its result is {lora.name}. " if lora else ""
    return StoppedEvent(
        message=stop.message,
        remedy=f"{kept}Resume continues from here; this sign does not stop it again.",
        code=stop.code,
        path=str(lora.relative_to(folder.path)) if lora else None,
    )
