"""The example project, and the demo that runs the whole workflow on it: example images, embedded small model."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from lora_studio.dataset.images.sets import project_images
from lora_studio.dataset.ingest.importers import import_paths
from lora_studio.errors import InputError, JobError
from lora_studio.event_recorder import Listener
from lora_studio.files import shipped_folder
from lora_studio.ledger.records import read_figures
from lora_studio.planning.presets import load_preset
from lora_studio.settings.choices import ExistingCaptions, LoraKind
from lora_studio.settings.job_specs import SweepJob
from lora_studio.workflow.make import MakeOptions, make_project
from lora_studio.workspace.job_folder import JobFolder
from lora_studio.workspace.project import Home, Project, ProjectInfo

EXAMPLE_NAME = "inkstamp"
EXAMPLE_IMAGES = shipped_folder("examples") / EXAMPLE_NAME
TRIGGER = "inkstamp_hc"
BASE = "embedded"
STYLE_TAGS = ("black", "white")  # on every image: left out of the captions, so that the trigger word learns them
PROMPTS = ("{trigger}, grinning face", "{trigger}, red apple", "{trigger}, house", "{trigger}, cat face", "clock")


class DemoResult(NamedTuple):
    """Files and figures of a demo."""

    images: int
    set_aside: int
    run: Path
    lora: Path
    grid: Path
    verdict: str
    figures: list[str]
    seconds: float

    def lines(self) -> list[str]:
        """Return the result as lines of text."""
        return [
            f"{self.images} images kept, {self.set_aside} set aside.",
            f"Run: {self.run}",
            f"LoRA: {self.lora}",
            f"Grid: {self.grid}",
            self.verdict,
            *self.figures,
            f"{self.seconds:.0f} seconds in total.",
        ]


def example_project_info() -> ProjectInfo:
    """Return the settings of the example project: a style on the embedded base."""
    return ProjectInfo(kind=LoraKind.STYLE, trigger_word=TRIGGER, base=BASE)


def create_example(home: Home) -> Project:
    """Create a project with the example images, named after the set; raises StudioError for errors of the disk."""
    project = home.create_project(unused_name(home, EXAMPLE_NAME), example_project_info())
    import_paths([EXAMPLE_IMAGES], project.images_dir)
    return project


def ensure_example(home: Home) -> Project:
    """Return the example project; create it if it does not exist."""
    known = {project.name: project for project in home.projects()}
    return known.get(EXAMPLE_NAME) or create_example(home)


def unused_name(home: Home, name: str) -> str:
    """Return `name`, or the first of `name 2`, `name 3`... that no project has."""
    taken = {project.name.lower() for project in home.projects()}
    number, candidate = 1, name
    while candidate.lower() in taken:
        number += 1
        candidate = f"{name} {number}"
    return candidate


def run_demo(
    out: Path, *, home: Home, steps: int | None, on_event: Listener, on_stage: Callable[[str], None]
) -> DemoResult:
    """Make a LoRA of the example images in `out`, which gets the layout of a project: all stages, without a stop.

    `steps` limits the training. Raises InputError if `out` is not empty, StudioError if a stage fails.
    """
    started = time.monotonic()
    out = out.expanduser().resolve()
    if out.exists() and any(out.iterdir()):
        raise InputError(f"--out {out} is not empty.", "Give a new or an empty folder.", code="not_empty")
    project = Project(out)
    recipe = load_preset("demo") | {"validation_split": 0.0} | ({} if steps is None else {"max_train_steps": steps})
    project.save_info(example_project_info().model_copy(update={"recipe": recipe}))
    images = import_paths([EXAMPLE_IMAGES], out / "dataset" / "10_inkstamp")
    options = MakeOptions(
        confirmed=True,
        tagger="demo",
        existing=ExistingCaptions.APPEND,
        exclude_tags=STYLE_TAGS,
        prompts=PROMPTS,
        seeds=(SweepJob.defaults().seeds[0],),
        name=EXAMPLE_NAME,
    )
    made = make_project(project, options, home=home, on_event=on_event, on_stage=on_stage)
    if made.run is None or made.lora is None or made.grid is None:
        raise JobError("The demo was stopped.", "Run it again into a new folder.", code="stopped")
    lora, grid = (Path(shutil.copy2(source, out / source.name)) for source in (made.lora, made.grid))
    verdict = read_figures(JobFolder(made.run)).verdict
    kept = len(project_images(project))
    return DemoResult(
        images=kept,
        set_aside=len(images.added) - kept,
        run=made.run,
        lora=lora,
        grid=grid,
        verdict=f"{verdict.title}. {verdict.evidence} {verdict.next_step}" if verdict else "",
        figures=_style_figures(json.loads((made.grid.parent / "measures.json").read_text("utf-8"))["rows"]),
        seconds=time.monotonic() - started,
    )


def _style_figures(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return colourfulness and the share of black or white pixels by strength: the example style is black and white."""

    def by_strength(name: str, form: str) -> str:
        return ", ".join(f"{row[name]:{form}} at {row['strength']:g}" for row in rows)

    return [
        f"Colourfulness (0 is grey): {by_strength('saturation', '.2f')}.",
        f"Nearly black or white pixels: {by_strength('clipped', '.0%')}.",
    ]
