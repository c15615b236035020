"""The process that makes a project with all its stages: started, stopped and followed through make.json."""

from __future__ import annotations

import os
import subprocess
import sys
import threading

import psutil

from lora_studio.dataset.images.sets import project_images
from lora_studio.errors import InputError, disk_errors
from lora_studio.example import ensure_example
from lora_studio.worker import MAIN_FILE
from lora_studio.workflow.record import (
    MAKE_FILE,
    STOP_FILE,
    MakeRecord,
    Stage,
    StageRecord,
    StageState,
    job_path,
    read_record,
)
from lora_studio.workspace.job_environment import HUB_SECRETS, TRACKER_SECRETS, worker_environment
from lora_studio.workspace.job_folder import JobFolder, JobStatus
from lora_studio.workspace.processes import start_detached
from lora_studio.workspace.project import Home, Project

TOUR_VARIABLE = "LORA_STUDIO_TOUR"


def start_making(project: Project, home: Home, *, confirmed: bool, again: bool = False) -> None:
    """Start or continue the stages in a process of its own, which outlives the page.

    With `confirmed` duplicates are set aside and nothing waits; `again` begins with the first stage. Raises InputError
    without images or a trigger word, and if the stages or another job of the project are running.
    """
    if not project_images(project):
        raise InputError(f"{project.name} has no images yet.", "Import some in Dataset.", code="no_images")
    if not project.info().trigger_word:
        raise InputError("The trigger word is empty.", "Choose one on the left.", code="no_trigger")
    record = MakeRecord() if again else read_record(project)
    if record.current is not None or read_record(project).current is not None:
        raise InputError("All of it is being done already.", "Wait for it, or stop it first.", code="busy")
    project.check_idle("make")
    stage = record.next_stage
    if stage is None:
        raise InputError("All stages are done.", "Start over, or train again on the Train tab.", code="made")
    own = psutil.Process()
    record.pid, record.pid_started = own.pid, own.create_time()
    text = record.stage(stage).text
    record.stages[stage] = StageRecord(state=StageState.STARTING, text=text, folder=record.stage(stage).folder)
    command = [sys.executable, str(MAIN_FILE), "make", str(project.path), "--home", str(home.path)]
    with disk_errors(project.path):
        record.save(project)
        with (project.path / MAKE_FILE).with_suffix(".log").open("wb") as log:
            needed = HUB_SECRETS.union(*TRACKER_SECRETS.values())
            environment = worker_environment(needed)
            process = start_detached([*command, *(["--yes"] if confirmed else [])], log, project.path, environment)
    threading.Thread(target=_reap, args=(process, project, stage), daemon=True, name=f"reap {process.pid}").start()


def make_tour(home: Home) -> None:
    """Make the example project in a process of its own, so that the guests of a Space see a finished run and its test.

    Stages that ended with a restart of the Space are continued. Nothing is started if all stages are done or one has
    failed, if the owner has trained in the project, or if $LORA_STUDIO_TOUR is "0". Raises InputError or DiskFullError.
    """
    project = ensure_example(home)
    record = read_record(project)
    has_failed = record.ended_at is not None and record.stage(record.ended_at).state is StageState.FAILED
    is_unwanted = os.environ.get(TOUR_VARIABLE) == "0" or (project.runs() and not record.stages)
    if is_unwanted or has_failed or record.current is not None or record.next_stage is None:
        return
    start_making(project, home, confirmed=True)


def stop_making(project: Project) -> None:
    """Request that the running stage stops after its current step, and that none follows; they can be continued."""
    with disk_errors(project.path):
        (project.path / STOP_FILE).touch()
    for job in project.jobs():
        if job.status().state.is_active:
            job.request_stop()


def current_status(project: Project, record: MakeRecord) -> JobStatus | None:
    """Return the status of the job of the running stage; None if it has none."""
    if record.current is None:
        return None
    if record.current is Stage.TAG:
        folders = sorted((project.path / "tags").glob("*/job.toml"))
        return JobFolder(folders[-1].parent).status() if folders else None
    folder = job_path(project, record.stage(record.current))
    return JobFolder(folder).status() if folder and JobFolder(folder).exists else None


def _reap(process: subprocess.Popen[bytes], project: Project, stage: Stage) -> None:
    """Wait for the process; mark its stage as failed if it ended before it wrote anything."""
    process.wait()
    record = read_record(project)
    if record.stage(stage).state is StageState.STARTING:
        failed = record.stages[stage]
        failed.state, failed.text, failed.code = StageState.FAILED, "The process could not start.", "make_died"
        failed.remedy = f"Its last output is in {MAKE_FILE.removesuffix('.json')}.log in the project's folder."
        record.save(project)
