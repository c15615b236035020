"""The space that projects and caches take on the disk, and how to free that of the caches."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from lora_studio.errors import InputError, disk_errors
from lora_studio.workspace.job_folder import JobFolder, JobState
from lora_studio.workspace.project import Home, Project


@dataclass(frozen=True)
class ProjectSize:
    """Bytes of a project by what takes them. `images` includes captions and images that were set aside."""

    images: int
    runs: int
    tests: int
    total: int

    @classmethod
    def of(cls, project: Project) -> ProjectSize:
        """Measure a project."""
        return cls(
            images=folder_size(project.dataset_dir) + folder_size(project.rejected_dir),
            runs=folder_size(project.path / "runs"),
            tests=folder_size(project.path / "sweeps") + folder_size(project.path / "first_tests"),
            total=folder_size(project.path),
        )


def folder_size(folder: Path) -> int:
    """Return the bytes of all files below a folder; 0 if it does not exist."""
    total = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            try:
                total += Path(parent, name).lstat().st_size
            except OSError:
                continue  # removed meanwhile
    return total


def cache_size(home: Home) -> int:
    """Return the bytes that `clean_cache` frees."""
    return sum(folder_size(path) if path.is_dir() else path.lstat().st_size for path in _cached(home))


def clean_cache(home: Home) -> int:
    """Delete what can be computed again, except thumbnails, and return the bytes that were freed.

    Raises InputError while a job is running or in the queue, StudioError for errors of the disk.
    """
    jobs = [job for project in home.projects() for job in project.jobs()]
    if busy := [job.name for job in jobs if _is_active(job)]:
        raise InputError(
            f"The caches cannot be cleaned while {', '.join(busy)} is running or in the queue.",
            "Wait for its end, or stop it first.",
            code="busy",
        )
    freed = cache_size(home)
    with disk_errors(home.cache):
        for path in _cached(home):
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
    return freed


def _cached(home: Home) -> list[Path]:
    """Return what is in the cache. Thumbnails are small, and open pages refer to them."""
    return [path for path in home.cache.glob("*") if path != home.thumbnails]


def _is_active(job: JobFolder) -> bool:
    state = job.status().state
    return state.is_active or state is JobState.WAITING
