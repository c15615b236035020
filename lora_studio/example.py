"""The example project, and the demo that runs the whole workflow on it: example images, embedded small model."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from lora_studio import api
from lora_studio.dataset.ingest.importers import import_paths
from lora_studio.errors import InputError
from lora_studio.files import shipped_folder
from lora_studio.planning.presets import load_preset
from lora_studio.settings.choices import ExistingCaptions, LoraKind
from lora_studio.settings.recipe import Recipe
from lora_studio.worker import Listener
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
    """Import, curate, tag, train and sweep into `out`, which gets the layout of a project.

    `steps` limits the training. Raises InputError if `out` is not empty, StudioError if a stage fails.
    """
    started = time.monotonic()
    out = out.expanduser().resolve()
    if out.exists() and any(out.iterdir()):
        raise InputError(f"--out {out} is not empty.", "Give a new or an empty folder.", code="not_empty")
    project = Project(out)
    images_dir = out / "dataset" / "10_inkstamp"
    project.save_info(example_project_info())

    on_stage(f"Dataset: the example images from {EXAMPLE_IMAGES.name}")
    import_paths([EXAMPLE_IMAGES], images_dir)
    report = api.curate(project.dataset_dir, apply=True)
    for line in report.lines():
        on_stage(f"  {line}")
    tagged = api.tag(
        project.dataset_dir,
        tagger="demo",
        trigger_word=TRIGGER,
        existing=ExistingCaptions.APPEND,
        exclude_tags=STYLE_TAGS,
        home=home,
        out=project.new_tag_dir(),
        on_event=on_event,
    )

    on_stage("Train: a LoRA on the embedded small model")
    recipe = Recipe.parse(load_preset("demo"))
    if steps is not None:
        recipe = recipe.model_copy(update={"max_train_steps": steps})
    trained = api.train(
        project.dataset_dir,
        base=BASE,
        name="inkstamp",
        trigger_word=TRIGGER,
        recipe=recipe,
        out=project.new_run_dir("inkstamp"),
        home=home,
        on_event=on_event,
    )
    if trained.lora is None:
        raise InputError(
            "The training was stopped.", f"Resume it with train --resume --out {trained.run}.", code="stopped"
        )

    on_stage("Test: the LoRA at several strengths")
    drawn = api.sweep(
        [trained.lora],
        bases=[BASE],
        prompts=list(PROMPTS),
        trigger_word=TRIGGER,
        out=project.new_sweep_dir(),
        home=home,
        on_event=on_event,
    )
    if drawn.grid is None:
        raise InputError("The sweep was stopped.", "Run the demo again into a new folder.", code="stopped")
    lora, grid = (Path(shutil.copy2(source, out / source.name)) for source in (trained.lora, drawn.grid))
    verdict = trained.verdict
    return DemoResult(
        images=tagged.tagged,
        set_aside=len(report.rejected),
        run=trained.run,
        lora=lora,
        grid=grid,
        verdict=f"{verdict.title}. {verdict.evidence} {verdict.next_step}" if verdict else "",
        figures=_style_figures(drawn.measures["rows"]),
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
