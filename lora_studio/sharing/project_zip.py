"""A project as one zip, to move it to another computer or to keep a copy.

The zip has one folder, named like the project, with all files of the project but those that a crash or another job left
half written. On import the files are extracted as data: what a job may read is checked by the caller, no job is
running, and no link and no path outside the project is accepted (see `archives`).
"""

from __future__ import annotations

import shutil
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from lora_studio.dataset.ingest.archives import Limits, Member, list_members
from lora_studio.errors import DiskFullError, InputError, StudioError, disk_errors
from lora_studio.files import write_atomic
from lora_studio.settings.job_specs import AnyJob
from lora_studio.workspace.job_folder import JobFolder, JobState
from lora_studio.workspace.project import Home, Project

PROJECT_FILE = "project.json"
COMPRESSED = frozenset({".json", ".jsonl", ".toml", ".txt", ".log", ".md", ".csv"})  # the rest is compressed already
LIMITS = Limits(entries=500_000, total=512 * 2**30)

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Contents:
    """The files of an exported project, by their path inside the project, and the project's name."""

    name: str
    members: dict[PurePosixPath, Member]

    @property
    def size(self) -> int:
        """Unpacked size in bytes."""
        return sum(member.size for member in self.members.values())


def export_project(project: Project, target: Path, *, on_progress: Progress = lambda done, total: None) -> Path:
    """Write a project into the zip `target` and return it; raises InputError while one of its jobs is active."""
    project.check_idle("export")
    files = sorted(path for path in project.path.rglob("*") if path.is_file() and not _is_left_over(path, project))

    def write(temporary: Path) -> None:
        with zipfile.ZipFile(temporary, "w", strict_timestamps=False) as archive:
            for done, path in enumerate(files, 1):
                packed = zipfile.ZIP_DEFLATED if path.suffix in COMPRESSED else zipfile.ZIP_STORED
                inside = path.relative_to(project.path).as_posix()
                archive.write(path, f"{project.name}/{inside}", compress_type=packed)
                on_progress(done, len(files))

    with disk_errors(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(target, write)
    return target


def _is_left_over(path: Path, project: Project) -> bool:
    """Return whether a file, or a folder that it is in, is a link or was never completed."""
    inside = path.relative_to(project.path).parts
    return path.is_symlink() or any(part.startswith(".") or part.endswith(".partial") for part in inside)


def read_contents(archive: Path) -> Contents:
    """Return what a zip of a project has, without extracting it; raises InputError if it is not one."""
    members = {member.name: member for member in list_members(archive, LIMITS)}
    roots = [name.parent for name in members if name.name == PROJECT_FILE and len(name.parts) <= 2]
    if len(roots) != 1:
        raise InputError(
            f"{archive.name!r} is not the zip of a project: it has no {PROJECT_FILE} at its top.",
            "Give a zip that Export made. Import a zip of images in the Dataset tab.",
            code="project_zip",
        )
    root = roots[0]
    inside = {name.relative_to(root): member for name, member in members.items() if name.is_relative_to(root)}
    return Contents(root.name or archive.stem, inside)


def import_project(
    home: Home,
    archive: Path,
    name: str,
    *,
    check_job: Callable[[AnyJob], None] = lambda job: None,
    on_progress: Progress = lambda done, total: None,
) -> Project:
    """Create a project from a zip that `export_project` wrote.

    `check_job` raises InputError for a job that must not be imported. Raises InputError if the zip is not that of a
    project or refused as an attack, or the name is invalid or taken, DiskFullError; then nothing is left behind.
    """
    contents = read_contents(archive)
    target = home.new_project_path(name)
    partial = target.with_name(f".{target.name}.partial")
    with disk_errors(target):
        shutil.rmtree(partial, ignore_errors=True)
    try:
        _extract(contents, partial, on_progress)
        project = Project(partial)
        project.info()
        for job in project.jobs():
            _admit(job, check_job)
        project.images_dir.mkdir(parents=True, exist_ok=True)
        with disk_errors(target):
            partial.rename(target)
    except (StudioError, OSError):
        shutil.rmtree(partial, ignore_errors=True)
        raise
    return Project(target)


def _admit(job: JobFolder, check_job: Callable[[AnyJob], None]) -> None:
    """Check an imported job, and stop it: no process of this computer runs it. A damaged job.toml runs nowhere."""
    try:
        found = job.job()
    except InputError:
        return
    check_job(found)
    if job.status().state not in (JobState.DONE, JobState.STOPPED, JobState.FAILED):
        job.update_status(state=JobState.STOPPED, pid=None, pid_started=None, seconds_left=None)


def _extract(contents: Contents, target: Path, on_progress: Progress) -> None:
    with disk_errors(target):
        target.mkdir(parents=True)
        free = shutil.disk_usage(target).free
    if contents.size > free:
        raise DiskFullError(
            f"The project has {contents.size / 2**30:.1f} GiB and the disk {free / 2**30:.1f} GiB free.",
            "Free some disk space, then try again.",
            code="disk_full",
        )
    for done, (inside, member) in enumerate(contents.members.items(), 1):
        file = target.joinpath(*inside.parts)
        with disk_errors(file):
            file.parent.mkdir(parents=True, exist_ok=True)
        member.extract(file)
        on_progress(done, len(contents.members))
