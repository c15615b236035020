"""A test as the page shows it: its job, the cells that are drawn, and the measures."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from pydantic import TypeAdapter

from lora_studio.errors import InputError
from lora_studio.events import WarningEvent
from lora_studio.files import cached_by_stamp
from lora_studio.lora.header import LoraFile, read_lora_header
from lora_studio.sampling.cells import CellKey, SweepPlan
from lora_studio.sampling.measures import StrengthMeasures
from lora_studio.sampling.picture_measures import PictureMeasures
from lora_studio.settings.job_specs import SweepJob
from lora_studio.workspace.cell_stars import starred_cells
from lora_studio.workspace.job_folder import JobFolder, JobState, JobStatus
from lora_studio.workspace.project import Project

MAX_CACHED_HEADERS = 64
_ROWS = TypeAdapter(list[StrengthMeasures])


@dataclass(frozen=True)
class SweepView:
    """Everything about one test that the page shows.

    `drawn` has the file names of the finished cells, `starred` those with a star.
    """

    folder: JobFolder
    job: SweepJob
    status: JobStatus
    plan: SweepPlan
    drawn: frozenset[str]
    measures: list[StrengthMeasures]
    warnings: list[str]
    pictures: PictureMeasures | None = None
    starred: frozenset[str] = frozenset()

    @classmethod
    def load(cls, folder: JobFolder) -> SweepView:
        """Read a test; raises InputError if its job file cannot be read."""
        job = folder.job()
        if not isinstance(job, SweepJob):
            raise InputError(f"{folder.name} is not a test.", "Select another one.", code="no_sweep")
        cells = folder.path / "cells"
        return cls(
            folder=folder,
            job=job,
            status=folder.status(),
            plan=SweepPlan(
                job,
                [_header_or_name(path) for path in job.loras],
                [_header_or_name(given.path) for given in job.with_loras],
            ),
            drawn=frozenset(path.name for path in cells.glob("*.png")) if cells.is_dir() else frozenset(),
            measures=_measures(folder.path / "measures.json"),
            warnings=_warnings(folder),
            pictures=_pictures(folder.path / "measures.json"),
            starred=_starred(folder),
        )

    @property
    def is_active(self) -> bool:
        """True while the test is running or queued."""
        return self.status.state.is_active

    @property
    def grid(self) -> Path | None:
        """The file of the whole grid, once it is made."""
        path = self.folder.path / "grid.png"
        return path if path.is_file() else None

    @property
    def current_cell(self) -> CellKey | None:
        """The cell that is being drawn."""
        if self.status.state is not JobState.RUNNING:
            return None
        return next((key for key in self.plan.cells if self.file_name(key) not in self.drawn), None)

    def file_name(self, key: CellKey) -> str:
        """Return the name of a cell's file."""
        return self.plan.path(key).name

    def path(self, key: CellKey) -> Path:
        """Return the path of a cell's file."""
        return self.folder.path / self.plan.path(key)

    def drawn_cell(self, file_name: object) -> CellKey:
        """Return a finished cell by its file name; raises InputError if there is none."""
        for key in self.plan.cells:
            if file_name == self.file_name(key) and file_name in self.drawn:
                return key
        message = f"There is no image {file_name!r} in test {self.folder.name}."
        raise InputError(message, "Select one in the grid.", code="no_cell")


def sweep_named(project: Project, name: str) -> JobFolder:
    """Return a test of the project by its folder's name; raises InputError if there is none."""
    for folder in project.sweeps():
        if folder.name == name:
            return folder
    raise InputError(f"There is no test {name!r} in {project.name}.", "Select one from the list.", code="no_sweep")


def _header_or_name(path: Path) -> LoraFile:
    """Return a LoRA's header; of a file that was deleted, its name only."""
    try:
        return _header(path)
    except (OSError, InputError):
        return LoraFile(path, {}, {}, 0)


@cached_by_stamp(MAX_CACHED_HEADERS)
def _header(path: Path) -> LoraFile:
    return read_lora_header(path)


def _measures(file: Path) -> list[StrengthMeasures]:
    """Return the rows of measures.json; none if it is missing or damaged."""
    try:
        return _ROWS.validate_python(json.loads(file.read_bytes())["rows"])
    except (OSError, ValueError, KeyError, TypeError):
        return []


def _pictures(file: Path) -> PictureMeasures | None:
    """Return the measures by features; None if there are none, or the file is damaged."""
    try:
        return PictureMeasures.model_validate(json.loads(file.read_bytes())["pictures"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _warnings(folder: JobFolder) -> list[str]:
    """Return the messages of the test's warning events, each once."""
    return list(dict.fromkeys(event.message for event in folder.events()[0] if isinstance(event, WarningEvent)))


def _starred(folder: JobFolder) -> frozenset[str]:
    """Return the names of the starred cells; none if the file is damaged, which the next star reports."""
    try:
        return frozenset(starred_cells(folder.path))
    except InputError:
        return frozenset()
