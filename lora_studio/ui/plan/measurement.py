"""A few real steps on this machine, so that a plan's time is measured: a job of the project without a LoRA to keep."""

from __future__ import annotations

import shutil

from lora_studio.dataset.images.sets import project_images
from lora_studio.errors import InputError
from lora_studio.planning.speeds import shortest_run
from lora_studio.settings.job_specs import TrainJob
from lora_studio.settings.recipe import Recipe
from lora_studio.ui.state.jobs import Jobs
from lora_studio.workspace.job_folder import JobFolder
from lora_studio.workspace.project import Project


def start_measurement(jobs: Jobs, project: Project, recipe: Recipe) -> JobFolder:
    """Start a short training with a recipe, and remove what earlier ones left.

    Raises InputError if the project has no images, or if one is already active.
    """
    if not project_images(project):
        raise InputError(f"{project.name} has no images yet.", "Import some in Dataset.", code="no_images")
    for folder in project.measurements():
        if folder.status().state.is_active:
            raise InputError("The time is already being measured.", "Wait for it, or stop it.", code="busy")
        shutil.rmtree(folder.path, ignore_errors=True)
    info = project.info()
    job = TrainJob(
        name="measurement",
        dataset=project.dataset_dir,
        base=info.base,
        trigger_word=info.trigger_word,
        recipe=shortest_run(recipe),
    )
    return jobs.start(project.new_measurement_dir(), job)


def latest_measurement(project: Project) -> JobFolder | None:
    """Return the measurement that was started last; None if there was none."""
    return next(reversed(project.measurements()), None)


def signature(folder: JobFolder | None) -> str:
    """Return a text that changes whenever the page must show something else about a job."""
    if folder is None:
        return ""
    status = folder.status()
    return "|".join(map(str, (folder.name, status.state, status.message, status.done, folder.stop_requested())))
