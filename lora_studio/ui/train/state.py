"""What the Train tab contains when an event comes, and what it shows: the form of the next run, or a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from lora_studio.errors import InputError
from lora_studio.interop.write import ExportedSettings
from lora_studio.planning.project_plan import NextRun, ProjectPlan, load_plan
from lora_studio.ui.context import NEW_RUN, EditedRun
from lora_studio.ui.state.run_history import RunHistories, RunView, run_named
from lora_studio.ui.train.exchange import ProjectImport
from lora_studio.ui.widgets.job_fields import JobFiles
from lora_studio.ui.widgets.recipe_form import RecipeContents
from lora_studio.workspace.job_folder import JobFolder, JobStatus
from lora_studio.workspace.project import Project
from lora_studio.workspace.run_queue import RunQueue


@dataclass(frozen=True)
class TrainPage:
    """The project, the run that the page shows (None before a choice was made), and the signature of what it shows."""

    project: Project
    run: str | None
    signature: str


@dataclass(frozen=True)
class OtherFields:
    """The contents of the fields outside of the recipe."""

    name: str
    files: JobFiles = field(default_factory=JobFiles)


@dataclass(frozen=True)
class TrainForm:
    """The page with the contents of the form.

    `filled_from` is the plan that the form was filled from; None if it was not filled for this project, or by a server
    that has been restarted since. `taken_back` names the settings that Plan has set back to the plan since then,
    `edited` is the run that Test has chosen to fill the form with.
    """

    project: Project
    run: str | None
    filled_from: ProjectPlan | None
    typed: Mapping[str, Any]
    other: OtherFields
    taken_back: Sequence[str] = ()
    edited: EditedRun | None = None

    @cached_property
    def planned(self) -> ProjectPlan:
        """The plan that the form was filled from, or the present one."""
        return self.filled_from or load_plan(self.project)

    def contents(self, values: Mapping[str, Any] | None = None) -> RecipeContents:
        """Return what the user typed, with some settings set to `values`."""
        return RecipeContents(self.planned.recipe, self.typed, {}).with_values(values or {})


@dataclass(frozen=True)
class RunList:
    """The runs of a project, oldest first. `signature` changes whenever the page must be updated."""

    runs: tuple[RunView, ...]
    signature: str


@dataclass(frozen=True)
class TrainState:
    """What the tab shows: a run, or the form of the next run, or neither if only the list of runs is updated.

    `form` and `other` are what the form is set to; None if it keeps what it contains. `listed` is None if the list of
    runs stays as it is. `exchanged` is what was imported or exported, `preset_note` what was done with a preset,
    `preset_file` one to download, `file_offer` what is shown of the LoRA to start from, `variants` what of the grid of
    variants.
    """

    shown: RunView | NextRun | None
    listed: RunList | None = None
    form: RecipeContents | None = None
    other: OtherFields | None = None
    exchanged: ProjectImport | ExportedSettings | None = None
    file_offer: str | None = None
    variants: str | None = None
    preset_note: str = ""
    preset_file: Path | None = None
    is_job_started: bool = False
    opens_plan: bool = False


@dataclass(frozen=True)
class RunReader:
    """Reads the runs of projects, each event once."""

    histories: RunHistories = field(default_factory=RunHistories)

    def run(self, project: Project, name: str) -> RunView:
        """Return a run; raises InputError if the project has none with this name."""
        return RunView.load(run_named(project, name), self.histories)

    def shown(self, page: TrainPage) -> RunView:
        """Return the run that a page shows; raises InputError while it shows the form."""
        return self.run(page.project, self.default_run(page.project) if page.run is None else page.run)

    def shown_or_form(self, page: TrainPage) -> RunView | None:
        """Return the run that a page shows, None if it shows the form."""
        name = self.default_run(page.project) if page.run is None else page.run
        return None if name == NEW_RUN else self.run(page.project, name)

    def run_list(self, project: Project, shown: str) -> RunList:
        """Return the runs of a project that can be read, while the page shows that named `shown` or the form.

        The signature is that before they are read, so that what changes meanwhile is shown at the next tick. For the
        same reason the list is read before the run that is shown.
        """
        signature, runs = self.signature(project, shown), []
        for folder in project.runs():
            with suppress(InputError):
                runs.append(RunView.load(folder, self.histories))
        return RunList(tuple(runs), signature)

    def default_run(self, project: Project) -> str:
        """Return the active run, else the form if it has changes that were not trained with, else the latest run."""
        folders = project.runs()
        active = [folder.name for folder in folders if folder.status().state.is_active]
        if active or not folders:
            return active[0] if active else NEW_RUN
        latest = RunView.load(folders[-1], self.histories)
        trained = latest.job.recipe.model_dump(mode="json")
        has_new = any(trained.get(name) != value for name, value in project.info().recipe.items())
        return NEW_RUN if has_new else latest.folder.name

    def signature(self, project: Project, shown: str) -> str:
        """Return a text that changes whenever a page that shows this run, or the form, must be updated."""
        parts = [project.name, shown, RunQueue(project.home).signature()]
        for folder in project.runs():
            status = folder.status()
            detail = _shown_detail(folder, status) if folder.name == shown else ""
            parts.append(f"{folder.name}:{status.state}:{detail}")
            if folder.name == shown and folder.events_file.exists():
                parts.append(str(folder.events_file.stat().st_size))
        return "|".join(parts)


def _shown_detail(folder: JobFolder, status: JobStatus) -> str:
    """Return what changes on the page of a run besides its state and events."""
    return f"{status.updated_at}:{folder.stop_requested()}:{folder.samples_requested()}:{folder.save_requested()}"
