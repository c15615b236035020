"""How far a project has come with all its stages: make.json in its folder.

Only the process that runs the stages writes the file, atomically; the page reads it at any time.
"""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path

from pydantic import BaseModel, ValidationError

from lora_studio.files import write_text
from lora_studio.workspace.job_folder import is_process_alive
from lora_studio.workspace.project import Project

MAKE_FILE = "make.json"
STOP_FILE = "make.stop"  # in the project's folder: the stages end before the next one


class Stage(StrEnum):
    """The stages in their order."""

    CURATE = "curate"
    TAG = "tag"
    REVIEW = "review"
    TRAIN = "train"
    TEST = "test"
    RELEASE = "release"


class StageState(StrEnum):
    """The state of a stage. A starting one waits for its process; a stopped review waits for a person."""

    WAITING = "waiting"
    STARTING = "starting"
    RUNNING = "running"
    DONE = "done"
    STOPPED = "stopped"
    FAILED = "failed"


class StageRecord(BaseModel):
    """A stage: `text` says what it did or is waiting for, `folder` is that of its job, relative to the project's.

    `remedy` and `code` are those of an error.
    """

    state: StageState = StageState.WAITING
    text: str = ""
    remedy: str = ""
    code: str = ""
    folder: str = ""


class MakeRecord(BaseModel):
    """All stages of a project, and the process that runs them."""

    stages: dict[Stage, StageRecord] = {}
    pid: int | None = None
    pid_started: float | None = None

    def stage(self, stage: Stage) -> StageRecord:
        """Return a stage; a waiting one before it was reached."""
        return self.stages.get(stage, StageRecord())

    def is_done(self, stage: Stage) -> bool:
        """Return whether a stage is complete."""
        return self.stage(stage).state is StageState.DONE

    @property
    def is_running(self) -> bool:
        """True while a process runs the stages."""
        return self.current is not None and self.stage(self.current).state is StageState.RUNNING

    @property
    def current(self) -> Stage | None:
        """The stage that is starting or running; None if there is none."""
        active = (StageState.STARTING, StageState.RUNNING)
        return next((stage for stage in Stage if self.stage(stage).state in active), None)

    @property
    def next_stage(self) -> Stage | None:
        """The first stage that is not done; None if all are."""
        return next((stage for stage in Stage if not self.is_done(stage)), None)

    @property
    def ended_at(self) -> Stage | None:
        """The stage that was stopped or has failed; None if there is none."""
        ends = (StageState.STOPPED, StageState.FAILED)
        return next((stage for stage in Stage if self.stage(stage).state in ends), None)

    def save(self, project: Project) -> None:
        """Write make.json."""
        write_text(project.path / MAKE_FILE, self.model_dump_json(indent=1) + "\n")


def read_record(project: Project) -> MakeRecord:
    """Return how far a project has come; a stage whose process has ended without a word is stopped."""
    try:
        record = MakeRecord.model_validate_json((project.path / MAKE_FILE).read_bytes())
    except (OSError, ValidationError):
        return MakeRecord()
    if record.current is not None and not is_process_alive(record.pid, record.pid_started):
        stage = record.stages[record.current]
        stage.state, stage.text = StageState.STOPPED, "The process ended unexpectedly; it can be continued."
    return record


def job_path(project: Project, record: StageRecord) -> Path | None:
    """Return the folder that a stage has filled or begun to fill; None if it does not exist or is empty."""
    folder = project.path / record.folder
    return folder if record.folder and folder.is_dir() and any(folder.iterdir()) else None
