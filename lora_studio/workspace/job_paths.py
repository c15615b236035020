"""Paths of jobs that survive a move of their project to another folder or machine.

job.toml has paths inside the job's project relative to the job folder, and all others as they are. One that does not
exist here is looked up in moved_paths.json, which has the new place of each path that the user was asked for: in the
project, or in the job folder of a job without one.
"""

from __future__ import annotations

import json
import os
from pathlib import Path, PurePath, PurePosixPath, PureWindowsPath
from typing import TypeVar

from lora_studio.errors import InputError
from lora_studio.file_lock import change_file
from lora_studio.files import write_json
from lora_studio.settings.job_specs import Job, TrainJob

MOVED_FILE = "moved_paths.json"
MODEL_SETTINGS = ("base", "vae")  # a path, or the name of a model
PROJECTS = "projects"  # the folder of all projects in a home

J = TypeVar("J", bound=Job)


def project_folder(folder: Path) -> Path | None:
    """Return the project that a job folder is in; None for a job outside of projects."""
    project = folder.resolve().parent.parent
    return project if (project / "project.json").is_file() else None


def with_stored_paths(job: J, folder: Path) -> J:
    """Return a job as it is written: paths inside the project of `folder` are relative to `folder`."""
    project = project_folder(folder)
    if project is None:
        return job

    def stored(path: Path) -> Path:
        inside = path.is_absolute() and path.resolve().is_relative_to(project)
        return Path(os.path.relpath(path.resolve(), folder.resolve())) if inside else path

    return job.with_paths(stored)


def with_found_paths(job: J, folder: Path) -> J:
    """Return a job that was read from `folder` with absolute paths, those that have moved where they are now."""
    project, moved = project_folder(folder), read_moved_paths(folder)

    def found(path: Path) -> Path:
        absolute = path if _is_absolute(path) else _joined(folder, path)
        if absolute.exists():
            return absolute
        if str(path) in moved:
            return Path(moved[str(path)])
        return _in_project(path, project) or absolute

    job = job.with_paths(found)
    models = {name: value for name in MODEL_SETTINGS if (value := getattr(job, name, None)) and value in moved}
    return job.model_copy(update={name: moved[value] for name, value in models.items() if not Path(value).exists()})


def missing_paths(job: TrainJob) -> dict[str, str]:
    """Return the files and folders of a training that do not exist, by setting: dataset, regularization, and so on."""
    paths = {"regularization": job.regularization, "network_weights": job.network_weights}
    if not job.subsets:
        paths["dataset"] = job.dataset
    found = {name: str(path) for name, path in paths.items() if path is not None and not path.exists()}
    for name in MODEL_SETTINGS:
        value = getattr(job, name)
        if value and _is_absolute(PurePath(value)) and not Path(value).exists():
            found[name] = value
    return found


def move_path(folder: Path, old: str, new: Path) -> None:
    """Record where a path of a job is now, for all jobs of its project; raises InputError if `new` does not exist."""
    if not new.expanduser().exists():
        raise InputError(f"{new} does not exist.", f"Give the folder or file that {old} is now.", code="moved_path")
    place = project_folder(folder) or folder
    with change_file(place / MOVED_FILE):
        write_json(place / MOVED_FILE, read_moved_paths(folder) | {old: str(new.expanduser().resolve())})


def read_moved_paths(folder: Path) -> dict[str, str]:
    """Return the new place of each moved path of a job; raises InputError if the file is damaged."""
    file = (project_folder(folder) or folder) / MOVED_FILE
    try:
        moved = json.loads(file.read_bytes())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise InputError(f"{file} cannot be read: {error}", "Correct it, or remove it.", code="moved_paths") from error
    if not isinstance(moved, dict) or not all(isinstance(new, str) for new in moved.values()):
        raise InputError(f"{file} is not a table of paths.", "Correct it, or remove it.", code="moved_paths")
    return moved


def _is_absolute(path: PurePath) -> bool:
    """Return whether a path is absolute on any system: a run may come from another one."""
    return PurePosixPath(path).is_absolute() or PureWindowsPath(path).is_absolute()


def _joined(folder: Path, path: Path) -> Path:
    """Return a path relative to `folder`, written on any system, as an absolute one."""
    return Path(os.path.normpath(folder.resolve().joinpath(*PureWindowsPath(path).parts)))


def _in_project(path: Path, project: Path | None) -> Path | None:
    """Return where an absolute path into the project at its former place is now; None if it is not there."""
    parts = (PureWindowsPath(path) if PureWindowsPath(path).is_absolute() else path).parts
    if project is None or PROJECTS not in parts:
        return None
    inside = parts[parts.index(PROJECTS) + 2 :]
    candidate = project.joinpath(*inside)
    return candidate if inside and candidate.exists() else None
