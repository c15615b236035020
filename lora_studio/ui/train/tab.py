"""The Train tab: the form of the next run, or a run's loss curve, samples and verdict.

The form starts from the project's plan (see planning.project_plan) and remembers which: a field is the user's change
where it differs from that plan. An edit is saved at once. When the plan changes, the fields that the user left alone
follow it; changed ones stay as typed, are marked, and one click sets them to the plan.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import gradio as gr

from lora_studio.dataset.images.sets import project_images
from lora_studio.errors import ConfigError, InputError, StudioError
from lora_studio.interop.files import import_settings
from lora_studio.lora.file_settings import check_file_settings, settings_of_file
from lora_studio.planning.presets import delete_preset, list_presets, load_preset, own_presets, save_preset
from lora_studio.planning.project_plan import NextRun, ProjectPlan, load_plan, save_changes
from lora_studio.planning.variants import variant_jobs
from lora_studio.settings.recipe import Recipe
from lora_studio.settings.subsets import Subset
from lora_studio.ui.context import NEW_RUN, Page, Studio, TabName, guarded
from lora_studio.ui.roles import Role, allowed
from lora_studio.ui.server import Mode
from lora_studio.ui.state.epoch_overview import overview_job
from lora_studio.ui.state.run_history import run_named
from lora_studio.ui.tab_events import PageValues, TabEvents
from lora_studio.ui.train.control import RunControl
from lora_studio.ui.train.exchange import ProjectImport, export_run
from lora_studio.ui.train.extend import USE_FILE, file_offer
from lora_studio.ui.train.form_job import figures_of, job_of, save_run_settings, save_subsets, with_job
from lora_studio.ui.train.layout import GUIDE_DEFAULTS, TrainLayout, build_layout
from lora_studio.ui.train.lineage import NO_PARENT, SPLIT, save_parent, split_runs
from lora_studio.ui.train.own_presets import PresetFiles
from lora_studio.ui.train.queue import QueueControl
from lora_studio.ui.train.render import TrainRenderer
from lora_studio.ui.train.run_panel import RunPanel
from lora_studio.ui.train.sections import Sections, build_other_sections, build_section_choice
from lora_studio.ui.train.state import OtherFields, RunReader, TrainForm, TrainPage, TrainState
from lora_studio.ui.train.variants import axes_of_form, variants_of_form, variants_summary
from lora_studio.ui.train.view import ALL_BACK, OPEN_PLAN, WITHOUT_SUBSETS
from lora_studio.ui.widgets.events import NO_PROGRESS, Updates
from lora_studio.ui.widgets.html import error_card
from lora_studio.ui.widgets.recipe_form import RecipeContents
from lora_studio.workspace.job_folder import slugify
from lora_studio.workspace.project import Project

IN_ORDER = "train"
"""The concurrency id of the tab's events: each saves the form that it read, so that their order matters."""


def build(studio: Studio, tab: gr.Tab) -> Page:
    """Build the tab and register its events."""
    section = build_section_choice()
    with gr.Column() as run:
        layout = build_layout(local=studio.mode is Mode.LOCAL)
    sections = build_other_sections(section, run)
    train = TrainTab(studio, layout)
    page = train.wire(tab)
    return Sections(studio, sections, train.show_run, train.edit_run).wire(page)


