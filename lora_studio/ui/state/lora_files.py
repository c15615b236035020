"""The LoRA files of a project that can be tested, by ids that are safe to receive from a browser."""

from __future__ import annotations

import glob
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lora_studio.dataset.images.decode import file_sha256
from lora_studio.errors import InputError, disk_errors
from lora_studio.files import write_atomic, write_bytes
from lora_studio.lora.alphas import PEFT_CONFIG, peft_config_file
from lora_studio.lora.header import read_lora_header
from lora_studio.settings.job_specs import StackedLora, TrainJob
from lora_studio.workspace.job_folder import JobFolder, slugify
from lora_studio.workspace.project import Project


class UnknownLora(InputError):
    """No LoRA is selected, or one that is not in the project."""


@dataclass(frozen=True)
class LoraChoice:
    """A LoRA file. `id` is its path within the project; `run` is the run that trained it, None for an imported file."""

    id: str
    label: str
    path: Path
    run: JobFolder | None = None

    @property
    def is_final(self) -> bool:
        """True for the final file of a finished run, False for checkpoints and imported files."""
        return self.run is not None and self.path.parent == self.run.path

    @property
    def is_numbered(self) -> bool:
        """True for the checkpoint of an epoch or a step."""
        stem = self.path.stem.removesuffix("-saved")
        return self.run is not None and self.path.parent != self.run.path and stem[-1:].isdigit()


def lora_choices(project: Project) -> dict[str, LoraChoice]:
    """Return the LoRA files by id: final file and checkpoints of each run, latest run first, then imported files."""
    found: list[LoraChoice] = []
    for folder in reversed(project.runs()):
        try:
            job = folder.stored_job()
        except InputError:
            continue
        if isinstance(job, TrainJob):
            found += _choices_of_run(folder, job)
    imported = sorted(project.loras_dir.glob("*.safetensors")) if project.loras_dir.is_dir() else []
    found += [LoraChoice(f"loras/{path.name}", f"{path.stem} · imported", path) for path in imported]
    return {choice.id: choice for choice in found}


def selected_loras(project: Project, ids: Sequence[str]) -> list[Path]:
    """Return the files of the selected ids; raises UnknownLora for no id, or one that is not in the project."""
    known = lora_choices(project)
    if not ids:
        raise UnknownLora("No LoRA is selected.", "Select one under LoRAs.", code="no_lora")
    if missing := [given for given in ids if given not in known]:
        raise UnknownLora(
            f"{project.name} has no LoRA {', '.join(map(repr, missing))}.", "Select one from the list.", code="no_lora"
        )
    return [known[given].path for given in ids]


def stacked_loras(project: Project, ids: Sequence[str], weights: str) -> list[StackedLora]:
    """Return the files of the selected ids with their strengths, separated by commas in `weights`; 1 each if empty.

    Raises UnknownLora for an id that is not in the project, InputError for other strengths than one for each.
    """
    if not ids:
        return []
    texts = [text.strip() for text in weights.split(",")] if weights.strip() else ["1"] * len(ids)
    paths = selected_loras(project, ids)
    if len(texts) != len(paths):
        raise InputError(
            f"There are {len(texts)} strengths for {len(paths)} other LoRAs.",
            "Give one for each, separated by commas, or none.",
            code="stack_strengths",
        )
    found = []
    for path, text in zip(paths, texts, strict=True):
        strength, _, own = text.partition(":")
        found.append(StackedLora.parse({"path": path, "strength": strength, "text_encoder_strength": own or None}))
    return found


def import_lora(project: Project, source: Path) -> str:
    """Check a LoRA file, copy it into the project and return its id. An identical file is not copied again.

    The configuration that peft saves beside a file, which has its alpha, is copied with it. Raises InputError for a
    file that is not an SDXL LoRA, StudioError for what the disk refuses.
    """
    read_lora_header(source)
    with disk_errors(project.loras_dir):
        project.loras_dir.mkdir(exist_ok=True)
    name = slugify(source.stem) or "lora"
    number, target = 1, project.loras_dir / f"{name}.safetensors"
    while target.exists() and not _have_equal_content(source, target):
        number += 1
        target = project.loras_dir / f"{name}-{number}.safetensors"
    if not target.exists():
        if (config := peft_config_file(source)) is not None:
            write_bytes(target.with_name(f"{target.stem}.{PEFT_CONFIG}"), config.read_bytes())
        write_atomic(target, lambda temporary: _copy(source, temporary))
    return f"loras/{target.name}"


def _choices_of_run(folder: JobFolder, job: TrainJob) -> list[LoraChoice]:
    found = []
    final = folder.path / f"{job.name}.safetensors"
    if final.is_file():
        found.append(LoraChoice(f"{folder.name}/{final.name}", f"{folder.name} · final", final, folder))
    best = folder.path / "checkpoints" / f"{job.name}-best.safetensors"
    if best.is_file():
        label = f"{folder.name} · lowest validation loss"
        found.append(LoraChoice(f"{folder.name}/checkpoints/{best.name}", label, best, folder))
    for prefix, unit in (("", "epoch"), ("step", "step")):
        pattern = f"{glob.escape(job.name)}-{prefix}[0-9]*.safetensors"
        for path in sorted((folder.path / "checkpoints").glob(pattern), reverse=True):
            number = path.stem.removeprefix(f"{job.name}-{prefix}").lstrip("0")
            label = f"{folder.name} · {unit} {number.replace('-saved', ', saved by hand')}"
            found.append(LoraChoice(f"{folder.name}/checkpoints/{path.name}", label, path, folder))
    return found


def _have_equal_content(one: Path, other: Path) -> bool:
    return one.stat().st_size == other.stat().st_size and file_sha256(one) == file_sha256(other)


def _copy(source: Path, target: Path) -> None:
    shutil.copyfile(source, target)
