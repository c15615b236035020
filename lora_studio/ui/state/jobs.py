"""The active jobs of a home, and starting them. All state is on disk."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from lora_studio import worker
from lora_studio.errors import InputError
from lora_studio.files import cached_by_stamp
from lora_studio.settings.job_specs import AnyJob, SweepJob
from lora_studio.ui.state.base_models import ChosenBase
from lora_studio.ui.state.shared_paths import check_shared_job
from lora_studio.ui.widgets.formatting import format_duration
from lora_studio.workspace.job_folder import JobFolder, JobState, JobStatus
from lora_studio.workspace.project import Home, Project

KIND_OF_FOLDER = {
    "runs": "Training",
    "sweeps": "Testing",
    "tags": "Tagging",
    "measurements": "Measuring",
    "first_tests": "Testing the base",
    "downloads": "Downloading",
}
MAX_CACHED_JOBS = 4096
MAX_VISITOR_CELLS = 64  # of a grid that a visitor draws
_ONE_VISITOR = threading.Lock()  # held from the look at the active jobs until a visitor's is one of them


@dataclass(frozen=True)
class ActiveJob:
    """A job that is running, queued, or waits in the run queue; `project` is None for a download."""

    project: Project | None
    folder: JobFolder
    status: JobStatus

    @property
    def kind(self) -> str:
        """The kind of job: Training, Testing, Tagging, Measuring, Downloading."""
        return KIND_OF_FOLDER[self.folder.path.parent.name]

    @property
    def text(self) -> str:
        """The text of the header's pill: "Training 68% · 1 min 04 s left"."""
        if self.status.state is JobState.WAITING:
            return f"{self.kind} · waiting"
        if self.status.state is JobState.QUEUED:
            return f"{self.kind} · {self.status.message or 'queued'}"
        progress = f" {self.status.done / self.status.total:.0%}" if self.status.total else ""
        left = f" · {format_duration(self.status.seconds_left)} left" if self.status.seconds_left is not None else ""
        return f"{self.kind}{progress}{left}"


@dataclass(frozen=True)
class Jobs:
    """Finds, starts and resumes the jobs of a home. Without `local`, jobs read only what is in the home.

    While `is_owner` returns False, only small test grids are started, one at a time and with the bases that are here.
    """

    home: Home
    local: bool = True
    is_owner: Callable[[], bool] = lambda: True

    def active(self) -> list[ActiveJob]:
        """Return the active jobs: the running one first, then the queued ones, then those that wait in the queue."""
        found = []
        owners: list[Project | None] = [*self.home.projects(), None]
        for project in owners:
            for folder in self.home.downloads() if project is None else project.jobs():
                if not _has_ended_or_is_missing(folder) and _is_active(status := folder.status()):
                    found.append(ActiveJob(project, folder, status))
        order = (JobState.RUNNING, JobState.QUEUED, JobState.WAITING)
        return sorted(found, key=lambda job: (order.index(job.status.state), job.status.started_at or 0.0))

    def start(self, path: Path, job: AnyJob) -> JobFolder:
        """Write a job to a new folder and start its worker process; raises InputError for a forbidden path."""
        self._check(job)
        if self.is_owner():
            folder = JobFolder.create(path, job)
            worker.start(folder, self.home)
            return folder
        with _ONE_VISITOR:
            self._check_visitors(job)
            folder = JobFolder.create(path, job)
            worker.start(folder, self.home, trusted=False)
        return folder

    def enqueue(self, path: Path, job: AnyJob) -> JobFolder:
        """Write a run to a new folder and put it into the queue; it starts at once if the GPU is free.

        Raises InputError for a forbidden path.
        """
        self._check(job)
        folder = JobFolder.create(path, job)
        worker.enqueue(folder, self.home)
        return folder

    def _check(self, job: AnyJob) -> None:
        if not self.local:
            check_shared_job(job, self.home)

    def _check_visitors(self, job: AnyJob) -> None:
        """Raise InputError for a job that a visitor may not start."""
        if not isinstance(job, SweepJob):
            raise InputError("Visitors draw test grids only.", "Ask the owner.", code="role")
        if (cells := job.cell_count) > MAX_VISITOR_CELLS:
            message = f"The grid would have {cells} images; a visitor's has at most {MAX_VISITOR_CELLS}."
            raise InputError(message, "Shorten one of the lists.", code="visitor_cells")
        if missing := [base for base in job.bases if not ChosenBase.load(base, self.home).is_here]:
            raise InputError(
                f"{missing[0]} is not on the studio's computer.", "Ask the owner to download it.", code="visitor_base"
            )
        if self.active():
            raise InputError("The studio is busy with another job.", "Try again when it has ended.", code="busy")

    def enqueue_resume(self, folder: JobFolder) -> None:
        """Put a run into the queue that continues from its last saved state."""
        worker.enqueue(folder, self.home, resume=True)

    def resume(self, folder: JobFolder) -> None:
        """Start a worker process that continues from the job's last saved state."""
        worker.start(folder, self.home, resume=True)


def _is_active(status: JobStatus) -> bool:
    return status.state.is_active or status.state is JobState.WAITING


def _has_ended_or_is_missing(folder: JobFolder) -> bool:
    try:
        return _has_ended(folder.path / "status.json")
    except OSError:
        return True


@cached_by_stamp(MAX_CACHED_JOBS)
def _has_ended(status_file: Path) -> bool:
    """Return whether a job ended; one whose worker process died counts as ended."""
    state = JobFolder(status_file.parent).status().state
    return not state.is_active and state not in (JobState.CREATED, JobState.WAITING)
