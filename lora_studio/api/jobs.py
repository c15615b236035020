"""Run a job in its folder and return its result: what all stages that need a model share."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from secrets import token_hex
from typing import TYPE_CHECKING, Any, TypeVar

from lora_studio.errors import ConfigError, InputError, JobError
from lora_studio.event_recorder import Listener
from lora_studio.events import Event, FailedEvent, StepEvent, StoppedEvent
from lora_studio.planning.automatic_stop import AutomaticStop
from lora_studio.settings.hf_jobs import HfJobsSettings
from lora_studio.settings.job_specs import AnyJob, DownloadJob, SweepJob, TagJob, TrainJob
from lora_studio.worker import execute, start
from lora_studio.workspace.job_folder import JobFolder, JobState, numbered_folder
from lora_studio.workspace.job_paths import missing_paths, move_path
from lora_studio.workspace.project import Home
from lora_studio.workspace.remote_run import RemoteRun, is_remote

if TYPE_CHECKING:
    from lora_studio.training.train import TrainResult

POLL_SECONDS = 0.3
FOLDERS = {TagJob.kind: "tags", TrainJob.kind: "runs", SweepJob.kind: "sweeps"}  # in the studio's home
J = TypeVar("J", TagJob, TrainJob, SweepJob, DownloadJob)


def ignore(event: Event) -> None:
    """Do nothing with an event."""


def run_job(
    job: AnyJob,
    *,
    out: Path | None = None,
    home: Home | None = None,
    on_event: Listener = ignore,
    hf_jobs: HfJobsSettings | None = None,
) -> Any:
    """Run a job in this process; return the result of its kind.

    `out` is the job folder (default: a numbered one in the studio's home). With `hf_jobs` a training runs on Hugging
    Face Jobs, and this process follows it. Raises StudioError.
    """
    home = home or Home.locate()
    if out is None:
        out = numbered_folder(home.path / FOLDERS[job.kind], job.name if isinstance(job, TrainJob) else "")
    folder = JobFolder.create(out, job.with_absolute_paths())
    if hf_jobs is not None:
        RemoteRun(flavor=hf_jobs.flavor, timeout=hf_jobs.timeout, key=token_hex(6)).write(folder.path)
    return execute_job(folder, home, on_event)


def resume(
    folder: Path | str,
    *,
    moved: Mapping[str, Path | str] | None = None,
    home: Home | None = None,
    on_event: Listener = ignore,
) -> Any:
    """Continue a stopped or failed job from its last saved state; return the result of its kind.

    `moved` has the new places of files and folders that do not exist any more, by setting: dataset, base and so on.
    They are remembered for all runs of the project. Raises InputError if `folder` does not contain a job, if the job is
    running, or if one of its files or folders does not exist.
    """
    job_folder = JobFolder(Path(folder))
    find_moved(job_folder, moved or {})
    if job_folder.status().state.is_active:
        raise InputError(f"The job in {folder} is already running.", "Wait for it, or stop it first.", code="busy")
    job_folder.clear_stop()
    return execute_job(job_folder, home or Home.locate(), on_event, resume=True)


def find_moved(folder: JobFolder, moved: Mapping[str, Path | str]) -> None:
    """Record where missing files of a training are now; raise InputError for those that are still missing."""
    job = folder.job()
    missing = missing_paths(job) if isinstance(job, TrainJob) else {}
    for setting, place in moved.items():
        if setting in missing:
            move_path(folder.path, missing.pop(setting), Path(place))
    for setting, path in missing.items():
        option = f"--{setting.replace('_', '-')}"
        raise InputError(
            f"{setting} {path} does not exist.",
            f"If it has moved, give its new place: train --resume --out {folder.path} {option} NEW.",
            code="moved",
        )


def build(kind: type[J], **values: Any) -> J:
    """Build a job from arguments; None leaves the model's default."""
    return kind.parse({name: value for name, value in values.items() if value is not None})


def execute_job(folder: JobFolder, home: Home, on_event: Listener, *, resume: bool = False) -> Any:
    """Run or resume the job of a folder, in several processes if it wants them; return the result of its kind."""
    job = folder.job()
    if isinstance(job, TrainJob) and job.num_processes > 1 and not is_remote(folder.path):
        return run_in_processes(folder, home, on_event, resume=resume)
    return execute(folder, home=home, resume=resume, listen=on_event)


def run_in_processes(folder: JobFolder, home: Home, on_event: Listener, *, resume: bool) -> TrainResult:
    """Run a training job in several worker processes and pass on its events as they are written; SIGINT stops it."""
    from lora_studio.training.train import TrainResult

    started = time.time()
    inode, offset = 0, 0
    failed: FailedEvent | None = None
    step: StepEvent | None = None
    stopped: StoppedEvent | None = None
    start(folder, home, resume=resume)
    while True:
        try:
            alive = folder.status().state.is_active
            if folder.events_file.exists() and (current := folder.events_file.stat().st_ino) != inode:
                inode, offset = current, 0  # a resume replaces events.jsonl
            events, offset = folder.events(offset)
            for event in events:
                if event.time >= started - 1:
                    failed = event if isinstance(event, FailedEvent) else failed
                    step = event if isinstance(event, StepEvent) else step
                    stopped = event if isinstance(event, StoppedEvent) else stopped
                    on_event(event)
            if not alive:
                break
            time.sleep(POLL_SECONDS)
        except KeyboardInterrupt:
            if folder.stop_requested():
                raise
            folder.request_stop()
    status = folder.status()
    if status.state is JobState.FAILED:
        code = failed.code if failed else "error"
        if code == "config":
            raise ConfigError(status.message.splitlines(), status.remedy)
        raise JobError(status.message, status.remedy, code=code)
    if (result := folder.result()) is not None:
        return TrainResult.model_validate(result)
    automatic = None
    if stopped is not None and stopped.code:
        automatic = AutomaticStop.model_validate(
            {"code": stopped.code, "step": status.done, "message": stopped.message}
        )
    return TrainResult(
        run=folder.path,
        lora=folder.path / stopped.path if stopped is not None and stopped.path else None,
        automatic_stop=automatic,
        steps=status.done,
        epochs=step.epoch if step else 0,
        final_loss=step.loss if step else None,
        seconds=round(time.time() - started, 3),
        stopped=True,
    )
