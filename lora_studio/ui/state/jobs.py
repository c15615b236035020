"""Jobs as the interface sees them: which are at work, what they say, and starting one. JobState lives on disk alone."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from lora_studio import worker
from lora_studio.settings.job_specs import AnyJob
from lora_studio.ui.widgets.formatting import format_duration
from lora_studio.workspace.job_folder import JobFolder, JobState, JobStatus
from lora_studio.workspace.project import Home, Project

KIND_OF_FOLDER = {"runs": "Training", "sweeps": "Testing", "tags": "Tagging"}


@dataclass(frozen=True)
class ActiveJob:
    """A job that is at work or waits for its turn."""

    project: Project
    folder: JobFolder
    status: JobStatus

    @property
    def kind(self) -> str:
        """Training, Testing or Tagging."""
        return KIND_OF_FOLDER[self.folder.path.parent.name]

    @property
    def text(self) -> str:
        """What the header's pill says: "Training 68% · 1 min 04 s left"."""
        if self.status.state is JobState.QUEUED:
            return f"{self.kind} · {self.status.message or 'waits'}"
        share = f" {self.status.done / self.status.total:.0%}" if self.status.total else ""
        left = f" · {format_duration(self.status.seconds_left)} left" if self.status.seconds_left is not None else ""
        return f"{self.kind}{share}{left}"


@dataclass
class Jobs:
    """Finds the jobs at work in a home. Jobs that ended are remembered by their status file's time, not read again."""

    home: Home
    _ended: dict[Path, int] = field(default_factory=dict)

    def active(self) -> list[ActiveJob]:
        """Jobs at work, the running one first, then those that wait."""
        found = []
        for project in self.home.projects():
            for folder in project.jobs():
                status = self._status(folder)
                if status is not None:
                    found.append(ActiveJob(project, folder, status))
        return sorted(found, key=lambda job: (job.status.state is not JobState.RUNNING, job.status.started_at or 0.0))

    def start(self, path: Path, job: AnyJob) -> JobFolder:
        """Write a job into a fresh folder and start its worker process."""
        folder = JobFolder.create(path, job)
        worker.start(folder, self.home)
        return folder

    def resume(self, folder: JobFolder) -> None:
        """Start a worker process that goes on from the job's last checkpoint."""
        worker.start(folder, self.home, resume=True)

    def _status(self, folder: JobFolder) -> JobStatus | None:
        file = folder.path / "status.json"
        try:
            changed = file.stat().st_mtime_ns
        except OSError:
            return None
        if self._ended.get(file) == changed:
            return None
        status = folder.status()
        if status.state.is_active:
            return status
        if status.state is not JobState.CREATED:
            self._ended[file] = changed
        return None
