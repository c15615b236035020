"""The job that the form describes, its figures, and the subsets that are stored beside it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from lora_studio.errors import ConfigError
from lora_studio.planning.project_plan import NextRun, load_plan, save_changes
from lora_studio.settings.job_specs import TrainJob
from lora_studio.settings.recipe import Recipe
from lora_studio.settings.subsets import Subset
from lora_studio.ui.train.lineage import save_parent, saved_parent
from lora_studio.ui.train.state import OtherFields, TrainForm
from lora_studio.ui.widgets.job_fields import JobFiles
from lora_studio.workspace.project import Project


def save_subsets(project: Project, subsets: Sequence[Subset]) -> None:
    """Store subsets by the names of their folders, if they are new."""
    named = [subset.model_copy(update={"image_dir": Path(subset.image_dir.name)}) for subset in subsets]
    project.change_info(subsets=named)


def save_run_settings(project: Project, name: str, job: TrainJob, values: Mapping[str, Any]) -> OtherFields:
    """Store a run's settings as changes to the project's plan, some of them with other values, and the run as parent.

    Returns the fields outside of the recipe.
    """
    recipe = Recipe.parse({**job.recipe.model_dump(), **values}) if values else job.recipe
    save_subsets(project, job.subsets)
    save_changes(project, recipe, load_plan(project).recipe)
    save_parent(project, name)
    return OtherFields(job.name, JobFiles.of(job))


def figures_of(form: TrainForm, recipe: Recipe) -> NextRun:
    """Return a run of the form with another recipe, with its figures."""
    return form.planned.run_with(recipe, form.other.files.regularization, form.other.files.num_processes)


def job_of(form: TrainForm, recipe: Recipe) -> TrainJob:
    """Return the job that the form describes; raises ConfigError for a wrong name or file."""
    return next_job(form.project, form.other, recipe)


def next_job(project: Project, other: OtherFields, recipe: Recipe) -> TrainJob:
    """Return the job of a project with the fields outside of the recipe; raises ConfigError for a wrong one."""
    info, parent = project.info(), saved_parent(project)
    own = {
        "name": other.name,
        "dataset": project.dataset_dir,
        "base": info.base,
        "trigger_word": info.trigger_word,
        "subsets": project.subsets(info),
        "parent": parent.path if parent else None,
    }
    return TrainJob.parse({**own, "recipe": recipe, **asdict(other.files)})


def with_job(run: NextRun, other: OtherFields) -> NextRun:
    """Return a run with its job, None while a setting or a file is wrong."""
    job = None
    if run.recipe is not None:
        with suppress(ConfigError):
            job = next_job(run.planned.project, other, run.recipe)
    return replace(run, job=job)
