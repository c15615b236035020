"""The guided tour of the example project: a card that names the next step, and points at its button."""

from __future__ import annotations

import json
from typing import NamedTuple

from markupsafe import Markup

from lora_studio.example import EXAMPLE_NAME
from lora_studio.ui.context import TabName
from lora_studio.ui.widgets.html import render
from lora_studio.workspace.job_folder import JobFolder, JobState
from lora_studio.workspace.project import Project


class TourStep(NamedTuple):
    """A step of the tour. Its button is the first element that is visible of those that `targets` select."""

    number: int
    title: str
    text: str
    targets: list[str]


def _in(tab: TabName, *targets: str) -> list[str]:
    return [*targets, f'[role="tab"][data-tab-id="{tab.value}"]']


def _section(name: str) -> str:
    return f'#dataset-section label:has(input[value="{name}"])'


CURATE = TourStep(
    1,
    "Set the duplicates aside",
    "The example has 24 images. Some are duplicates of others, also mirrored and resized; the scan in Dataset, Curate "
    "has found them. Nothing is deleted.",
    _in(TabName.DATASET, "#curate-apply", _section("Curate")),
)
TAG = TourStep(
    2,
    "Tag the images",
    "The tagger of the embedded model writes a caption for each image, with the trigger word first.",
    _in(TabName.DATASET, "#tag-start", _section("Tag")),
)
TRAIN = TourStep(
    3,
    "Start the training",
    "The plan has chosen every setting. The run takes a few minutes on a CPU.",
    _in(TabName.TRAIN, "#train-start", "#train-new"),
)
WATCH = TourStep(
    3, "The LoRA is training", "Loss and samples appear in Train. You may close the page meanwhile.", _in(TabName.TRAIN)
)
TEST = TourStep(
    4,
    "Draw the grid",
    "The same prompts with the same seed, without the LoRA and at rising strengths.",
    _in(TabName.TEST, "#test-start"),
)
DRAW = TourStep(4, "The grid is being drawn", "Image by image, in Test. Look from left to right.", _in(TabName.TEST))
DONE = TourStep(
    5,
    "That is all of it",
    "The measures below the grid say which strength to use. Your own images go the same way: Projects, Start page, "
    "Import my images.",
    _in(TabName.TEST, "#project-menu-button"),
)
STEPS = 5


def tour_step(project: Project) -> TourStep | None:
    """Return the next step of an example project; None for other projects."""
    if project.name != EXAMPLE_NAME and not project.name.startswith(f"{EXAMPLE_NAME} "):
        return None
    sweeps, runs, tags = project.sweeps(), project.runs(), list(project.jobs_in("tags"))
    if _has(sweeps, JobState.DONE):
        return DONE
    if any(job.status().state.is_active for job in sweeps):
        return DRAW
    if _has(runs, JobState.DONE):
        return TEST
    if any(job.status().state.is_active for job in runs):
        return WATCH
    if _has(tags, JobState.DONE):
        return TRAIN
    return TAG if any(project.rejected_dir.glob("*")) else CURATE


def _has(jobs: list[JobFolder], state: JobState) -> bool:
    return any(job.status().state is state for job in jobs)


def tour_card(project: Project | None) -> Markup | str:
    """Return the card of the next step; empty if the project is not an example."""
    step = tour_step(project) if project is not None else None
    if step is None:
        return ""
    return render("app/demo_tour.html", step=step, steps=STEPS, targets=json.dumps(step.targets))
