"""A job's status as HTML, the same for training runs and tests: title, time tile, state card, log."""

from __future__ import annotations

from markupsafe import Markup

from lora_studio.ui.widgets.formatting import format_duration
from lora_studio.ui.widgets.html import Tile, Tone, card, render
from lora_studio.workspace.job_folder import JobState, JobStatus

STATE_LABELS = {
    JobState.CREATED: "not started",
    JobState.WAITING: "waiting",
    JobState.QUEUED: "queued",
    JobState.RUNNING: "running",
    JobState.DONE: "finished",
    JobState.STOPPED: "stopped",
    JobState.FAILED: "failed",
}


STOP_LABELS = {"plateau": "stopped at a plateau", "rise": "stopped at a rise", "break": "stopped when it broke"}


def state_label(status: JobStatus) -> str:
    """Return the state of a job as text, and for a run that stopped by itself what stopped it."""
    if status.state is JobState.STOPPED and status.code in STOP_LABELS:
        return STOP_LABELS[status.code]
    return STATE_LABELS[status.state]


def job_title(name: str, status: JobStatus, facts: str) -> Markup:
    """Return a job's name with its state, which static/notify.js reads, and a line of facts below."""
    state, label = STATE_LABELS[status.state], state_label(status)
    return render("job_title.html", name=name, state=state, label=label, message=status.message, facts=facts)


def time_tile(status: JobStatus, note: str) -> Tile:
    """Return the time left of a job, or the duration of one that ended."""
    if status.state is JobState.RUNNING and status.unit:
        return Tile("Time left", format_duration(status.seconds_left), "of this phase; the run's after the first step")
    if status.state is JobState.RUNNING:
        return Tile("Time left", format_duration(status.seconds_left), note)
    if status.started_at and status.updated_at and not status.state.is_active:
        return Tile("Duration", format_duration(status.updated_at - status.started_at), note)
    return Tile("Time left", "–", note)


def state_card(status: JobStatus, *, job: str, has_results: bool) -> Markup:
    """Return a card for a queued, preparing, stopped or failed job; empty for other states.

    `job` is what the job is called: "run" or "test". A running job without results is preparing.
    """
    match status.state:
        case JobState.QUEUED:
            return card("Queued", status.message, "It starts by itself. Stop removes it from the queue.")
        case JobState.WAITING:
            return card("In the queue", "It starts by itself when the runs before it have ended.")
        case JobState.RUNNING if not has_results:
            return card("Preparing", f"{status.message}{_phase_progress(status)}")
        case JobState.STOPPED if status.code:
            return card("Stopped by itself", status.message, status.remedy)
        case JobState.STOPPED:
            return card("Stopped", status.message, status.remedy, Tone.WARNING)
        case JobState.FAILED:
            return card(f"The {job} failed", status.message, status.remedy, Tone.ERROR)
    return Markup("")


def _phase_progress(status: JobStatus) -> str:
    """Return how far a phase is: ": 120 of 480 images, 1 min 04 s left"; empty if it is unknown or complete."""
    if not 0 < status.done < status.total:
        return ""
    counts = f"{status.done:,} of {status.total:,} {status.unit}".rstrip()
    if status.unit == "bytes":
        counts = f"{status.done / 1e9:.1f} of {status.total / 1e9:.1f} GB"
    left = f", {format_duration(status.seconds_left)} left" if status.seconds_left is not None else ""
    return f": {counts}{left}"


def log(lines: str) -> Markup:
    """Return the last lines of a worker's output."""
    return render("log.html", lines=lines)