class TrainTab:
    """Event handlers of the Train tab."""

    def __init__(self, studio: Studio, layout: TrainLayout) -> None:
        self.studio = studio
        self.layout = layout
        self.reader = RunReader()
        self.control = RunControl(studio, self.reader)
        self.render = TrainRenderer(studio, layout).render

    def wire(self, tab: gr.Tab) -> Page:
        """Register the events."""
        studio, layout = self.studio, self.layout
        side, rest = layout.form_side, (self.show_error, layout.aside.notice, studio.with_progress)
        # The browser processes every input and output of a tick: the form with its many fields is not among them.
        page = [studio.project, studio.run, layout.signature]
        live = [
            *page[1:],
            layout.title,
            layout.tiles,
            *layout.buttons,
            *layout.run_side,
            *layout.aside,
            *layout.control,
            layout.queue,
            side.column,
        ]
        form = [side.name, *layout.form.outputs, *layout.job_fields, layout.planned]
        exchange = [layout.exchange.path, layout.exchange.download, layout.exchange.result]
        presets = [layout.presets.name, layout.presets.own, layout.presets.download, layout.presets.result]
        shared = [layout.form.planned, studio.timer, studio.tabs, studio.taken_back, studio.edited]
        form_side = [side.source, side.lineage, side.preset, layout.file_offer, layout.variants.summary]
        outputs = [*live, *form, *form_side, *presets, *exchange, *shared]
        events = TabEvents(page, outputs, self.read, self.render, *rest, concurrency_id=IN_ORDER)
        inputs = [*page, *form, studio.taken_back, studio.edited]
        form_events = TabEvents(inputs, outputs, self.read_form, self.render, *rest, concurrency_id=IN_ORDER)
        self._wire_run(events, live)
        RunPanel(studio, layout.run_panel).wire()
        self._wire_form(form_events, tab)
        return Page(self.refresh, outputs)

    def _wire_run(self, events: TabEvents[TrainPage, TrainState], live: list[gr.blocks.Block]) -> None:
        """Register the events at a run."""
        buttons = self.layout.buttons
        events.on(buttons.stop.click, self.control.stop_training)
        events.on(buttons.sample.click, self.control.sample_now)
        events.on(buttons.save.click, self.control.save_now)
        fields = self.layout.control
        events.on(fields.continue_button.click, self.control.continue_run, fields.epochs)
        events.on(fields.restart_button.click, self.control.restart_smaller)
        events.on(self.layout.queue.click, QueueControl(self.reader).click_in_queue, sends="pick")
        events.on(buttons.resume.click, self.control.resume_training)
        events.on(buttons.edit_and_rerun.click, self.edit_and_rerun)
        events.on(self.layout.aside.runs.click, self.select_run, sends="pick")
        events.on_tick(self.studio.timer.tick, self.tick, outputs=live, trigger_mode="always_last")
        outputs = [self.studio.tabs, self.studio.timer, self.layout.aside.notice]
        overview = guarded(self.layout.aside.notice, self.overview_by_epoch)
        buttons.overview.click(overview, [self.studio.project, self.studio.run], outputs, **self.studio.with_progress)
        buttons.test.click(self.studio.opens(TabName.TEST), None, [self.studio.tabs], **NO_PROGRESS)

    def overview_by_epoch(self, project: object, run: object) -> Updates:
        """Start a test of all checkpoints of the run, and show it in Test."""
        place = self.studio.find_project(project)
        job = overview_job(place, run_named(place, str(run)))
        self.studio.jobs.start(place.new_sweep_dir(), job)
        return {**self.studio.goto(TabName.TEST), **self.studio.start_polling()}

    def _wire_form(self, events: TabEvents[TrainForm, TrainState], tab: gr.Tab) -> None:
        """Register the events at the form."""
        layout, side = self.layout, self.layout.form_side
        opened = events.on(tab.select, self.tab_selected, ignored_error="no_project")
        new = events.on(layout.buttons.new_run.click, self.open_form)
        events.on(layout.buttons.start.click, self.start_training)
        preset = events.on(side.preset.input, self.load_preset, side.preset)
        source = events.on(side.source.click, self.click_in_source, sends="pick")
        lineage = events.on(side.lineage.click, self.click_in_lineage, sends="pick")
        presets, exchange = layout.presets, layout.exchange
        events.on(presets.save.click, self.save_preset, presets.name)
        events.on(presets.delete.click, self.delete_preset, presets.own)
        files = PresetFiles(self.studio)
        events.on(presets.rename.click, files.rename_preset, presets.own, presets.name)
        events.on(presets.upload.upload, files.import_preset, presets.upload)
        events.on(presets.export.click, files.export_preset, presets.own)
        imported = events.on(exchange.upload.upload, self.import_upload, exchange.upload)
        if self.studio.mode is Mode.LOCAL:
            events.on(exchange.import_path.click, self.import_path, exchange.path)
            events.on(exchange.path.submit, self.import_path, exchange.path)
        events.on(exchange.export.click, self.export)
        weights = layout.job_fields.network_weights
        events.on(partial(gr.on, [weights.blur, weights.submit]), self.offer_file_settings)
        events.on(layout.file_offer.click, self.use_file_settings, sends="pick")
        grid = layout.variants
        pairs = (grid.first, grid.first_values, grid.second, grid.second_values)
        typed = [grid.first.input, grid.second.input, grid.first_values.blur, grid.second_values.blur]
        submitted = [grid.first_values.submit, grid.second_values.submit]
        events.on(partial(gr.on, [*typed, *submitted]), self.count_variants, *pairs)
        events.on(grid.enqueue.click, self.enqueue_variants, *pairs)
        fields = [layout.job_fields.regularization.blur, layout.job_fields.processes.input]
        edits = partial(gr.on, [*layout.form.edit_events, *fields])
        # An edit updates its figures alone: when its response arrives, a run may have been started.
        figures = [layout.tiles, layout.aside.notice, layout.aside.cards, side.source, side.lineage]
        events.on(edits, self.save_edit, outputs=figures, trigger_mode="always_last", **NO_PROGRESS)
        # An edit that was made while one of these was on its way was sent with fields that their responses have set.
        for event in (opened, new, preset, source, lineage, imported):
            events.on(event.then, self.check_edits, outputs=figures, ignored_error="no_project", **NO_PROGRESS)

    def read(self, values: PageValues) -> TrainPage:
        """Return the page as an event's values describe it; raises InputError if no project is selected."""
        project = self.studio.find_project(values[self.studio.project])
        return TrainPage(project, values[self.studio.run], values[self.layout.signature])

    def read_form(self, values: PageValues) -> TrainForm:
        """Return the page with its form; raises InputError if no project is selected."""
        layout, page = self.layout, self.read(values)
        planned = values[layout.planned]
        filled_from = planned if planned is not None and planned.project == page.project else None
        files = layout.job_fields.read(values, local=self.studio.mode is Mode.LOCAL)
        other = OtherFields((values[layout.form_side.name] or "").strip(), files)
        handed = values[self.studio.taken_back], values[self.studio.edited]
        return TrainForm(page.project, page.run, filled_from, layout.form.read(values), other, *handed)

    def show_run(self, project: Project, name: str) -> Updates:
        """Return the updates that show a run; raises InputError if the project has none with this name."""
        return self.render(self._run(project, name))

    def edit_run(self, project: Project, name: str) -> Updates:
        """Return the updates that fill the form with a run's settings; raises InputError if there is none."""
        return self.render(self.edit_and_rerun(TrainPage(project, name, "")))

    def show_error(self, error: StudioError) -> Updates:
        """Show why a handler did nothing."""
        return {self.layout.aside.notice: error_card(error)}

    def refresh(self, project: Project) -> Updates:
        """Show the active run, else the form with changes that were not trained with, else the latest run."""
        run = self.reader.default_run(project)
        if run == NEW_RUN:
            return self.render(self._filled_form(project))
        return self.render(self._run(project, run)) | {self.layout.planned: None}

    @allowed(Role.GUEST)
    def tab_selected(self, form: TrainForm) -> TrainState:
        """Update the tab when it is opened. The form follows the plan, except for what the user changed.

        A run that Test has chosen fills the form.
        """
        edited = form.edited
        if edited is not None and edited.project == form.project.name:
            return self._edited(form.project, edited.run, dict(edited.values))
        run = form.run
        if run is None or (run != NEW_RUN and run not in {folder.name for folder in form.project.runs()}):
            run = self.reader.default_run(form.project)
        return self.open_form(form) if run == NEW_RUN else self._run(form.project, run)

    @allowed(Role.GUEST)
    def open_form(self, form: TrainForm) -> TrainState:
        """Show the form as the user left it, with the present plan for what was not changed or was taken back."""
        if form.filled_from is None:
            return self._filled_form(form.project)
        planned = load_plan(form.project)
        is_same = planned.is_same_plan(form.filled_from) and not form.taken_back
        if form.run == NEW_RUN and is_same:  # edits may be on their way
            return TrainState(None, self.reader.run_list(form.project, NEW_RUN))
        taken_back = {name: planned.values[name] for name in form.taken_back}
        followed = self.layout.form.follow(form.contents(), planned.recipe, planned.values)
        contents = followed.with_values(taken_back)
        is_new = bool(taken_back) or planned.recipe != form.planned.recipe
        listed = self.reader.run_list(form.project, NEW_RUN)
        return TrainState(self._next_run(planned, contents, form), listed, contents if is_new else None)

    def start_training(self, form: TrainForm) -> TrainState:
        """Write the job and start its worker process."""
        run = self._saved(form, form.contents())
        if run.recipe is None or run.error is not None:
            return TrainState(run, form=form.contents())
        if not project_images(form.project):
            raise InputError(f"{form.project.name} has no images yet.", "Import some in Dataset.", code="no_images")
        job = job_of(form, run.recipe)
        check_file_settings(job)
        folder = self.studio.jobs.enqueue(form.project.new_run_dir(job.name), job)
        save_parent(form.project, folder.name)
        return self._run(form.project, folder.name, is_job_started=True)

    def click_in_lineage(self, form: TrainForm, pick: object) -> TrainState:
        """Start one run per change to the parent, or forget the parent."""
        run = self._saved(form, form.contents())
        if pick == SPLIT and run.error is None and run.recipe is not None:
            jobs = split_runs(run, job_of(form, run.recipe))
            started = [self.studio.jobs.enqueue(form.project.new_run_dir(job.name), job) for job in jobs]
            return self._run(form.project, started[0].name, is_job_started=True)
        if pick == NO_PARENT:
            save_parent(form.project, "")
        return TrainState(run)

    def edit_and_rerun(self, page: TrainPage) -> TrainState:
        """Fill the form with the settings of the shown run; they become changes to the plan."""
        return self._edited(page.project, self._shown_run(page), {})

    @allowed(Role.GUEST)
    def select_run(self, page: TrainPage, pick: object) -> TrainState:
        """Show another run."""
        return self._run(page.project, str(pick))

    def load_preset(self, form: TrainForm, preset: str | None) -> TrainState | None:
        """Set the settings of a preset, or all to the guide's defaults."""
        if preset is None:  # the list lost the focus
            return None
        if preset == GUIDE_DEFAULTS:
            return self._set(form, Recipe().model_dump())
        if preset not in [*list_presets(), *own_presets(self.studio.home)]:
            raise InputError(f"There is no preset {preset!r}.", "Select one from the list.", code="no_preset")
        return self._set(form, load_preset(preset, self.studio.home))

    def save_preset(self, form: TrainForm, name: str) -> TrainState:
        """Save the settings in the form as a preset of the user's own. Raises InputError while they cannot work."""
        run = self._saved(form, form.contents())
        if run.recipe is None:
            raise run.error or InputError("The settings cannot work.", "Correct them.", code="config")
        file = save_preset(self.studio.home, name, run.recipe)
        return TrainState(run, preset_note=f"Saved as {file.stem}: {file}")

    def delete_preset(self, form: TrainForm, name: str | None) -> TrainState:
        """Move one of the user's own presets to the trash."""
        target = delete_preset(self.studio.home, name or "")
        return TrainState(self._saved(form, form.contents()), preset_note=f"Deleted {name}. It is in {target.parent}.")

    def import_upload(self, form: TrainForm, file: str | None) -> TrainState:
        """Set the settings of an uploaded file of kohya's tools, or of a LoRA."""
        if not file:
            raise InputError("No file was uploaded.", "Select a .json, .toml or .safetensors file.", code="no_file")
        return self._imported(form, Path(file))

    def import_path(self, form: TrainForm, path: str | None) -> TrainState:
        """Set the settings of a file of this computer. Wired only while the studio is local."""
        text = (path or "").strip().strip("\"'")
        if not text:
            raise InputError("The path is empty.", "Enter the path of a file with settings.", code="no_file")
        return self._imported(form, Path(text).expanduser())

    def export(self, form: TrainForm) -> TrainState:
        """Write the settings in the form for sd-scripts. Raises InputError while they cannot work."""
        run = self._saved(form, form.contents())
        if run.error is not None:
            raise run.error
        files = form.other.files
        name = job_of(form, run.recipe or form.planned.recipe).name
        return TrainState(run, exchanged=export_run(form.project, name, run, files.regularization))

    def click_in_source(self, form: TrainForm, pick: object) -> TrainState:
        """Open the plan, set one or all of the changed settings to the plan's values, or remove the subsets."""
        if pick == OPEN_PLAN:
            return TrainState(None, opens_plan=True)
        if pick == WITHOUT_SUBSETS:
            return self._with_subsets(form, [], {})
        planned = form.planned.recipe.model_dump()
        return self._set(form, {name: value for name, value in planned.items() if pick in (name, ALL_BACK)})

    def count_variants(self, form: TrainForm, *given: str | None) -> TrainState | None:
        """Show how many runs a grid has and how long they take; nothing while no setting or values are given."""
        if not any(name and values for name, values in zip(given[::2], given[1::2], strict=True)):
            return TrainState(None, variants="")
        found = variants_of_form(self.layout.form.recipe(form.contents()), *given)
        return TrainState(None, variants=variants_summary(found, partial(figures_of, form)))

    def enqueue_variants(self, form: TrainForm, *given: str | None) -> TrainState:
        """Put a run of each variant into the queue; the first starts at once if the GPU is free."""
        run = self._saved(form, form.contents())
        if run.recipe is None or run.error is not None:
            return TrainState(run, form=form.contents())
        if not project_images(form.project):
            raise InputError(f"{form.project.name} has no images yet.", "Import some in Dataset.", code="no_images")
        jobs = variant_jobs(job_of(form, run.recipe), axes_of_form(*given))
        for job in jobs:
            check_file_settings(job)
        folders = [self.studio.jobs.enqueue(form.project.new_run_dir(job.name), job) for job in jobs]
        return self._run(form.project, folders[0].name, is_job_started=True)

    def offer_file_settings(self, form: TrainForm) -> TrainState:
        """Show what the LoRA to start from was trained with; raises InputError if it is not one."""
        path, run = form.other.files.network_weights, self._saved(form, form.contents())
        return TrainState(None, file_offer="" if path is None else file_offer(path, run.recipe))

    def use_file_settings(self, form: TrainForm, pick: object) -> TrainState:
        """Set the network's settings to those of the LoRA to start from."""
        path = form.other.files.network_weights
        if path is None or pick != USE_FILE:
            raise InputError("No LoRA to start from is given.", "Enter its path under Other files.", code="no_file")
        state = self._set(form, settings_of_file(path))
        recipe = state.shown.recipe if isinstance(state.shown, NextRun) else None
        return replace(state, file_offer=file_offer(path, recipe))

    def save_edit(self, form: TrainForm) -> TrainState:
        """Save an edit and update the figures."""
        return TrainState(self._saved(form, form.contents()))

    def check_edits(self, form: TrainForm) -> TrainState | None:
        """Save the fields and update the figures, if the form is shown."""
        return self.save_edit(form) if form.run == NEW_RUN and form.filled_from is not None else None

    @allowed(Role.GUEST)
    def tick(self, page: TrainPage) -> TrainState | None:
        """Show what changed; called by the timer while a job is active."""
        run = self._shown_run(page)
        if self.reader.signature(page.project, run) == page.signature:
            return None
        if run == NEW_RUN:
            return TrainState(None, self.reader.run_list(page.project, run))
        return self._run(page.project, run)

    def _shown_run(self, page: TrainPage) -> str:
        return self.reader.default_run(page.project) if page.run is None else page.run

    def _run(self, project: Project, name: str, *, is_job_started: bool = False) -> TrainState:
        """Return the state that shows a run; raises InputError if the project has none with this name."""
        listed = self.reader.run_list(project, name)
        return TrainState(self.reader.run(project, name), listed, is_job_started=is_job_started)

    def _filled_form(self, project: Project, other: OtherFields | None = None) -> TrainState:
        """Return the state that shows the form, filled with the plan and the saved changes."""
        planned, other = load_plan(project), other or OtherFields(slugify(project.name))
        contents = RecipeContents(planned.recipe, {}, planned.values)
        run = with_job(planned.next_run(other.files.regularization, other.files.num_processes), other)
        return TrainState(run, self.reader.run_list(project, NEW_RUN), contents, other)

    def _edited(self, project: Project, run: str, values: Mapping[str, Any]) -> TrainState:
        """Fill the form with a run's settings, some of them changed; raises InputError if there is no such run."""
        return self._filled_form(project, save_run_settings(project, run, self.reader.run(project, run).job, values))

    def _next_run(self, planned: ProjectPlan, contents: RecipeContents, form: TrainForm) -> NextRun:
        try:
            recipe = self.layout.form.recipe(contents)
        except ConfigError as error:
            return NextRun(planned, error=error)
        files = form.other.files
        return with_job(planned.run_with(recipe, files.regularization, files.num_processes), form.other)

    def _saved(self, form: TrainForm, contents: RecipeContents) -> NextRun:
        """Save the user's changes in the form, unless some are wrong, and return the run that they lead to."""
        run = self._next_run(form.planned, contents, form)
        if run.recipe is not None:
            save_changes(form.project, run.recipe, form.planned.recipe)
        return run

    def _imported(self, form: TrainForm, file: Path) -> TrainState:
        """Set imported settings in the form, and save them and the subsets."""
        settings = import_settings(file, with_files=self.studio.mode is Mode.LOCAL)
        imported = ProjectImport.of(settings, form.project)
        weights = imported.network_weights
        if weights is not None:
            files = replace(form.other.files, network_weights=weights)
            form = replace(form, other=replace(form.other, files=files))
        subsets = imported.subsets or form.planned.info.subsets
        state = self._with_subsets(form, subsets, imported.recipe)
        return replace(state, other=form.other if weights else None, exchanged=imported)

    def _with_subsets(self, form: TrainForm, subsets: Sequence[Subset], values: Mapping[str, Any]) -> TrainState:
        """Save the subsets, and set some settings in the form, which follows the plan that the subsets lead to."""
        save_subsets(form.project, subsets)
        planned = load_plan(form.project)
        contents = self.layout.form.follow(form.contents(), planned.recipe, planned.values).with_values(values)
        return TrainState(self._saved(replace(form, filled_from=planned), contents), form=contents)

    def _set(self, form: TrainForm, values: Mapping[str, Any]) -> TrainState:
        """Set some settings in the form and save them."""
        contents = form.contents(values)
        return TrainState(self._saved(form, contents), form=contents)
