"""The Train tab: the form of the next run, or a run's loss curve, samples and verdict.

The form starts from the project's plan (see ui.state.project_plan). `planned` is the plan that it was filled from, so a
field is the user's change where it differs from that. An edit is saved at once. When the plan changes, the fields that
the user left alone follow it; changed ones stay as typed, are marked, and one click sets them to the plan.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import gradio as gr

from lora_studio.dataset.images.sets import project_images
from lora_studio.errors import ConfigError, InputError, StudioError
from lora_studio.planning.presets import list_presets, load_preset
from lora_studio.settings.job_specs import TrainJob
from lora_studio.settings.recipe import Recipe
from lora_studio.ui.context import NEW_RUN, Page, Studio, TabName, guarded, requires_project
from lora_studio.ui.state.project_plan import NextRun, ProjectPlan, load_plan, save_changes
from lora_studio.ui.state.run_history import run_named
from lora_studio.ui.tab_events import PageValues
from lora_studio.ui.train.layout import GUIDE_DEFAULTS, TrainLayout, build_layout
from lora_studio.ui.train.render import render
from lora_studio.ui.train.state import OtherFields, RunReader, TrainState
from lora_studio.ui.train.view import ALL_BACK, OPEN_PLAN
from lora_studio.ui.widgets.events import NO_PROGRESS, Updates
from lora_studio.ui.widgets.recipe_form import RecipeContents
from lora_studio.workspace.project import Project


def build(studio: Studio, tab: gr.Tab) -> Page:
    """Build the tab and register its events."""
    return TrainTab(studio, build_layout()).wire(tab)


class TrainTab:
    """Event handlers of the Train tab."""

    def __init__(self, studio: Studio, layout: TrainLayout) -> None:
        self.studio = studio
        self.layout = layout
        self.form = layout.form
        self.reader = RunReader()
        self._figures = [layout.tiles, layout.aside.cards, layout.form_side.source]

    def wire(self, tab: gr.Tab) -> Page:
        """Register the events."""
        studio, layout, form = self.studio, self.layout, self.layout.form
        buttons, side = layout.buttons, layout.form_side
        # The browser processes every output of a tick: the form with its many fields is not among them.
        live = [layout.title, layout.tiles, *buttons, side.column, *layout.run_side, *layout.aside, layout.signature]
        fields = [*side[1:], *form.outputs, form.planned, *layout.job_fields, layout.planned]
        outputs = [*live, studio.run, *fields, studio.timer]
        selected = {studio.project, studio.run}
        contents = {*selected, side.name, *layout.job_fields, *form.inputs, layout.planned}

        def on(event: Any, handler: Any, inputs: Any, *more: Any, **options: Any) -> None:
            event(guarded(layout.aside.notice, handler), inputs, [*outputs, *more], **studio.with_progress, **options)

        on(buttons.start.click, self.start_training, contents)
        on(buttons.stop.click, self.stop_training, selected)
        on(buttons.resume.click, self.resume_training, selected)
        on(buttons.edit_and_rerun.click, self.edit_and_rerun, selected)
        on(buttons.new_run.click, self.open_form, contents)
        on(layout.aside.runs.click, self.select_run, [studio.project])
        on(side.preset.input, self.load_preset, {*contents, side.preset})
        on(side.source.click, self.click_in_source, contents, studio.tabs)
        on(tab.select, self.tab_selected, contents)
        buttons.test.click(lambda: studio.goto(TabName.TEST), None, [studio.tabs], **NO_PROGRESS)
        gr.on(
            [*form.edit_events, layout.job_fields.regularization.blur],
            self.save_edit,
            contents,
            self._figures,
            **NO_PROGRESS,
            trigger_mode="always_last",
        )
        studio.timer.tick(
            self.tick,
            [studio.project, studio.run, layout.signature],
            [*live, studio.run],
            **NO_PROGRESS,
            queue=False,
            trigger_mode="always_last",
        )
        return Page(self.refresh, outputs)

    def refresh(self, project: Project) -> Updates:
        """Show the active run, else the form with changes that were not trained with, else the latest run."""
        run = self.reader.default_run(project)
        return self._form(project) if run == NEW_RUN else self._run(project, run) | {self.layout.planned: None}

    @requires_project
    def tab_selected(self, data: PageValues) -> Updates:
        """Update the tab when it is opened. The form follows the plan, except for what the user changed."""
        project, run = self._project(data), data[self.studio.run]
        if run is None or (run != NEW_RUN and run not in {folder.name for folder in project.runs()}):
            run = self.reader.default_run(project)
        return self.open_form(data) if run == NEW_RUN else self._run(project, run)

    def open_form(self, data: PageValues) -> Updates:
        """Show the form as the user left it, with the present plan for all that the user did not change."""
        project, before = self._project(data), data[self.layout.planned]
        if before is None or before.project != project:
            return self._form(project)
        planned = load_plan(project)
        contents = self.form.follow(self.form.read(data, before.recipe), planned.recipe, planned.values)
        run = self._next_run(planned, contents, data)
        changed = contents if planned.recipe != before.recipe else None
        return self._render(TrainState(run, self.reader.run_list(project, NEW_RUN), changed))

    def start_training(self, data: PageValues) -> Updates:
        """Write the job and start its worker process."""
        project, contents = self._project(data), self._contents(data)
        run = self._save(data, contents)
        if run.recipe is None or run.error is not None:
            return self._render(TrainState(run, form=contents, notice=run.error))
        if not project_images(project):
            raise InputError(f"{project.name} has no images yet.", "Import some in Dataset.", code="no_images")
        job = self._job(project, run.recipe, data)
        folder = self.studio.jobs.start(project.new_run_dir(job.name), job)
        return self._run(project, folder.name) | self.studio.start_polling()

    def stop_training(self, data: PageValues) -> Updates:
        """Request that the run stops after the current step and saves its state."""
        project, name = self._selected_run(data)
        run_named(project, name).request_stop()
        return self._run(project, name)

    def resume_training(self, data: PageValues) -> Updates:
        """Continue from the last saved state."""
        project, name = self._selected_run(data)
        folder = run_named(project, name)
        if folder.status().state.is_active:
            raise InputError(f"{name} is already running.", "Wait for it, or stop it first.", code="busy")
        self.studio.jobs.resume(folder)
        return self._run(project, name) | self.studio.start_polling()

    def edit_and_rerun(self, data: PageValues) -> Updates:
        """Fill the form with the settings of the shown run; they become changes to the plan."""
        project, name = self._selected_run(data)
        job = self.reader.run(project, name).job
        planned = load_plan(project)
        save_changes(project, job.recipe, planned.recipe)
        return self._form(project, job)

    def select_run(self, project_name: str, event: gr.EventData) -> Updates:
        """Show another run."""
        return self._run(self.studio.find_project(project_name), str(event.pick))

    def load_preset(self, data: PageValues) -> Updates:
        """Set the settings of a preset, or all to the guide's defaults."""
        preset = data[self.layout.form_side.preset]
        if preset is None:  # the list lost the focus
            return {}
        if preset == GUIDE_DEFAULTS:
            return self._set(data, Recipe().model_dump())
        if preset not in list_presets():
            raise InputError(f"There is no preset {preset!r}.", "Select one from the list.", code="no_preset")
        return self._set(data, load_preset(preset))

    def click_in_source(self, data: PageValues, event: gr.EventData) -> Updates:
        """Open the plan, or set one or all of the changed settings to the plan's values."""
        planned = self._planned(data).recipe.model_dump()
        match event.pick:
            case str(pick) if pick == OPEN_PLAN:
                return self.studio.goto(TabName.PLAN)
            case str(pick) if pick == ALL_BACK:
                return self._set(data, planned)
        return self._set(data, {name: value for name, value in planned.items() if name == event.pick})

    def save_edit(self, data: PageValues) -> Any:
        """Save an edit and update the figures. The other parts are left as they are: a run may have been started."""
        try:
            shown = self._render(TrainState(self._save(data, self._contents(data))))
        except StudioError:
            return gr.skip()
        return {part: shown[part] for part in self._figures}

    def tick(self, project_name: str, run: str | None, signature: str) -> Any:
        """Show what changed; called by the timer while a job is active."""
        try:
            project = self.studio.find_project(project_name)
            name = self.reader.default_run(project) if run is None else run
            if self.reader.signature(project, name) == signature:
                return gr.skip()
            if name == NEW_RUN:
                return self._render(TrainState(None, self.reader.run_list(project, name)))
            return self._run(project, name)
        except StudioError:
            return gr.skip()

    def _project(self, data: PageValues) -> Project:
        return self.studio.find_project(data[self.studio.project])

    def _selected_run(self, data: PageValues) -> tuple[Project, str]:
        project, run = self._project(data), data[self.studio.run]
        return project, self.reader.default_run(project) if run is None else run

    def _planned(self, data: PageValues) -> ProjectPlan:
        """Return the plan that the form was filled from; a page that is older than the server gets the present one."""
        project, planned = self._project(data), data[self.layout.planned]
        return planned if planned is not None and planned.project == project else load_plan(project)

    def _contents(self, data: PageValues) -> RecipeContents:
        return self.form.read(data, self._planned(data).recipe)

    def _next_run(self, planned: ProjectPlan, contents: RecipeContents, data: PageValues) -> NextRun:
        try:
            recipe = self.form.recipe(contents)
        except ConfigError as error:
            return NextRun(planned, error=error)
        return planned.run_with(recipe, self.layout.job_fields.values(data)["regularization"])

    def _save(self, data: PageValues, contents: RecipeContents) -> NextRun:
        """Save the user's changes in the form, unless some are wrong, and return the run that they lead to."""
        planned = self._planned(data)
        run = self._next_run(planned, contents, data)
        if run.recipe is not None:
            save_changes(planned.project, run.recipe, planned.recipe)
        return run

    def _set(self, data: PageValues, values: Mapping[str, Any]) -> Updates:
        """Set some settings in the form and save them."""
        contents = self._contents(data).with_values(values)
        return self._render(TrainState(self._save(data, contents), form=contents))

    def _job(self, project: Project, recipe: Recipe, data: PageValues) -> TrainJob:
        """Return the job that the form describes; raises ConfigError for a wrong name or file."""
        info, name = project.info(), (data[self.layout.form_side.name] or "").strip()
        own = {"name": name, "dataset": project.dataset_dir, "base": info.base, "trigger_word": info.trigger_word}
        return TrainJob.parse({**own, "recipe": recipe, **self.layout.job_fields.values(data)})

    def _run(self, project: Project, name: str) -> Updates:
        """Return the updates that show a run; raises InputError if the project has none with this name."""
        return self._render(TrainState(self.reader.run(project, name), self.reader.run_list(project, name)))

    def _form(self, project: Project, job: TrainJob | None = None) -> Updates:
        """Return the updates that show the form, filled with the plan and the saved changes, and a job's files."""
        planned = load_plan(project)
        contents = RecipeContents(planned.recipe, {}, planned.values)
        run = planned.next_run(job.regularization if job else None)
        fields = OtherFields(job.name, job) if job else OtherFields.of(project)
        return self._render(TrainState(run, self.reader.run_list(project, NEW_RUN), contents, fields))

    def _render(self, state: TrainState) -> Updates:
        return render(self.studio, self.layout, state)
