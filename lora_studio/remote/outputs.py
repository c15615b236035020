"""The outputs of a run in its repository: `outputs/`, with a list of sizes and hashes that a download is checked by.

A job uploads checkpoints and samples whenever one was saved, and the other files at its end.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

from pydantic import BaseModel, ValidationError

from lora_studio.errors import DiskFullError, JobError, disk_errors
from lora_studio.files import sync_folder
from lora_studio.remote.service import JobsService

OUTPUTS = "outputs"
LIST_FILE = "outputs.json"
DOWNLOADS = ".download"  # in the job folder
SAVED = ("checkpoints/*.safetensors", "samples/**/*")  # these do not change once they are written
LOCAL_FILES = frozenset({"job.toml", "status.json", "events.jsonl", "remote.json", "worker.log", "result.json", "stop"})
SPARE_BYTES = 1 << 26
BLOCK = 1 << 20


class OutputFile(BaseModel):
    """A file of a run; `size` in bytes."""

    path: str
    size: int
    sha256: str


class OutputList(BaseModel):
    """The files that a job has uploaded, with the result of the training once it is complete."""

    files: list[OutputFile]
    result: dict[str, object] | None = None

    @classmethod
    def of(cls, run: Path, paths: Iterable[Path], result: dict[str, object] | None = None) -> OutputList:
        """Return the list of these files of a run."""
        files = [
            OutputFile(path=path.relative_to(run).as_posix(), size=path.stat().st_size, sha256=sha256(path))
            for path in paths
        ]
        return cls(files=files, result=result)


def saved_files(run: Path) -> list[Path]:
    """Return the checkpoints and samples of a run."""
    return sorted(path for pattern in SAVED for path in run.glob(pattern) if _is_complete(path))


def all_files(run: Path) -> list[Path]:
    """Return all files of a run that its user gets; not its training state, nor what the local folder has itself."""
    return sorted(
        path
        for path in run.rglob("*")
        if _is_complete(path)
        and path.relative_to(run).as_posix() not in LOCAL_FILES
        and path.relative_to(run).parts[:2] != ("checkpoints", "state")
    )


def _is_complete(path: Path) -> bool:
    return path.is_file() and not path.name.startswith(".")


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def download_outputs(service: JobsService, repo: str, run: Path) -> OutputList | None:
    """Download the outputs that are missing in a run's folder, check and rename them; None if there are none yet.

    Raises JobError for a damaged file or a path outside of the folder, DiskFullError if they do not fit.
    """
    downloads = run / DOWNLOADS
    try:
        listed = service.download(repo, f"{OUTPUTS}/{LIST_FILE}", downloads)
        if listed is None:
            return None
        try:
            outputs = OutputList.model_validate_json(listed.read_bytes())
        except ValidationError as error:
            raise _damaged(repo, LIST_FILE) from error
        missing = [file for file in outputs.files if not _has(run, file)]
        _check_space(run, missing)
        for file in missing:
            _download(service, repo, file, run)
        return outputs
    finally:
        shutil.rmtree(downloads, ignore_errors=True)


def _has(run: Path, file: OutputFile) -> bool:
    path = run / _checked(file.path)
    return path.is_file() and path.stat().st_size == file.size and sha256(path) == file.sha256


def _checked(name: str) -> str:
    """Return a path of the list; raises JobError if it is not that of a file of a run."""
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or "\\" in name or ":" in name or name in LOCAL_FILES or not path.name:
        raise JobError(
            f"{LIST_FILE} of the job has {name!r}, which is not a file of a run.",
            "Download what you need from the repository yourself.",
            code="jobs_output",
        )
    return name


def _check_space(run: Path, missing: list[OutputFile]) -> None:
    needed, free = sum(file.size for file in missing), shutil.disk_usage(run).free
    if needed and needed + SPARE_BYTES > free:
        raise DiskFullError(
            f"The files of the run need {needed / 1e9:.1f} GB, and {free / 1e9:.1f} GB are free where {run} is.",
            "Free some disk space, then resume the run: it downloads them.",
            code="disk_full",
        )


def _download(service: JobsService, repo: str, file: OutputFile, run: Path) -> None:
    try:
        found = _fetch(service, repo, file, run)
    except JobError:  # once more: the connection may have broken in the middle
        found = _fetch(service, repo, file, run)
    target = run / file.path
    with disk_errors(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        found.replace(target)
        sync_folder(target.parent)


def _fetch(service: JobsService, repo: str, file: OutputFile, run: Path) -> Path:
    """Download a file beside the run's own and return its path; raise JobError if it is missing or damaged."""
    found = service.download(repo, f"{OUTPUTS}/{file.path}", run / DOWNLOADS)
    if found is None or found.stat().st_size != file.size or sha256(found) != file.sha256:
        raise _damaged(repo, file.path)
    return found


def _damaged(repo: str, name: str) -> JobError:
    return JobError(
        f"{name} of {repo} is missing or damaged: its size or SHA-256 is not the one that the job listed.",
        "Resume the run to download it again; it is in the repository, too.",
        code="jobs_output",
    )


def result_of(outputs: OutputList, run: Path) -> dict[str, object] | None:
    """Return the result of a complete training with the paths of this computer's job folder."""
    if outputs.result is None:
        return None
    lora = outputs.result.get("lora")
    result: dict[str, object] = json.loads(json.dumps(outputs.result))
    return result | {
        "run": str(run),
        "lora": str(run / _checked(str(lora))) if lora else None,
    }
