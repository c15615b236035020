"""What the Plan tab contains when an event comes, and what it shows after that."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from lora_studio.dataset.images.sets import project_images
from lora_studio.models.found import Model
from lora_studio.planning.project_plan import NextRun, ProjectPlan, load_plan, plan_inputs
from lora_studio.planning.what_if import Variable, what_if
from lora_studio.ui.plan.measurement import latest_measurement, signature
from lora_studio.ui.plan.what_if import Sweep
from lora_studio.ui.state.base_models import ChosenBase
from lora_studio.ui.state.first_tests import latest_first_test, load_first_test
from lora_studio.ui.state.sweep_view import SweepView
from lora_studio.workspace.job_folder import JobFolder
from lora_studio.workspace.project import Project, ProjectInfo


@dataclass(frozen=True)
class PlanPage:
    """A project with its saved settings, with those that the answers in the form make, and the shown jobs.

    `variable` is that of the open fold "What if"; None while it is closed.
    """

    project: Project
    saved: ProjectInfo
    answers: ProjectInfo
    signature: str = ""
    variable: Variable | None = None

    def save(self, info: ProjectInfo) -> None:
        """Save the settings that differ from the saved ones, and no others: another studio may have set those."""
        before, after = dict(self.saved), dict(info)
        if changes := {name: value for name, value in after.items() if value != before[name]}:
            self.project.change_info(**changes)

    def load(self, filled: Collection[str] = ()) -> PlanState:
        """Plan the project as it is saved; raises InputError if its project.json cannot be read."""
        return PlanState.load(self.project, filled, self.variable)


@dataclass(frozen=True)
class PlanState:
    """The plan of a project, and the run that Train would start with it.

    `images` is the number of images that are trained on; None while the dataset is empty. `filled` names the boxes that
    are set to the project's answers; the others keep what the user is typing. `measured` is the last measurement of the
    time, `first_test` that of the bare base. `models` are the base models to offer; None leaves the page's as they are.
    `is_job_started` says that a job has just been started. `sweep` has the plots of the open fold "What if". `draws`
    shows the plan as a picture. `taken_back` names the settings whose changes in Train were just set back to the plan.
    `opens_train` shows Train's form next. `signature` is that of the jobs, as they were when they were read.
    """

    planned: ProjectPlan
    next_run: NextRun
    images: int | None
    base: ChosenBase
    filled: Collection[str] = ()
    measured: JobFolder | None = None
    first_test: SweepView | None = None
    models: Sequence[Model] | None = None
    is_job_started: bool = False
    sweep: Sweep | None = None
    draws: bool = False
    taken_back: Collection[str] = ()
    opens_train: bool = False
    signature: str = ""

    @classmethod
    def load(cls, project: Project, filled: Collection[str] = (), variable: Variable | None = None) -> PlanState:
        """Plan a project, over a variable too if one is given; raises InputError if project.json cannot be read."""
        shown_jobs = jobs_signature(project)  # before their states are read, so that no change in between is missed
        planned = load_plan(project)
        images = (planned.plan.images if planned.plan else 0) if project_images(project) else None
        sweep = None
        if variable is not None:
            rows = what_if(plan_inputs(project), variable) if planned.plan else ()
            sweep = Sweep(variable, rows, planned.info.hours)
        return cls(
            planned,
            planned.next_run(),
            images,
            ChosenBase.load(planned.info.base, project.home),
            filled,
            latest_measurement(project),
            load_first_test(project),
            sweep=sweep,
            signature=shown_jobs,
        )


def jobs_signature(project: Project) -> str:
    """Return a text that changes whenever a job that Plan shows changes."""
    base = ChosenBase.load(project.info().base, project.home)
    jobs = (latest_measurement(project), latest_first_test(project))
    return "||".join([*map(signature, jobs), base.signature])
