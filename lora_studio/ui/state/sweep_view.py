"""A sweep as the page sees it: what was asked for, which cells are there, and what was measured."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from lora_studio.errors import InputError
from lora_studio.lora.header import LoraFile, read_lora_header
from lora_studio.sampling.cells import CellKey, SweepPlan
from lora_studio.settings.job_specs import SweepJob
from lora_studio.workspace.job_folder import JobFolder, JobState, JobStatus
from lora_studio.workspace.project import Project


@dataclass(frozen=True)
class SweepView:
    """Everything about one sweep that the page shows. `drawn` are the names of the cells' files that are there."""

    folder: JobFolder
    job: SweepJob
    status: JobStatus
    plan: SweepPlan
    drawn: frozenset[str]
    measures: list[dict[str, Any]]
    notes: list[str]

    @classmethod
    def of(cls, folder: JobFolder) -> SweepView:
        """Look at a sweep; raises InputError if its job file cannot be read."""
        job = folder.job()
        if not isinstance(job, SweepJob):
            raise InputError(f"{folder.name} is no test.", "Choose another one.", code="no_sweep")
        cells = folder.path / "cells"
        return cls(
            folder=folder,
            job=job,
            status=folder.status(),
            plan=SweepPlan(job, [_lora(path) for path in job.loras]),
            drawn=frozenset(path.name for path in cells.glob("*.png")) if cells.is_dir() else frozenset(),
            measures=_measures(folder.path / "measures.json"),
            notes=_notes(folder),
        )

    @property
    def alive(self) -> bool:
        """Whether it is at work or waits."""
        return self.status.state.is_active

    @property
    def grid(self) -> Path | None:
        """The whole grid as one picture, once it is made."""
        path = self.folder.path / "grid.png"
        return path if path.is_file() else None

    @property
    def at_work(self) -> CellKey | None:
        """The cell that is being drawn."""
        if self.status.state is not JobState.RUNNING:
            return None
        return next((key for key in self.plan.cells if self.name(key) not in self.drawn), None)

    def name(self, key: CellKey) -> str:
        """The name of a cell's file."""
        return self.plan.path(key).name

    def cell(self, name: object) -> CellKey:
        """A cell that is there, by its file's name; raises InputError if there is none."""
        for key in self.plan.cells:
            if name == self.name(key) and name in self.drawn:
                return key
        raise InputError(f"There is no picture {name!r} in test {self.folder.name}.", "Choose one.", code="no_cell")

    def path(self, key: CellKey) -> Path:
        """Where a cell lies."""
        return self.folder.path / self.plan.path(key)


def sweep_named(project: Project, name: str) -> JobFolder:
    """A sweep of the project by its folder's name; raises InputError if there is none."""
    for folder in project.sweeps():
        if folder.name == name:
            return folder
    raise InputError(f"There is no test {name!r} in {project.name}.", "Choose one from the list.", code="no_sweep")


def _lora(path: Path) -> LoraFile:
    """A LoRA's header; of one that is gone, its name alone."""
    try:
        return _read(path, path.stat().st_mtime_ns)
    except (OSError, InputError):
        return LoraFile(path, {}, {}, 0)


@lru_cache(maxsize=64)
def _read(path: Path, changed: int) -> LoraFile:
    return read_lora_header(path)


def _measures(file: Path) -> list[dict[str, Any]]:
    try:
        rows = json.loads(file.read_bytes())["rows"]
    except (OSError, ValueError, KeyError, TypeError):
        return []
    return rows if isinstance(rows, list) else []


def _notes(folder: JobFolder) -> list[str]:
    """What the sweep warned of, each once."""
    return list(
        dict.fromkeys(str(event.get("message")) for event in folder.events()[0] if event.get("event") == "warning")
    )
