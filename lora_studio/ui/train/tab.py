"""Train: is it going well? The form before a run; its curve, samples and verdict from then on."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import gradio as gr
from markupsafe import Markup

from lora_studio.dataset.images.sets import project_images
from lora_studio.errors import ConfigError, InputError, StudioError
from lora_studio.planning.plan import Plan, plan
from lora_studio.planning.presets import list_presets, load_preset, preset_title
from lora_studio.settings.job_specs import TrainJob
from lora_studio.settings.recipe import Recipe
from lora_studio.ui.context import Page, Studio, TabName, guarded, with_project
from lora_studio.ui.plan.tab import EXPECTED_IMAGES
from lora_studio.ui.plan.view import caution_cards, plan_tiles
from lora_studio.ui.state.run_history import RunHistories, RunView, run_named
from lora_studio.ui.train import view as train_view
from lora_studio.ui.widgets.events import NO_PROGRESS, Updates
from lora_studio.ui.widgets.html import empty_card, error_card, heading, html, pickable
from lora_studio.ui.widgets.job_fields import JobFields, build_job_fields
from lora_studio.ui.widgets.settings_form import RecipeForm, build_form
from lora_studio.ui.widgets.thumbnails import copy_to_save
from lora_studio.workspace.job_folder import JobState, slugify
from lora_studio.workspace.project import Project, ProjectInfo

FORM = ""  # what `studio.run` holds while the form is shown
PROJECT_RECIPE = "This project's recipe"
GUIDE_DEFAULTS = "The guide's defaults"
LOG_LINES = 40


class Buttons(NamedTuple):
    """What can be done with the run that is shown; only what applies is visible."""

    start: gr.Button
    stop: gr.Button
    resume: gr.Button
    test: gr.Button
    again: gr.Button


class FormSide(NamedTuple):
    """The form where the curve will be."""

    column: gr.Column
    name: gr.Textbox
    source: gr.Dropdown


class RunSide(NamedTuple):
    """The pictures of a run, and its details."""

    column: gr.Column
    curve: gr.HTML
    film: gr.HTML


class Aside(NamedTuple):
    """The right side."""

    notice: gr.HTML
    state: gr.HTML
    cards: gr.HTML
    runs: gr.HTML
    files: gr.Column
    path: gr.HTML
    download: gr.DownloadButton
    details: gr.Accordion
    recipe: gr.HTML
    log_fold: gr.Accordion
    log: gr.HTML


def build(studio: Studio, tab: gr.Tab) -> Page:
    """Build the tab and wire its events."""
    with gr.Row(elem_classes="title-row"):
        with gr.Column(scale=3, min_width=300):
            title = html(elem_id="train-title")
        with gr.Column(scale=2, min_width=320), gr.Row(elem_classes="actions"):
            buttons = Buttons(
                gr.Button("Start training", variant="primary", elem_id="train-start", visible=False),
                gr.Button("Stop and keep", elem_id="train-stop", visible=False),
                gr.Button("Resume", variant="primary", elem_id="train-resume", visible=False),
                gr.Button("Test it", variant="primary", elem_id="train-test", visible=False),
                gr.Button("Change and run again", elem_id="train-again", visible=False),
            )
    figures = html(elem_id="train-tiles")
    with gr.Row(elem_classes="sides"):
        with gr.Column(scale=3, min_width=340):
            form_side, form, others = _form_side()
            run_side = _run_side()
        with gr.Column(scale=2, min_width=320):
            aside = _aside()
    return TrainTab(studio, title, figures, buttons, form_side, form, others, run_side, aside).wire(tab)


def _form_side() -> tuple[FormSide, RecipeForm, JobFields]:
    with gr.Column(visible=False) as column:
        with gr.Row(elem_classes="fields"):
            name = gr.Textbox(
                label="Name of the LoRA",
                info="Its file name; a run's number is put before it.",
                max_lines=1,
                elem_id="train-name",
            )
            source = gr.Dropdown(
                _sources(),
                value=PROJECT_RECIPE,
                label="Fill the form from",
                info="A preset changes only what it names.",
                elem_id="train-source",
            )
        form = build_form()
        others = build_job_fields()
    return FormSide(column, name, source), form, others


def _sources() -> list[tuple[str, str]]:
    presets = [(f"{name}: {preset_title(name)}" if preset_title(name) else name, name) for name in list_presets()]
    return [(PROJECT_RECIPE, PROJECT_RECIPE), (GUIDE_DEFAULTS, GUIDE_DEFAULTS), *presets]


def _run_side() -> RunSide:
    with gr.Column(visible=False) as column:
        curve = html(elem_id="train-curve")
        film = html(elem_id="train-film")
    return RunSide(column, curve, film)


def _aside() -> Aside:
    notice = html(elem_id="train-notice")
    state = html(elem_id="train-state")
    cards = html(elem_id="train-cards")
    with gr.Column(visible=False) as files:
        path = html(elem_id="train-path")
        download = gr.DownloadButton("Download the LoRA", elem_id="train-download")
    with gr.Accordion("Recipe of this run", open=False, visible=False) as details:
        recipe = html()
    with gr.Accordion("Log", open=False, visible=False) as log_fold:
        log = html(elem_id="train-log")
    runs = pickable(elem_id="train-runs")
    return Aside(notice, state, cards, runs, files, path, download, details, recipe, log_fold, log)


class TrainTab:
    """Event handlers of the Train tab."""

    def __init__(
        self,
        studio: Studio,
        title: gr.HTML,
        figures: gr.HTML,
        buttons: Buttons,
        form_side: FormSide,
        form: RecipeForm,
        others: JobFields,
        run_side: RunSide,
        aside: Aside,
    ) -> None:
        self.studio = studio
        self.title = title
        self.figures = figures
        self.buttons = buttons
        self.form_side = form_side
        self.form = form
        self.others = others
        self.run_side = run_side
        self.aside = aside
        self.histories = RunHistories()
        self.seen = gr.State("")
        self.filled_from = gr.State("")

    def wire(self, tab: gr.Tab) -> Page:
        """Register the events."""
        studio, buttons = self.studio, self.buttons
        # The browser looks at every output of a tick: the form, which has many, is in none of them.
        live = [
            self.title,
            self.figures,
            *buttons,
            self.form_side.column,
            *self.run_side,
            *self.aside,
            self.seen,
            studio.run,
        ]
        form = [*self.form_side, *self.form.outputs, *self.others, self.filled_from]
        outputs = [*live, *(component for component in form if component not in live), studio.timer]
        chosen = {studio.project, studio.run}
        contents = {studio.project, self.form_side.name, *self.others, *self.form.inputs}

        def on(event: Any, handler: Any, inputs: Any, more: Any = (), **options: Any) -> None:
            event(guarded(self.aside.notice, handler), inputs, [*outputs, *more], **studio.with_progress, **options)

        on(buttons.start.click, self.start_training, contents)
        on(buttons.stop.click, self.stop_training, chosen)
        on(buttons.resume.click, self.resume_training, chosen)
        on(buttons.again.click, self.edit_and_rerun, chosen)
        on(self.aside.runs.click, self.select_run, [studio.project])
        on(self.form_side.source.input, self.load_settings, {studio.project, self.form_side.source})
        on(tab.select, self.tab_selected, {*chosen, self.filled_from, *contents})
        buttons.test.click(lambda: studio.goto(TabName.TEST), None, [studio.tabs], **NO_PROGRESS)
        gr.on(
            [*self.form.edits, self.others.regularization.blur],
            self.update_estimate,
            contents,
            [self.figures, self.aside.cards],
            **NO_PROGRESS,
            trigger_mode="always_last",
        )
        studio.timer.tick(
            self.tick,
            [studio.project, studio.run, self.seen],
            live,
            **NO_PROGRESS,
            queue=False,
            trigger_mode="always_last",
        )
        return Page(self.refresh, outputs)

    def refresh(self, project: Project) -> Updates:
        """Show the run at work, else a recipe that was not run yet, else the latest run."""
        return self._fill(project, project.info().recipe or Recipe()) | self._show(project, self._default_run(project))

    @with_project
    def tab_selected(self, data: dict[Any, Any]) -> Updates:
        """The tab was opened: what was typed stays, unless Plan made another recipe meanwhile."""
        project = self.studio.find_project(data[self.studio.project])
        recipe = project.info().recipe or Recipe()
        filled = self._fill(project, recipe) if data[self.filled_from] != _stamp(project, recipe) else {}
        if not filled and data[self.studio.run] == FORM:
            with suppress(ConfigError):
                recipe = self.form.parse(data)
        run = data[self.studio.run]
        if run is None or (run != FORM and run not in {folder.name for folder in project.runs()}):
            run = self._default_run(project)
        return filled | self._show(project, run, recipe)

    def start_training(self, data: dict[Any, Any]) -> Updates:
        """Write the job and start its worker process."""
        project = self.studio.find_project(data[self.studio.project])
        try:
            recipe = self.form.parse(data)
        except ConfigError as error:
            return {self.aside.notice: error_card(error)} | self.form.mark_errors(data)
        info = project.info()
        if not project_images(project):
            raise InputError(f"{project.name} has no images yet.", "Import some in Dataset.", code="no_images")
        others = self.others.values(data)
        self._plan(project, info, recipe, others["regularization"])
        job = TrainJob.parse(
            {
                "name": (data[self.form_side.name] or "").strip(),
                "dataset": project.dataset_dir,
                "base": info.base,
                "trigger_word": info.trigger_word,
                "recipe": recipe,
                **others,
            }
        )
        project.save_info(info.model_copy(update={"recipe": recipe}))
        folder = self.studio.jobs.start(project.new_run_dir(job.name), job)
        return (
            {self.filled_from: _stamp(project, recipe)} | self._show(project, folder.name) | self.studio.start_polling()
        )

    def stop_training(self, data: dict[Any, Any]) -> Updates:
        """Ask the run to end at its next step; what it learned is kept."""
        project, name = self._chosen(data)
        run_named(project, name).request_stop()
        return self._show(project, name)

    def resume_training(self, data: dict[Any, Any]) -> Updates:
        """Go on from the last checkpoint."""
        project, name = self._chosen(data)
        folder = run_named(project, name)
        if folder.status().state.is_active:
            raise InputError(f"{name} is at work already.", "Wait for it, or stop it first.", code="busy")
        self.studio.jobs.resume(folder)
        return self._show(project, name) | self.studio.start_polling()

    def edit_and_rerun(self, data: dict[Any, Any]) -> Updates:
        """Fill the form with this run's recipe, for one change and another run."""
        project, name = self._chosen(data)
        view = RunView.of(run_named(project, name), self.histories)
        filled = self._fill(project, view.job.recipe, view.job)
        return filled | self._show(project, FORM, view.job.recipe) | {self.form_side.source: None}

    def select_run(self, project_name: str, event: gr.EventData) -> Updates:
        """Look at another run."""
        project = self.studio.find_project(project_name)
        return self._show(project, run_named(project, str(event.pick)).name)

    def load_settings(self, data: dict[Any, Any]) -> Updates:
        """Fill the form from a preset, the guide or the project."""
        project = self.studio.find_project(data[self.studio.project])
        source = data[self.form_side.source]
        if source == PROJECT_RECIPE:
            recipe = project.info().recipe or Recipe()
        elif source == GUIDE_DEFAULTS:
            recipe = Recipe()
        elif source in list_presets():
            recipe = Recipe.parse(load_preset(source))
        else:
            raise InputError(f"There is no preset {source!r}.", "Choose one from the list.", code="no_preset")
        return self.form.fill(dict(recipe)) | self._estimate(project, project.info(), recipe)

    def update_estimate(self, data: dict[Any, Any]) -> Any:
        """The form changed: what it would make of the run. A single wrong value is marked at its field."""
        try:
            project = self.studio.find_project(data[self.studio.project])
            return self._estimate(
                project, project.info(), self.form.parse(data), self.others.values(data)["regularization"]
            )
        except StudioError:
            return gr.skip()

    def tick(self, project_name: str, run: str | None, seen: str) -> Any:
        """Show what is new; called while a job is at work."""
        try:
            project = self.studio.find_project(project_name)
            name = self._default_run(project) if run is None else run
            if self._signature(project, name) == seen:
                return gr.skip()
            if name == FORM:
                return {self.aside.runs: self._runs(project, name), self.seen: self._signature(project, name)}
            return self._show(project, name)
        except StudioError:
            return gr.skip()

    def _chosen(self, data: dict[Any, Any]) -> tuple[Project, str]:
        project = self.studio.find_project(data[self.studio.project])
        run = data[self.studio.run]
        return project, self._default_run(project) if run is None else run

    def _default_run(self, project: Project) -> str:
        runs = project.runs()
        active = [folder.name for folder in runs if folder.status().state.is_active]
        if active:
            return active[0]
        recipe = project.info().recipe
        if not runs or (recipe is not None and self._job(runs[-1]).recipe != recipe):
            return FORM
        return runs[-1].name

    def _job(self, folder: Any) -> TrainJob:
        return RunView.of(folder, self.histories).job

    def _show(self, project: Project, run: str, recipe: Recipe | None = None) -> Updates:
        """The whole tab for a run, or for the form; `recipe` is what the form holds (default: the project's)."""
        common = {
            self.studio.run: run,
            self.seen: self._signature(project, run),
            self.form_side.column: gr.Column(visible=run == FORM),
            self.run_side.column: gr.Column(visible=run != FORM),
            self.aside.runs: self._runs(project, run),
        }
        return common | (self._show_form(project, recipe) if run == FORM else self._show_run(project, run))

    def _show_form(self, project: Project, recipe: Recipe | None) -> Updates:
        info = project.info()
        facts = " · ".join(part for part in (info.base, info.trigger_word or "no trigger word yet") if part)
        return {
            self.title: Markup('<h2 class="run-title">New run</h2><p class="hint">{}</p>').format(facts),
            **self._buttons(start=True),
            self.aside.state: "",
            self.aside.files: gr.Column(visible=False),
            self.aside.details: gr.Accordion(visible=False),
            self.aside.log_fold: gr.Accordion(visible=False),
            **self._estimate(project, info, recipe or info.recipe or Recipe()),
        }

    def _show_run(self, project: Project, run: str) -> Updates:
        folder = run_named(project, run)
        view = RunView.of(folder, self.histories)
        ended = not view.alive
        failed = view.status.state is JobState.FAILED
        return {
            self.title: train_view.title(view),
            self.figures: train_view.run_tiles(view),
            self.run_side.curve: train_view.curve(view),
            self.run_side.film: train_view.filmstrip(view, self.studio.home),
            **self._buttons(
                stop=view.alive,
                stopping=folder.stop_requested(),
                resume=view.status.state in (JobState.STOPPED, JobState.FAILED, JobState.CREATED),
                test=ended and view.lora is not None,
                again=ended,
            ),
            self.aside.state: train_view.state_card(view),
            self.aside.cards: train_view.what_it_says(view),
            **self._files(view),
            self.aside.details: gr.Accordion(visible=True),
            self.aside.recipe: train_view.recipe_of_run(view.job) + train_view.captions_used(view),
            self.aside.log_fold: gr.Accordion(visible=failed, open=failed),
            self.aside.log: Markup('<pre class="log">{}</pre>').format(folder.log_tail(LOG_LINES)) if failed else "",
        }

    def _buttons(
        self,
        *,
        start: bool = False,
        stop: bool = False,
        stopping: bool = False,
        resume: bool = False,
        test: bool = False,
        again: bool = False,
    ) -> Updates:
        buttons = self.buttons
        return {
            buttons.start: gr.Button(visible=start),
            buttons.stop: gr.Button(
                "Stopping at the next step" if stopping else "Stop and keep", interactive=not stopping, visible=stop
            ),
            buttons.resume: gr.Button(visible=resume),
            buttons.test: gr.Button(visible=test),
            buttons.again: gr.Button(visible=again),
        }

    def _files(self, view: RunView) -> Updates:
        if view.alive or view.lora is None:
            return {self.aside.files: gr.Column(visible=False)}
        return {
            self.aside.files: gr.Column(visible=True),
            self.aside.path: heading("LoRA", str(view.lora)),
            self.aside.download: gr.DownloadButton(value=copy_to_save(self.aside.download, view.lora)),
        }

    def _fill(self, project: Project, recipe: Recipe, job: TrainJob | None = None) -> Updates:
        return {
            **self.form.fill(dict(recipe)),
            **self.others.fill(job),
            self.form_side.name: job.name if job else slugify(project.name),
            self.form_side.source: PROJECT_RECIPE,
            self.filled_from: _stamp(project, project.info().recipe or Recipe()),
        }

    def _estimate(
        self, project: Project, info: ProjectInfo, recipe: Recipe, regularization: Path | None = None
    ) -> Updates:
        """What a recipe would make of the run, or why it cannot work."""
        try:
            made = self._plan(project, info, recipe, regularization)
        except InputError as error:
            return {self.figures: "", self.aside.cards: error_card(error)}
        return {self.figures: plan_tiles(made), self.aside.cards: caution_cards(made)}

    def _plan(self, project: Project, info: ProjectInfo, recipe: Recipe, regularization: Path | None = None) -> Plan:
        """What these settings would make of the run; raises InputError if they cannot work together."""
        return plan(
            project.dataset_dir if project_images(project) else EXPECTED_IMAGES,
            kind=info.kind,
            base=info.base,
            vram_gib=info.vram_gib,
            trigger_word=info.trigger_word,
            overrides=recipe.model_dump(),
            regularization=regularization,
        )

    def _runs(self, project: Project, run: str) -> Markup:
        views = []
        for folder in project.runs():
            try:
                views.append(RunView.of(folder, self.histories))
            except InputError:
                continue
        if not views:
            return empty_card("Your runs will stand here", "What each changed, how its loss went, and a verdict.")
        return train_view.runs_table(views, run)

    def _signature(self, project: Project, run: str) -> str:
        """Changes whenever there is something new to show."""
        parts = [project.name, run]
        for folder in project.runs():
            status = folder.status()
            detail = f"{status.updated_at}:{folder.stop_requested()}" if folder.name == run else ""
            parts.append(f"{folder.name}:{status.state}:{detail}")
            if folder.name == run and folder.events_file.exists():
                parts.append(str(folder.events_file.stat().st_size))
        return "|".join(parts)


def _stamp(project: Project, recipe: Recipe) -> str:
    """Of which project and recipe the form was filled."""
    return f"{project.name}:{recipe.model_dump_json()}"
