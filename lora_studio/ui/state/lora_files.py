"""The LoRA files that a project can test, by ids that are safe to give to a browser."""

from __future__ import annotations

import glob
import shutil
from dataclasses import dataclass
from pathlib import Path

from lora_studio.dataset.images.decode import file_sha256
from lora_studio.errors import InputError, disk_errors
from lora_studio.files import write_atomic
from lora_studio.lora.header import read_lora_header
from lora_studio.settings.job_specs import TrainJob
from lora_studio.workspace.job_folder import JobFolder, slugify
from lora_studio.workspace.project import Project


@dataclass(frozen=True)
class Choice:
    """A LoRA file: its `id` is its place in the project; `run` is the run that made it, None for one from elsewhere."""

    id: str
    label: str
    path: Path
    run: JobFolder | None = None

    @property
    def final(self) -> bool:
        """Whether it is what a finished run made last."""
        return self.run is not None and self.path.parent == self.run.path


def lora_choices(project: Project) -> dict[str, Choice]:
    """What can be tested, by id: of each run, the latest first, the final file and its epochs; then the files added."""
    found: list[Choice] = []
    for folder in reversed(project.runs()):
        try:
            job = folder.job()
        except InputError:
            continue
        if isinstance(job, TrainJob):
            found += _of_run(folder, job)
    added = sorted(project.loras_dir.glob("*.safetensors")) if project.loras_dir.is_dir() else []
    found += [Choice(f"loras/{path.name}", f"{path.stem} · from a file", path) for path in added]
    return {choice.id: choice for choice in found}


def _of_run(folder: JobFolder, job: TrainJob) -> list[Choice]:
    final = folder.path / f"{job.name}.safetensors"
    found = [Choice(f"{folder.name}/{final.name}", f"{folder.name} · final", final, folder)] if final.is_file() else []
    for prefix, unit in (("", "epoch"), ("step", "step")):
        pattern = f"{glob.escape(job.name)}-{prefix}[0-9]*.safetensors"
        for path in sorted((folder.path / "checkpoints").glob(pattern), reverse=True):
            number = path.stem.removeprefix(f"{job.name}-{prefix}").lstrip("0")
            label = f"{folder.name} · {unit} {number}"
            found.append(Choice(f"{folder.name}/checkpoints/{path.name}", label, path, folder))
    return found


def chosen_loras(project: Project, ids: object) -> list[Path]:
    """The files of chosen ids; raises InputError for none, or for one that is not among the project's."""
    known = lora_choices(project)
    if not isinstance(ids, list) or not ids:
        raise InputError("No LoRA is chosen.", "Choose one under LoRAs.", code="no_lora")
    for given in ids:
        if not isinstance(given, str) or given not in known:
            raise InputError(f"There is no LoRA {given!r} here.", "Choose one from the list.", code="no_lora")
    return [known[given].path for given in ids]


def add_lora(project: Project, source: Path) -> str:
    """Check a LoRA file, copy it into the project and return its id; one that is there already is not copied again.

    Raises InputError for a file that is no LoRA for SDXL, StudioError for what the disk refuses.
    """
    read_lora_header(source)
    with disk_errors(project.loras_dir):
        project.loras_dir.mkdir(exist_ok=True)
    name = slugify(source.stem) or "lora"
    number, target = 1, project.loras_dir / f"{name}.safetensors"
    while target.exists() and not _same(source, target):
        number += 1
        target = project.loras_dir / f"{name}-{number}.safetensors"
    if not target.exists():
        write_atomic(target, lambda temporary: _copy(source, temporary))
    return f"loras/{target.name}"


def _same(one: Path, other: Path) -> bool:
    return one.stat().st_size == other.stat().st_size and file_sha256(one) == file_sha256(other)


def _copy(source: Path, target: Path) -> None:
    shutil.copyfile(source, target)
