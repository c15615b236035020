"""Run all stages of a project: curate, tag, train, test and release; each continues where it was stopped."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import psutil
from pydantic import BaseModel

from lora_studio import api
from lora_studio.api.jobs import ignore
from lora_studio.dataset.captions.text import read_caption
from lora_studio.dataset.images.decode import find_images
from lora_studio.dataset.images.sets import project_images
from lora_studio.dataset.ingest.importers import import_paths
from lora_studio.errors import ConfigError, InputError, StudioError
from lora_studio.event_recorder import Listener
from lora_studio.ledger.data import captions_to_test
from lora_studio.models.catalogue import find_base
from lora_studio.planning.presets import load_preset
from lora_studio.planning.project_plan import load_plan
from lora_studio.plurals import format_count
from lora_studio.settings.choices import ExistingCaptions, LoraKind
from lora_studio.settings.prompt_sets import PROMPT_SETS
from lora_studio.settings.recipe import Recipe
from lora_studio.sharing.facts import chosen_lora
from lora_studio.sharing.folder import ReleaseResult, build_release
from lora_studio.sharing.options import ReleaseOptions
from lora_studio.workflow.record import (
    MAKE_FILE,
    STOP_FILE,
    MakeRecord,
    Stage,
    StageRecord,
    StageState,
    job_path,
    read_record,
)
from lora_studio.workspace.job_folder import JobFolder, slugify
from lora_studio.workspace.project import Home, Project, ProjectInfo

R = TypeVar("R", bound=BaseModel)
PROMPTS_OF_SET = 2
MIN_IMAGES_TO_SPLIT = 20  # fewer are all needed for training
VALIDATION_SPLIT = 0.1
SEEDS = (42, 43)


@dataclass(frozen=True)
class MakeOptions:
    """What is decided for all stages. With `confirmed` duplicates are set aside, and the captions are not reviewed.

    `tagger` is by default the base's, `prompts` those of the project's kind, `name` (of the LoRA) the project's.
    `existing` says what happens to existing captions; `exclude_tags` are left out of them.
    """

    confirmed: bool = False
    tagger: str = ""
    existing: ExistingCaptions = ExistingCaptions.IGNORE
    exclude_tags: Sequence[str] = ()
    prompts: Sequence[str] = ()
    seeds: Sequence[int] = SEEDS
    name: str = ""


class MakeResult(BaseModel):
    """What came of it: `stopped_at` is the stage that waits or was stopped, with `message`; None if all are done."""

    project: Path
    run: Path | None = None
    lora: Path | None = None
    grid: Path | None = None
    release: Path | None = None
    zip: Path | None = None
    stopped_at: Stage | None = None
    message: str = ""


def _quiet(text: str) -> None:
    pass


def make(
    images: Path | str,
    *,
    trigger_word: str = "",
    base: str = "",
    kind: LoraKind | str = "",
    name: str = "",
    hours: float | None = None,
    overrides: Mapping[str, Any] | None = None,
    tagger: str = "",
    yes: bool = False,
    again: bool = False,
    home: Home | None = None,
    on_event: Listener = ignore,
    on_stage: Callable[[str], None] = _quiet,
) -> MakeResult:
    """Make a LoRA of a folder of images, from duplicates to a release; return what came of it.

    The images are copied into the project `name` (default: the folder's name), or `images` is a project's folder. The
    first call stops after tagging, so that duplicates and captions can be looked at; the next call continues, as it
    does after a stop or an error. With `yes`, proposed duplicates are set aside and nothing waits. `again` starts with
    the first stage; earlier runs and tests stay. Given values replace the project's; the plan chooses the others.
    Raises StudioError.
    """
    home = home or Home.locate()
    given = {"trigger_word": trigger_word, "base": base, "kind": kind, "hours": hours, "recipe": dict(overrides or {})}
    answers = {key: value for key, value in given.items() if value}
    project = _project_of(Path(images).expanduser().resolve(), name, answers, home)
    if again:
        (project.path / MAKE_FILE).unlink(missing_ok=True)
    return make_project(project, MakeOptions(yes, tagger), home=home, on_event=on_event, on_stage=on_stage)


def make_project(
    project: Project,
    options: MakeOptions,
    *,
    home: Home,
    on_event: Listener = ignore,
    on_stage: Callable[[str], None] = _quiet,
) -> MakeResult:
    """Run the stages of a project that are not done; raises StudioError, which is recorded at its stage."""
    if read_record(project).is_running:
        raise InputError(f"{project.name} is being made already.", "Wait for it, or stop it first.", code="busy")
    project.check_idle("make")
    return _Making(project, options, home, on_event, on_stage, read_record(project)).run()


def result_of(project: Project, record: MakeRecord) -> MakeResult:
    """Return what came of a project's stages so far."""
    run, sweep = (job_path(project, record.stage(stage)) for stage in (Stage.TRAIN, Stage.TEST))
    release = job_path(project, record.stage(Stage.RELEASE))
    end = record.ended_at
    grid = sweep / "grid.png" if sweep else None
    return MakeResult(
        project=project.path,
        run=run,
        lora=chosen_lora(run) if run and record.is_done(Stage.TRAIN) else None,
        grid=grid if grid and grid.is_file() else None,
        release=release,
        zip=release.with_name(f"{release.name}.zip") if release else None,
        stopped_at=end,
        message=record.stage(end).text if end else "",
    )


@dataclass
class _Making:
    """The run of a project's stages."""

    project: Project
    options: MakeOptions
    home: Home
    on_event: Listener
    on_stage: Callable[[str], None]
    record: MakeRecord
    info: ProjectInfo = field(init=False)

    def run(self) -> MakeResult:
        """Run the stages in their order, until one is stopped or waits."""
        self.info = self.project.info()
        (self.project.path / STOP_FILE).unlink(missing_ok=True)
        own = psutil.Process()
        self.record.pid, self.record.pid_started = own.pid, own.create_time()
        stages: dict[Stage, Callable[[StageRecord], None]] = {
            Stage.CURATE: self.curate,
            Stage.TAG: self.tag,
            Stage.REVIEW: self.review,
            Stage.TRAIN: self.train,
            Stage.TEST: self.test,
            Stage.RELEASE: self.release,
        }
        for stage, act in stages.items():
            if self.record.is_done(stage):
                continue
            current = self.record.stages[stage] = self.record.stage(stage)
            if (self.project.path / STOP_FILE).exists():
                current.state = StageState.STOPPED
                self.record.save(self.project)
                break
            if not self.finish(stage, current, act):
                break
        return result_of(self.project, self.record)

    def finish(self, stage: Stage, current: StageRecord, act: Callable[[StageRecord], None]) -> bool:
        """Run a stage and record how it ends; return whether it is done."""
        current.remedy = current.code = ""
        was_shown = bool(current.text)  # the review: it waited before
        current.state = StageState.RUNNING
        self.record.save(self.project)
        self.on_stage(stage.value.capitalize())
        try:
            if stage is Stage.REVIEW and was_shown:
                current.state, current.text = StageState.DONE, "Continued."
            else:
                act(current)
        except StudioError as error:
            current.state, current.text = StageState.FAILED, error.message
            current.remedy, current.code = error.remedy, error.code
            raise
        finally:
            if current.state is StageState.RUNNING:
                current.state, current.text = StageState.STOPPED, "It was interrupted; it can be continued."
            self.record.save(self.project)
        self.on_stage(f"  {current.text}")
        return current.state is StageState.DONE

    def curate(self, current: StageRecord) -> None:
        """Find duplicates and unreadable files, and set them aside if that is confirmed."""
        report = api.curate(self.project.dataset_dir, apply=self.options.confirmed)
        kept = format_count(len(project_images(self.project)), "image")
        if self.options.confirmed:
            current.text = f"{kept} kept, {len(report.rejected)} set aside."
        else:
            current.text = f"{kept}, of which {len(report.proposed)} are proposed to be set aside."
        current.state = StageState.DONE

    def tag(self, current: StageRecord) -> None:
        """Caption the images that have no caption."""
        bare = [image for image in project_images(self.project) if read_caption(image) is None]
        if not bare and self.options.existing is ExistingCaptions.IGNORE:
            current.state, current.text = StageState.DONE, "All images have captions already."
            return
        plan = load_plan(self.project).plan
        tagger = self.options.tagger or (plan.tagger if plan else "")
        if not tagger:
            message = f"{format_count(len(bare), 'image')} without a caption, and no tagger suits {self.info.base}."
            raise InputError(message, "Give one, like --tagger wd14, or write the captions.", code="no_tagger")
        result = api.tag(
            self.project.dataset_dir,
            tagger=tagger,
            trigger_word=self.info.trigger_word,
            existing=self.options.existing,
            exclude_tags=self.options.exclude_tags,
            home=self.home,
            out=self.project.new_tag_dir(),
            on_event=self.on_event,
        )
        current.text = f"{format_count(result.tagged, 'image')} tagged by {tagger}."
        current.state = StageState.STOPPED if result.stopped else StageState.DONE

    def review(self, current: StageRecord) -> None:
        """Wait for a person to look at duplicates and captions, unless that was confirmed before."""
        if self.options.confirmed:
            current.state, current.text = StageState.DONE, "Not reviewed, as you asked."
            return
        current.state = StageState.STOPPED
        current.text = "Look at the proposed duplicates and the captions, then continue."

    def train(self, current: StageRecord) -> None:
        """Train the planned recipe, or resume the run that was stopped."""
        from lora_studio.training.train import TrainResult  # imports torch

        if (folder := job_path(self.project, current)) is not None:
            result = self.continued(folder, TrainResult)
        else:
            recipe = self.recipe()
            name = slugify(self.options.name or self.project.name)
            folder = self.project.new_run_dir(name)
            current.folder = str(folder.relative_to(self.project.path))
            self.record.save(self.project)
            result = api.train(
                self.project.dataset_dir,
                base=self.info.base,
                name=name,
                trigger_word=self.info.trigger_word,
                recipe=recipe,
                subsets=self.project.subsets(self.info),
                out=folder,
                home=self.home,
                on_event=self.on_event,
            )
        if result.stopped:
            current.state, current.text = StageState.STOPPED, f"Stopped at step {result.steps}."
            return
        verdict = f" {result.verdict.title}." if result.verdict else ""
        current.state, current.text = StageState.DONE, f"{result.steps} steps.{verdict}"

    def continued(self, folder: Path, kind: type[R]) -> R:
        """Return the result of a job that was begun: that of an earlier process if it has one, else resume the job."""
        if (finished := JobFolder(folder).result()) is not None:
            return kind.model_validate(finished)
        resumed: R = api.resume(folder, home=self.home, on_event=self.on_event)
        return resumed

    def recipe(self) -> Recipe:
        """Return the plan's recipe with the project's changes, and a validation split if there are enough images."""
        planned = load_plan(self.project)
        if planned.error is not None:
            raise planned.error
        values = planned.values
        images = len(project_images(self.project))
        if "validation_split" not in self.info.recipe and images >= MIN_IMAGES_TO_SPLIT:
            values["validation_split"] = VALIDATION_SPLIT
        return Recipe.parse(values)

    def test(self, current: StageRecord) -> None:
        """Draw the best checkpoint at several strengths, or the cells that a stopped test has not drawn."""
        from lora_studio.sampling.sweep import SweepResult  # imports torch

        if (folder := job_path(self.project, current)) is not None:
            result = self.continued(folder, SweepResult)
        else:
            run = job_path(self.project, self.record.stage(Stage.TRAIN))
            if run is None:
                raise InputError("The training run is gone.", "Train again on the Train tab.", code="no_run")
            folder = self.project.new_sweep_dir()
            current.folder = str(folder.relative_to(self.project.path))
            self.record.save(self.project)
            result = api.sweep(
                [chosen_lora(run)],
                bases=[self.info.base],
                prompts=self.options.prompts or [*prompts_to_test(self.info), *captions_to_test(run)],
                trigger_word=self.info.trigger_word,
                seeds=self.options.seeds,
                out=folder,
                home=self.home,
                on_event=self.on_event,
            )
        count = len(result.cells)
        current.text = f"{count} images drawn."
        current.state = StageState.STOPPED if result.stopped else StageState.DONE

    def release(self, current: StageRecord) -> None:
        """Write the folder and the zip to share."""
        run = job_path(self.project, self.record.stage(Stage.TRAIN))
        if run is None:
            raise InputError("The training run is gone.", "Train again on the Train tab.", code="no_run")
        released: ReleaseResult = build_release(run, ReleaseOptions())
        current.folder = str(released.folder.relative_to(self.project.path))
        current.state, current.text = StageState.DONE, f"{len(released.files)} files in {current.folder}."


def prompts_to_test(info: ProjectInfo) -> list[str]:
    """Return the prompts of a project's test: a few of each of its kind's sets; the recipe's for the embedded base."""
    base = find_base(info.base)
    if base is not None and base.is_embedded:
        return [*load_preset("demo")["sample_prompts"], "clock"]
    return [prompt for prompts in PROMPT_SETS[info.kind].values() for prompt in prompts[:PROMPTS_OF_SET]]


def _project_of(folder: Path, name: str, answers: Mapping[str, Any], home: Home) -> Project:
    """Return the project that a folder is, or the one of its name with its images imported, with the given answers.

    Raises InputError for a folder without images, ConfigError for wrong answers, before anything is written.
    """
    if (folder / "project.json").is_file():
        return _with_answers(Project(folder), answers)
    if not folder.is_dir() or not find_images(folder):
        raise InputError(f"There are no images in {str(folder)!r}.", "Give a folder with images.", code="no_images")
    wanted = name or slugify(folder.name) or "images"
    known = next((project for project in home.projects() if project.name == wanted), None)
    project = _with_answers(known, answers) if known else home.create_project(wanted, _answers(ProjectInfo(), answers))
    import_paths([folder], project.images_dir)
    return project


def _with_answers(project: Project, given: Mapping[str, Any]) -> Project:
    info = _answers(project.info(), given)
    project.change_info(**{name: getattr(info, name) for name in given})
    return project


def _answers(info: ProjectInfo, given: Mapping[str, Any]) -> ProjectInfo:
    """Return a project's settings with the given ones; raises ConfigError for a value that cannot be used."""
    found = ProjectInfo.parse({**info.model_dump(), **given, "recipe": info.recipe | given.get("recipe", {})})
    if not found.trigger_word:
        raise ConfigError(["trigger_word is missing"], "Give a new word, like --trigger saria_zelda.")
    return found
