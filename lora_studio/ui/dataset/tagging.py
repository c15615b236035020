"""Tagging jobs of a project: start, stop and resume them, and what the latest one shows."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from pathlib import Path

from lora_studio.dataset.captions.edit_history import CaptionHistory, EditState
from lora_studio.dataset.tagging.catalogue import CATALOGUE
from lora_studio.errors import InputError
from lora_studio.events import HintEvent, ImageFailedEvent, TaggedEvent, WarningEvent
from lora_studio.hub import is_repo_name
from lora_studio.settings.job_specs import TagJob
from lora_studio.ui.context import Studio
from lora_studio.ui.dataset.state import TagForm
from lora_studio.ui.server import Mode
from lora_studio.workspace.job_folder import JobFolder, JobState, JobStatus
from lora_studio.workspace.project import Project

RESUMABLE = (JobState.STOPPED, JobState.FAILED)
MAX_RECENT_CAPTIONS = 3


@dataclass
class TaggingEvents:
    """Events of a tagging job up to `offset` in its event file: recent captions, failed images, warnings by code."""

    offset: int = 0
    recent: deque[tuple[str, str]] = field(default_factory=lambda: deque(maxlen=MAX_RECENT_CAPTIONS))
    failed: list[tuple[str, str]] = field(default_factory=list)
    warnings: dict[str, tuple[str, str]] = field(default_factory=dict)

    def update(self, folder: JobFolder) -> TaggingEvents:
        """Read the events that were added since the last call."""
        events, self.offset = folder.events(self.offset)
        for event in events:
            match event:
                case TaggedEvent():
                    self.recent.append((Path(event.path).name, event.caption))
                case ImageFailedEvent():
                    self.failed.append((Path(event.path).name, event.message))
                case WarningEvent() | HintEvent():
                    self.warnings[event.code] = (event.message, event.why)
        return self


@dataclass(frozen=True)
class TaggingView:
    """The latest tagging job of a project; `folder` is None if there is none. `edit` is the state of its edit."""

    folder: JobFolder | None
    status: JobStatus
    edit: EditState
    events: TaggingEvents

    @property
    def is_active(self) -> bool:
        """True while the job is running or queued."""
        return self.status.state.is_active

    @property
    def is_stopping(self) -> bool:
        """True after the job was asked to stop."""
        return self.folder is not None and self.folder.stop_requested()


@dataclass(frozen=True)
class TaggingJobs:
    """The tagging jobs of a studio's projects. The events of each are read once."""

    studio: Studio
    _events: dict[Path, TaggingEvents] = field(default_factory=dict)

    def view(self, project: Project) -> TaggingView:
        """Return the latest job."""
        folder = latest_job(project)
        if folder is None:
            return TaggingView(None, JobStatus(), EditState.NONE, TaggingEvents())
        edit = CaptionHistory.of(project.dataset_dir).state_of_job(folder.path)
        events = self._events.setdefault(folder.path, TaggingEvents()).update(folder)
        return TaggingView(folder, folder.status(), edit, events)

    def key(self, project: Project) -> str:
        """Return a value that changes when the section has to be rendered again."""
        folder = latest_job(project)
        if folder is None:
            return project.name
        status = folder.status()
        size = folder.events_file.stat().st_size if folder.events_file.exists() else 0
        return f"{project.name}|{folder.name}|{status.state}|{status.updated_at}|{size}|{folder.stop_requested()}"

    def is_running(self, project: Project) -> bool:
        """Return whether a job is running or queued."""
        folder = latest_job(project)
        return folder is not None and folder.status().state.is_active

    def start(self, project: Project, form: TagForm, compare: Path | None = None) -> JobFolder:
        """Write the job and start its worker process; save the trigger word with the project.

        With an image in `compare`, the taggers are compared on it and no caption is written.
        """
        if self.is_running(project):
            raise InputError("A tagging job is already running.", "Wait for it, or stop it first.", code="busy")
        job = self._job(project, form, compare)
        project.change_info(trigger_word=job.trigger_word)
        return self.studio.jobs.start(project.new_tag_dir(), job)

    def request_stop(self, project: Project) -> None:
        """Ask the job to stop; raise InputError if none is running."""
        folder = latest_job(project)
        if folder is None or not folder.status().state.is_active:
            raise InputError("No tagging job is running.", "There is nothing to stop.", code="no_job")
        folder.request_stop()

    def resume(self, project: Project) -> None:
        """Resume a job that was stopped or failed; raise InputError if there is none."""
        folder = latest_job(project)
        if folder is None or folder.status().state not in RESUMABLE:
            raise InputError("There is no stopped tagging job.", "Start a new one.", code="no_job")
        self.studio.jobs.resume(folder)

    def _job(self, project: Project, form: TagForm, compare: Path | None) -> TagJob:
        return TagJob.parse(
            {
                "dataset": project.dataset_dir,
                "tagger": self._tagger(form.tagger),
                "also": [self._tagger(name) for name in form.also or []],
                "threshold": form.threshold,
                "character_threshold": form.character_threshold,
                "trigger_word": (form.trigger or "").strip(),
                "existing": form.existing,
                "exclude_tags": form.exclude or "",
                "only_tags": form.only or "",
                "prompt": form.prompt or "",
                "max_caption_tokens": round(form.max_caption_tokens),
                "compare": compare,
            }
        )

    def _tagger(self, given: str | None) -> str:
        tagger = (given or "").strip()
        if not tagger:
            raise InputError("No tagger is chosen.", "Choose one from the list.", code="no_tagger")
        if self.studio.mode is not Mode.LOCAL and tagger not in CATALOGUE and not is_repo_name(tagger):
            raise InputError(
                f"Tagger {tagger!r} is neither in the list nor a Hub repository.",
                "Folders on this computer can be used only when the studio is not shared.",
                code="tagger",
            )
        return tagger


def latest_job(project: Project) -> JobFolder | None:
    """Return the latest tagging job of a project."""
    jobs = [job for job in project.jobs() if job.path.parent.name == "tags"]
    return jobs[-1] if jobs else None
