"""The one plan of a project, which Plan and Train show, and the user's changes to it.

The plan follows from the answers of Plan and the dataset. It is computed, never stored: project.json has the answers
and, under `recipe`, only the settings that the user set to other values in Train. The recipe of the next run is the
plan's with these changes on top. So both tabs always show the same plan, a new answer updates every setting that the
user left alone, and nothing that the user typed is lost.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lora_studio.dataset.images.sets import project_images
from lora_studio.device import device_to_plan_for, find_gpu
from lora_studio.errors import ConfigError, InputError
from lora_studio.planning.plan import PlanInputs, read_inputs
from lora_studio.planning.planned_run import Plan
from lora_studio.settings.changes import SettingChange, setting_changes
from lora_studio.settings.job_specs import TrainJob
from lora_studio.settings.recipe import Recipe
from lora_studio.workspace.project import Project, ProjectInfo


@dataclass(frozen=True)
class ProjectPlan:
    """A project's settings and the plan that follows from them; without a plan, `error` says why.

    `remote_gib` is the memory of the GPU of another computer that trains, which the plan fits instead of the one here.
    """

    project: Project
    info: ProjectInfo
    plan: Plan | None
    error: InputError | None = None
    remote_gib: float | None = None

    @property
    def recipe(self) -> Recipe:
        """The plan's recipe; the guide's defaults while there is no plan."""
        return self.plan.recipe if self.plan else Recipe()

    @property
    def values(self) -> dict[str, Any]:
        """The plan's settings with the user's changes on top. Together they may be invalid."""
        return self.recipe.model_dump() | self.info.recipe

    def is_same_plan(self, other: ProjectPlan) -> bool:
        """Return whether two plans follow from the same answers and are equal, whatever the user changed in them."""
        answers, others = (each.info.model_copy(update={"recipe": {}}) for each in (self, other))
        return (answers, self.plan, str(self.error)) == (others, other.plan, str(other.error))

    def changed_recipe(self) -> Recipe:
        """Return the plan's recipe with the user's changes; raises ConfigError if they cannot work together."""
        return Recipe.parse(self.values)

    def run_with(self, recipe: Recipe, regularization: Path | None = None, num_processes: int = 1) -> NextRun:
        """Return the next run, trained with exactly this recipe."""
        changes = setting_changes(recipe, self.recipe)
        if not changes and regularization is None and num_processes == 1:
            return NextRun(self, recipe, changes, self.plan, self.error)
        try:
            figures = _inputs(
                self.project, self.info, recipe, regularization, num_processes, remote_gib=self.remote_gib
            ).plan()
        except InputError as error:
            return NextRun(self, recipe, changes, error=error)
        return NextRun(self, recipe, changes, figures)

    def next_run(self, regularization: Path | None = None, num_processes: int = 1) -> NextRun:
        """Return the next run, trained with the plan and the user's changes."""
        try:
            return self.run_with(self.changed_recipe(), regularization, num_processes)
        except ConfigError as error:
            return NextRun(self, error=error)


@dataclass(frozen=True)
class NextRun:
    """The run that would be started now: its recipe, the user's changes in it, and its figures.

    `error` says why there is no recipe or no figures. `job` is what Train's form would start, None elsewhere.
    """

    planned: ProjectPlan
    recipe: Recipe | None = None
    changes: Sequence[SettingChange] = ()
    figures: Plan | None = None
    error: InputError | None = None
    job: TrainJob | None = None

    @property
    def compared_steps(self) -> str:
        """The number of steps, compared with the plan's: "120 steps instead of 480"."""
        if self.figures is None or self.planned.plan is None:
            return "no figures yet"
        steps, planned = self.figures.steps.total_steps, self.planned.plan.steps.total_steps
        noun = "step" if steps == 1 else "steps"
        return f"{steps:,} {noun}" + (", as planned" if steps == planned else f" instead of {planned:,}")


def load_plan(project: Project, *, remote_gib: float | None = None) -> ProjectPlan:
    """Plan a project, for a GPU with `remote_gib` if given; raises InputError if its project.json cannot be read."""
    info = project.info()
    try:
        plan = _inputs(project, info, remote_gib=remote_gib).plan()
    except InputError as error:
        return ProjectPlan(project, info, None, error, remote_gib)
    return ProjectPlan(project, info, plan, remote_gib=remote_gib)


def available_vram_gib(info: ProjectInfo) -> float | None:
    """Return the VRAM to plan for: the answer, else that of the GPU found here; None if neither is known."""
    gpu = find_gpu() if info.vram_gib is None else None
    return gpu.vram_gib if gpu else info.vram_gib


def project_recipe(project: Project) -> Recipe:
    """Return the recipe of a project's next run; the plan's alone if the user's changes cannot work with it."""
    planned = load_plan(project)
    try:
        return planned.changed_recipe()
    except ConfigError:
        return planned.recipe


def save_changes(project: Project, recipe: Recipe, planned: Recipe) -> None:
    """Store what the user changed in the planned recipe; the file is written only if that is new."""
    plain = recipe.model_dump(mode="json")
    project.change_info(recipe={change.name: plain[change.name] for change in setting_changes(recipe, planned)})


def plan_inputs(project: Project) -> PlanInputs:
    """Read what a project's plan follows from; raises InputError if there is no plan."""
    return _inputs(project, project.info())


def _inputs(
    project: Project,
    info: ProjectInfo,
    recipe: Recipe | None = None,
    regularization: Path | None = None,
    num_processes: int = 1,
    *,
    remote_gib: float | None = None,
) -> PlanInputs:
    """Read what a run on the project's images, or on the expected number of them, is planned from.

    `recipe` must be used as it is, without a limit on the time. `remote_gib` is the memory of another computer's GPU,
    whose speed is estimated. Raises InputError if the recipe cannot work.
    """
    return read_inputs(
        project.dataset_dir if project_images(project) else info.expected_images,
        kind=info.kind,
        base=info.base,
        vram_gib=available_vram_gib(info) if remote_gib is None else remote_gib,
        trigger_word=info.trigger_word,
        hours=info.hours if recipe is None else None,
        overrides=recipe.model_dump() if recipe else None,
        regularization=regularization,
        subsets=project.subsets(info) if project_images(project) else (),
        home=project.home,
        device=_device(info) if remote_gib is None else None,
        num_processes=num_processes,
    )


def _device(info: ProjectInfo) -> str | None:
    """Return the name of this machine's GPU, or CPU; None if the answer plans for another GPU."""
    gpu = find_gpu()
    if info.vram_gib is not None and (gpu is None or gpu.vram_gib != info.vram_gib):
        return None
    return device_to_plan_for()
