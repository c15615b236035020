"""The run that the next run is made from: what differs from it, and several changes split into runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass

from markupsafe import Markup

from lora_studio.errors import InputError
from lora_studio.ledger.data import read_data
from lora_studio.ledger.experiments import Variant, split_changes
from lora_studio.ledger.next_run import changes_to_parent
from lora_studio.ledger.records import INPUTS, DataChange, RunRecord, data_changes, input_changes
from lora_studio.planning.project_plan import NextRun
from lora_studio.settings.changes import SettingChange, setting_changes
from lora_studio.settings.job_specs import TrainJob
from lora_studio.settings.recipe import Recipe
from lora_studio.ui.state.run_history import RunView, run_named
from lora_studio.ui.widgets.html import render
from lora_studio.workspace.job_folder import JobFolder
from lora_studio.workspace.project import Project

SPLIT = ":split"
NO_PARENT = ":none"


@dataclass(frozen=True)
class Lineage:
    """The parent of the next run, and the changes to it; `variants` has one run per change if there are several."""

    parent: JobFolder
    settings: Sequence[SettingChange]
    inputs: Sequence[DataChange]
    variants: Sequence[Variant]


def saved_parent(project: Project) -> JobFolder | None:
    """Return the run that the next run of a project is made from; None if there is none any more."""
    name = project.info().parent
    if name:
        with suppress(InputError):
            return run_named(project, name)
    return None


def save_parent(project: Project, name: str) -> None:
    """Store the run that the next run is made from; an empty name for none."""
    project.change_info(parent=name)


def lineage_of(run: NextRun) -> Lineage | None:
    """Return the parent of the next run and all that differs from it; None without a parent, or with wrong settings."""
    project = run.planned.project
    parent = saved_parent(project)
    if parent is None or run.job is None:
        return None
    with suppress(InputError):
        before = parent.job()
        if isinstance(before, TrainJob):
            recipe = run.job.recipe
            inputs = changes_to_parent(run.job, parent, before, project.home)
            variants = split_changes(recipe, before.recipe)
            return Lineage(parent, setting_changes(recipe, before.recipe), inputs, variants)
    return None


def lineage_card(lineage: Lineage | None) -> Markup:
    """Return the differences to the parent, with a button that splits several into runs; empty without a parent.

    The buttons pick SPLIT or NO_PARENT.
    """
    if lineage is None:
        return Markup("")
    return render(
        "train/lineage.html",
        parent=lineage.parent.name,
        inputs=[(input_label(change.name), change.text) for change in lineage.inputs],
        changes=lineage.settings,
        variants=[", ".join(change.label for change in variant.changes) for variant in lineage.variants],
        split=SPLIT,
        no_parent=NO_PARENT,
    )


def split_runs(run: NextRun, job: TrainJob) -> list[TrainJob]:
    """Return one job per change to the parent, in the guide's order; raises InputError with fewer than two changes."""
    lineage = lineage_of(run)
    if lineage is None or not lineage.variants:
        raise InputError(
            "There are fewer than two changes that work alone.", "Start them as one run instead.", code="no_split"
        )
    return [job.model_copy(update={"recipe": variant.recipe}) for variant in lineage.variants]


def changes_since(run: RunView, parent: RunView | None) -> list[str]:
    """Return what differs from a run's parent, as texts like "Base: SDXL 1.0 → Pony V6 XL".

    Without a parent it is compared with the guide's defaults.
    """
    before = parent.job if parent else run.job.model_copy(update={"recipe": Recipe()})
    changes = input_changes(run.job, before)
    if parent is not None:
        changes += data_changes(read_data(run.folder.path), read_data(parent.folder.path))
    lines = [f"{input_label(change.name)}: {change.text}" for change in changes]
    settings = setting_changes(run.job.recipe, before.recipe)
    return lines + [f"{change.label}: {change.before_text} → {change.value_text}" for change in settings]


def differences_card(
    record: RunRecord, title: str, *, buttons: Mapping[str, str] | None = None, path: str = ""
) -> Markup:
    """Return what differs between a run and its parent as a card; `buttons` are texts by what they pick."""
    return render(
        "train/run_detail.html",
        title=title,
        parent=record.parent.name if record.parent else "",
        inputs=[(input_label(change.name), change.text) for change in record.data_changes],
        changes=record.recipe_changes,
        buttons=buttons or {},
        path=path,
    )


def input_label(name: str) -> str:
    """Return the label of an input or of the data of a run: "Base", "Captions"."""
    return INPUTS.get(name, name.capitalize())
