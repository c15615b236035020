"""The Train tab: the form of a new run, or a run's loss curve, samples and verdict."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

import gradio as gr

from lora_studio.dataset.images.sets import project_images
from lora_studio.errors import ConfigError, InputError, StudioError
from lora_studio.planning.plan import Plan
from lora_studio.planning.presets import list_presets, load_preset
from lora_studio.settings.job_specs import TrainJob
from lora_studio.settings.recipe import Recipe
from lora_studio.ui.context import NEW_RUN, Page, Studio, TabName, guarded, requires_project
from lora_studio.ui.state.project_plan import plan_project
from lora_studio.ui.state.run_history import RunHistories, RunView, run_named
from lora_studio.ui.train import view as train_view
from lora_studio.ui.train.layout import GUIDE_DEFAULTS, PROJECT_RECIPE, TrainLayout, build_layout
from lora_studio.ui.widgets.events import NO_PROGRESS, Updates
from lora_studio.ui.widgets.html import error_card, heading
from lora_studio.ui.widgets.job_status import log, state_card
from lora_studio.ui.widgets.plan_summary import caution_cards, plan_tiles
from lora_studio.ui.widgets.thumbnails import copy_for_download
from lora_studio.workspace.job_folder import JobState, slugify
from lora_studio.workspace.project import Project, ProjectInfo

LOG_LINES = 40


def build(studio: Studio, tab: gr.Tab) -> Page:
    """Build the tab and register its events."""
    return TrainTab(studio, build_layout()).wire(tab)


class TrainTab:
    """Event handlers of the Train tab."""

    def __init__(self, studio: Studio, layout: TrainLayout) -> None:
        self.studio = studio
        self.title = layout.title
        self.buttons = layout.buttons
        self.tiles = layout.tiles
        self.form_side = layout.form_side
        self.form = layout.form
        self.job_fields = layout.job_fields
        self.run_side = layout.run_side
        self.aside = layout.aside
        self.histories = RunHistories()
        self.signature = gr.State("")  # see _signature
        self.filled_from = gr.State("")  # see _form_key
        self.loaded_source = gr.State(PROJECT_RECIPE)  # see load_settings

    def wire(self, tab: gr.Tab) -> Page:
        """Register the events."""
        studio, buttons = self.studio, self.buttons
        # The browser processes every output of a tick: the form with its many fields is not among them.
        live = [
            self.title,
            self.tiles,
            *buttons,
            self.form_side.column,
            *self.run_side,
            *self.aside,
            self.signature,
            studio.run,
        ]
        form = [*self.form_side, *self.form.outputs, *self.job_fields, self.filled_from, self.loaded_source]
        outputs = [*live, *(component for component in form if component not in live), studio.timer]
        selected = {studio.project, studio.run}
        contents = {studio.project, self.form_side.name, *self.job_fields, *self.form.inputs}

        def on(event: Any, handler: Any, inputs: Any, more: Any = (), **options: Any) -> None:
            event(guarded(self.aside.notice, handler), inputs, [*outputs, *more], **studio.with_progress, **options)

        on(buttons.start.click, self.start_training, contents)
        on(buttons.stop.click, self.stop_training, selected)
        on(buttons.resume.click, self.resume_training, selected)
        on(buttons.edit_and_rerun.click, self.edit_and_rerun, selected)
        on(self.aside.runs.click, self.select_run, [studio.project])
        on(self.form_side.source.input, self.load_settings, {studio.project, self.form_side.source, self.loaded_source})
        on(tab.select, self.tab_selected, {*selected, self.filled_from, *contents})
        buttons.test.click(lambda: studio.goto(TabName.TEST), None, [studio.tabs], **NO_PROGRESS)
        gr.on(
            [*self.form.edit_events, self.job_fields.regularization.blur],
            self.update_estimate,
            contents,
            [self.tiles, self.aside.cards],
            **NO_PROGRESS,
            trigger_mode="always_last",
        )
        studio.timer.tick(
            self.tick,
            [studio.project, studio.run, self.signature],
            live,
            **NO_PROGRESS,
            queue=False,
            trigger_mode="always_last",
        )
        return Page(self.refresh, outputs)

    def refresh(self, project: Project) -> Updates:
        """Show the active run, else the form of a recipe that was not run yet, else the latest run."""
        filled = self._form_content(project, project.info().recipe or Recipe())
        return filled | self._tab_updates(project, self._default_run(project))

    @requires_project
    def tab_selected(self, data: dict[Any, Any]) -> Updates:
        """Update the tab when it is opened. The form keeps its content, unless Plan saved another recipe since."""
        project = self.studio.find_project(data[self.studio.project])
        recipe = project.info().recipe or Recipe()
        filled = self._form_content(project, recipe) if data[self.filled_from] != _form_key(project, recipe) else {}
        if not filled and data[self.studio.run] == NEW_RUN:
            with suppress(ConfigError):
                recipe = self.form.parse(data)
        run = data[self.studio.run]
        if run is None or (run != NEW_RUN and run not in {folder.name for folder in project.runs()}):
            run = self._default_run(project)
        return filled | self._tab_updates(project, run, recipe)

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
        fields = self.job_fields.values(data)
        _plan_with_recipe(project, info, recipe, fields["regularization"])
        job = TrainJob.parse(
            {
                "name": (data[self.form_side.name] or "").strip(),
                "dataset": project.dataset_dir,
                "base": info.base,
                "trigger_word": info.trigger_word,
                "recipe": recipe,
                **fields,
            }
        )
        project.save_info(info.model_copy(update={"recipe": recipe}))
        folder = self.studio.jobs.start(project.new_run_dir(job.name), job)
        filled = {self.filled_from: _form_key(project, recipe)}
        return filled | self._tab_updates(project, folder.name) | self.studio.start_polling()

    def stop_training(self, data: dict[Any, Any]) -> Updates:
        """Request that the run stops after the current step and saves its state."""
        project, name = self._selected_run(data)
        run_named(project, name).request_stop()
        return self._tab_updates(project, name)

    def resume_training(self, data: dict[Any, Any]) -> Updates:
        """Continue from the last saved state."""
        project, name = self._selected_run(data)
        folder = run_named(project, name)
        if folder.status().state.is_active:
            raise InputError(f"{name} is already running.", "Wait for it, or stop it first.", code="busy")
        self.studio.jobs.resume(folder)
        return self._tab_updates(project, name) | self.studio.start_polling()

    def edit_and_rerun(self, data: dict[Any, Any]) -> Updates:
        """Fill the form with the settings of the shown run."""
        project, name = self._selected_run(data)
        view = RunView.load(run_named(project, name), self.histories)
        filled = self._form_content(project, view.job.recipe, view.job)
        shown = filled | self._tab_updates(project, NEW_RUN, view.job.recipe)
        return shown | {self.form_side.source: None, self.loaded_source: None}

    def select_run(self, project_name: str, event: gr.EventData) -> Updates:
        """Show another run."""
        project = self.studio.find_project(project_name)
        return self._tab_updates(project, run_named(project, str(event.pick)).name)

    def load_settings(self, data: dict[Any, Any]) -> Updates:
        """Fill the form from a preset, the guide's defaults or the project.

        The list also reports the source that was loaded last, when it loses the focus; the form is kept then.
        """
        source = data[self.form_side.source]
        if source == data[self.loaded_source]:
            return {}
        project = self.studio.find_project(data[self.studio.project])
        if source == PROJECT_RECIPE:
            recipe = project.info().recipe or Recipe()
        elif source == GUIDE_DEFAULTS:
            recipe = Recipe()
        elif source in list_presets():
            recipe = Recipe.parse(load_preset(source))
        else:
            raise InputError(f"There is no preset {source!r}.", "Select one from the list.", code="no_preset")
        filled = {self.loaded_source: source} | self.form.fill(dict(recipe))
        return filled | self._estimate_updates(project, project.info(), recipe)

    def update_estimate(self, data: dict[Any, Any]) -> Any:
        """Update steps, time and VRAM after an edit. A wrong value is marked at its field by the form itself."""
        try:
            project = self.studio.find_project(data[self.studio.project])
            regularization = self.job_fields.values(data)["regularization"]
            return self._estimate_updates(project, project.info(), self.form.parse(data), regularization)
        except StudioError:
            return gr.skip()

    def tick(self, project_name: str, run: str | None, signature: str) -> Any:
        """Show what changed; called by the timer while a job is active."""
        try:
            project = self.studio.find_project(project_name)
            name = self._default_run(project) if run is None else run
            if self._signature(project, name) == signature:
                return gr.skip()
            if name == NEW_RUN:
                return {
                    self.aside.runs: self._runs_table(project, name),
                    self.signature: self._signature(project, name),
                }
            return self._tab_updates(project, name)
        except StudioError:
            return gr.skip()

    def _selected_run(self, data: dict[Any, Any]) -> tuple[Project, str]:
        project = self.studio.find_project(data[self.studio.project])
        run = data[self.studio.run]
        return project, self._default_run(project) if run is None else run

    def _default_run(self, project: Project) -> str:
        runs = project.runs()
        active = [folder.name for folder in runs if folder.status().state.is_active]
        if active:
            return active[0]
        recipe = project.info().recipe
        if not runs or (recipe is not None and RunView.load(runs[-1], self.histories).job.recipe != recipe):
            return NEW_RUN
        return runs[-1].name

    def _tab_updates(self, project: Project, run: str, recipe: Recipe | None = None) -> Updates:
        """Return the updates that show a run, or the form; `recipe` is the form's (default: the project's)."""
        common = {
            self.studio.run: run,
            self.signature: self._signature(project, run),
            self.form_side.column: gr.Column(visible=run == NEW_RUN),
            self.run_side.column: gr.Column(visible=run != NEW_RUN),
            self.aside.runs: self._runs_table(project, run),
        }
        return common | (self._form_updates(project, recipe) if run == NEW_RUN else self._run_updates(project, run))

    def _form_updates(self, project: Project, recipe: Recipe | None) -> Updates:
        info = project.info()
        facts = " · ".join(part for part in (info.base, info.trigger_word or "no trigger word yet") if part)
        return {
            self.title: train_view.form_title(facts),
            **self._button_updates(start=True),
            self.aside.state: "",
            self.aside.files: gr.Column(visible=False),
            self.aside.details: gr.Accordion(visible=False),
            self.aside.log_fold: gr.Accordion(visible=False),
            **self._estimate_updates(project, info, recipe or info.recipe or Recipe()),
        }

    def _run_updates(self, project: Project, run: str) -> Updates:
        folder = run_named(project, run)
        view = RunView.load(folder, self.histories)
        ended = not view.is_active
        failed = view.status.state is JobState.FAILED
        return {
            self.title: train_view.title(view),
            self.tiles: train_view.run_tiles(view),
            self.run_side.curve: train_view.curve(view),
            self.run_side.filmstrip: train_view.filmstrip(view, self.studio.home),
            **self._button_updates(
                stop=view.is_active,
                stopping=folder.stop_requested(),
                resume=view.status.state in (JobState.STOPPED, JobState.FAILED, JobState.CREATED),
                test=ended and view.lora is not None,
                edit_and_rerun=ended,
            ),
            self.aside.state: state_card(view.status, job="run", has_results=bool(view.history.steps)),
            self.aside.cards: train_view.verdict_cards(view),
            **self._file_updates(view),
            self.aside.details: gr.Accordion(visible=True),
            self.aside.recipe: train_view.recipe_of_run(view.job) + train_view.training_captions(view),
            self.aside.log_fold: gr.Accordion(visible=failed, open=failed),
            self.aside.log: log(folder.log_tail(LOG_LINES)) if failed else "",
        }

    def _button_updates(
        self,
        *,
        start: bool = False,
        stop: bool = False,
        stopping: bool = False,
        resume: bool = False,
        test: bool = False,
        edit_and_rerun: bool = False,
    ) -> Updates:
        buttons = self.buttons
        return {
            buttons.start: gr.Button(visible=start),
            buttons.stop: gr.Button(
                "Stopping after this step" if stopping else "Stop and save", interactive=not stopping, visible=stop
            ),
            buttons.resume: gr.Button(visible=resume),
            buttons.test: gr.Button(visible=test),
            buttons.edit_and_rerun: gr.Button(visible=edit_and_rerun),
        }

    def _file_updates(self, view: RunView) -> Updates:
        if view.is_active or view.lora is None:
            return {self.aside.files: gr.Column(visible=False)}
        return {
            self.aside.files: gr.Column(visible=True),
            self.aside.path: heading("LoRA", str(view.lora)),
            self.aside.download: gr.DownloadButton(value=copy_for_download(self.aside.download, view.lora)),
        }

    def _form_content(self, project: Project, recipe: Recipe, job: TrainJob | None = None) -> Updates:
        return {
            **self.form.fill(dict(recipe)),
            **self.job_fields.fill(job),
            self.form_side.name: job.name if job else slugify(project.name),
            self.form_side.source: PROJECT_RECIPE,
            self.loaded_source: PROJECT_RECIPE,
            self.filled_from: _form_key(project, project.info().recipe or Recipe()),
        }

    def _estimate_updates(
        self, project: Project, info: ProjectInfo, recipe: Recipe, regularization: Path | None = None
    ) -> Updates:
        """Return the figures and warnings of a run with this recipe, or the error if it cannot work."""
        try:
            plan = _plan_with_recipe(project, info, recipe, regularization)
        except InputError as error:
            return {self.tiles: "", self.aside.cards: error_card(error)}
        return {self.tiles: plan_tiles(plan), self.aside.cards: caution_cards(plan)}

    def _runs_table(self, project: Project, run: str) -> str:
        views = []
        for folder in project.runs():
            try:
                views.append(RunView.load(folder, self.histories))
            except InputError:
                continue
        return train_view.runs_table(views, run)

    def _signature(self, project: Project, run: str) -> str:
        """Return a text that changes whenever the page must be updated."""
        parts = [project.name, run]
        for folder in project.runs():
            status = folder.status()
            detail = f"{status.updated_at}:{folder.stop_requested()}" if folder.name == run else ""
            parts.append(f"{folder.name}:{status.state}:{detail}")
            if folder.name == run and folder.events_file.exists():
                parts.append(str(folder.events_file.stat().st_size))
        return "|".join(parts)


def _form_key(project: Project, recipe: Recipe) -> str:
    """Return a text that identifies the project and recipe that the form was filled with."""
    return f"{project.name}:{recipe.model_dump_json()}"


def _plan_with_recipe(project: Project, info: ProjectInfo, recipe: Recipe, regularization: Path | None) -> Plan:
    """Plan a run with exactly this recipe; raises InputError if its settings cannot work together."""
    overrides = recipe.model_dump()
    return plan_project(project, info, vram_gib=info.vram_gib, overrides=overrides, regularization=regularization)
