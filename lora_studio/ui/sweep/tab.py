"""The Test tab: LoRAs, bases and settings on the left; the grid of images with its measures on the right."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import gradio as gr
from markupsafe import Markup

from lora_studio.errors import ConfigError, InputError, StudioError
from lora_studio.ledger.data import captions_to_test
from lora_studio.lora.header import read_lora_header
from lora_studio.models.locate import resolve_base
from lora_studio.settings.declare import split_lines
from lora_studio.settings.job_specs import SweepJob
from lora_studio.settings.prompt_sets import CAPTIONS, prompts_of_set
from lora_studio.sharing.facts import run_of
from lora_studio.ui.context import Page, Studio, TabName
from lora_studio.ui.roles import Role, allowed, require_owner
from lora_studio.ui.server import Mode
from lora_studio.ui.state.lora_files import (
    UnknownLora,
    import_lora,
    lora_choices,
    selected_loras,
    stacked_loras,
)
from lora_studio.ui.state.shared_paths import check_shared_model
from lora_studio.ui.state.sweep_view import SweepView, sweep_named
from lora_studio.ui.sweep.grid import arrange
from lora_studio.ui.sweep.layout import SweepLayout, build_layout
from lora_studio.ui.sweep.lightbox import CLOSE, PIN, STAR
from lora_studio.ui.sweep.next_run import edited_run
from lora_studio.ui.sweep.release import Release
from lora_studio.ui.sweep.render import SweepRenderer, cell_count
from lora_studio.ui.sweep.state import (
    SweepForm,
    SweepPage,
    SweepState,
    base_settings,
    default_sweep,
    form_key,
    likely_target,
    page_signature,
)
from lora_studio.ui.sweep.tools import LoraTools
from lora_studio.ui.tab_events import PageValues, TabEvents
from lora_studio.ui.widgets.events import NO_PROGRESS, Updates
from lora_studio.ui.widgets.html import error_card, hint
from lora_studio.workspace.cell_stars import toggle_star
from lora_studio.workspace.project import Project

IN_ORDER = "test"
"""The concurrency id of the tab's events: what one opens, such as an image, the next one must not close."""


def build(studio: Studio, tab: gr.Tab) -> Page:
    """Build the tab and register its events."""
    layout = build_layout(local=studio.mode is Mode.LOCAL)
    return SweepTab(studio, layout).wire(tab)


class SweepTab:
    """Event handlers of the Test tab."""

    def __init__(self, studio: Studio, layout: SweepLayout) -> None:
        self.studio = studio
        self.layout = layout
        self.render = SweepRenderer(studio, layout).render
        self.tools = LoraTools(studio, layout.tools, layout.settings.loras)
        self.release = Release(studio, layout.release)

    def wire(self, tab: gr.Tab) -> Page:
        """Register the events."""
        layout, studio = self.layout, self.studio
        settings = layout.settings
        form_inputs = [settings.loras, settings.bases, settings.stacked, settings.weights, *layout.form.inputs]
        inputs = [studio.project, studio.run, *layout.held, *form_inputs]
        live = [*layout.panels, *layout.buttons, *layout.results, *layout.held, studio.timer]
        lists = [layout.tools.lora, layout.tools.others, layout.release.lora]
        outputs = [*live, *layout.settings, *layout.form.outputs, layout.lora_import.path, *lists]
        rest = (self.show_error, layout.panels.notice, studio.with_progress)
        events = TabEvents(inputs, outputs, self.read, self.render, *rest, concurrency_id=IN_ORDER)
        self._wire_actions(events, tab)
        self._wire_results(events, live)
        gr.on(
            [*(item.input for item in (settings.loras, settings.bases)), *layout.form.edit_events],
            self.update_cell_count,
            {*inputs},
            [settings.cell_count],
            **NO_PROGRESS,
            trigger_mode="multiple",  # gradio's "always_last" repeats the event with the values of the first one
        )
        self.tools.wire()
        self.release.wire()
        layout.open_train.click(studio.opens(TabName.TRAIN), None, [studio.tabs], **NO_PROGRESS)
        return Page(self.refresh, list(dict.fromkeys([*outputs, *self.tools.outputs, *self.release.outputs])))

    def _wire_actions(self, events: TabEvents[SweepPage, SweepState], tab: gr.Tab) -> None:
        buttons, imports = self.layout.buttons, self.layout.lora_import
        events.on(tab.select, self.tab_selected, ignored_error="no_project")
        events.on(buttons.start.click, self.start_sweep)
        events.on(buttons.stop.click, self.stop_sweep)
        events.on(buttons.resume.click, self.resume_sweep)
        events.on(buttons.reuse_settings.click, self.reuse_settings)
        events.on(self.layout.settings.bases.input, self.bases_chosen)
        events.on(self.layout.settings.prompt_sets.click, self.add_prompts, sends="pick")
        events.on(imports.upload.upload, self.upload_lora, imports.upload)
        if self.studio.mode is Mode.LOCAL:
            events.on(imports.import_path.click, self.add_lora_path, imports.path)
            events.on(imports.path.submit, self.add_lora_path, imports.path)

    def _wire_results(self, events: TabEvents[SweepPage, SweepState], live: list[gr.blocks.Block]) -> None:
        results = self.layout.results
        held = self.layout.held
        images = [results.large, results.grid, held.cell, held.pinned, held.arrangement, self.layout.panels.notice]
        events.on(results.sweeps.click, self.select_sweep, sends="pick")
        events.on(results.grid.click, self.pick_in_grid, sends="pick", outputs=images)
        events.on(results.large.click, self.select_cell, sends="pick", outputs=images)
        train = [self.studio.edited, self.studio.tabs, self.layout.panels.notice]
        events.on(results.measures.click, self.try_change, sends="pick", outputs=train)
        # The browser processes every output of a tick: the form with its many fields is not among them.
        events.on_tick(self.studio.timer.tick, self.tick, outputs=live, trigger_mode="always_last")

    def read(self, values: PageValues) -> SweepPage:
        """Return the page as an event's values describe it; raises InputError if no project is selected."""
        settings, held = self.layout.settings, self.layout.held
        loras, bases = values[settings.loras], values[settings.bases]
        return SweepPage(
            project=self.studio.find_project(values[self.studio.project]),
            run=values[self.studio.run],
            sweep=values[held.sweep],
            cell=values[held.cell],
            pinned=values[held.pinned],
            arrangement=values[held.arrangement],
            signature=values[held.signature],
            filled_base=values[held.filled_base],
            filled_for=values[held.filled_for],
            loras=[str(given) for given in loras] if isinstance(loras, list) else [],
            stacked=[str(given) for given in values[settings.stacked] or []],
            weights=str(values[settings.weights] or ""),
            bases=[base.strip() for base in bases or [] if isinstance(base, str) and base.strip()],
            fields=self.layout.form.read(values),
        )

    def show_error(self, error: StudioError) -> Updates:
        """Show why a handler did nothing."""
        return {self.layout.panels.notice: error_card(error)}

    def refresh(self, project: Project) -> Updates:
        """Show a project: its latest test, and the form with the settings of its latest run."""
        form = SweepForm.of_target(project, likely_target(project, None))
        form = replace(form, values={**self.layout.form.defaults, **form.values})
        form = self._counted(SweepPage.empty(project, {}), form)
        shown = self.render(SweepState(project, default_sweep(project), form=form))
        folds = {**self.tools.refresh(project), **self.release.refresh(project)}
        lists = {**self.tools.choices(project), **self.release.choices(project)}
        return {self.layout.panels.notice: "", **folds, **shown, **lists}

    @allowed(Role.GUEST)
    def tab_selected(self, page: SweepPage) -> SweepState:
        """Update the tab when it is opened. What the user opened stays open.

        The form keeps its content, unless Train showed another run since.
        """
        target = likely_target(page.project, page.run)
        is_filled = page.filled_for == form_key(page.project, target)
        form = SweepForm(page.loras) if is_filled else SweepForm.of_target(page.project, target)
        known = {folder.name: folder for folder in page.project.sweeps()}
        is_other_active = any(folder.status().state.is_active for folder in known.values() if folder.name != page.sweep)
        if is_other_active or page.sweep not in known:
            return SweepState(page.project, default_sweep(page.project), form=self._counted(page, form))
        return self._filled(page, form)

    @allowed(Role.VISITOR)
    def start_sweep(self, page: SweepPage) -> SweepState:
        """Write the job and start its worker process. Wrong fields are marked, LoRAs that are gone are deselected."""
        try:
            job = self._job(page)
        except (ConfigError, UnknownLora) as error:
            return replace(self._filled(page, SweepForm(page.loras)), wrong=page.fields, error=error)
        folder = self.studio.jobs.start(page.project.new_sweep_dir(), job)
        return SweepState(page.project, folder.name, is_job_started=True)

    def stop_sweep(self, page: SweepPage) -> SweepState:
        """Request that the test stops after the current image; finished images are kept."""
        sweep_named(page.project, page.shown.sweep).request_stop()
        return page.shown

    def resume_sweep(self, page: SweepPage) -> SweepState:
        """Draw the missing images."""
        folder = sweep_named(page.project, page.shown.sweep)
        if folder.status().state.is_active:
            raise InputError(f"Test {folder.name} is already running.", "Wait for it, or stop it first.", code="busy")
        self.studio.jobs.resume(folder)
        return replace(page.shown, is_job_started=True)

    @allowed(Role.VISITOR)
    def reuse_settings(self, page: SweepPage) -> SweepState:
        """Fill the form with the settings of the shown test."""
        job = SweepView.load(sweep_named(page.project, page.shown.sweep)).job
        return self._filled(page, SweepForm.of_job(page.project, job))

    @allowed(Role.VISITOR)
    def bases_chosen(self, page: SweepPage) -> SweepState:
        """Fill in what the model card of the first base recommends, where the form has what the last one did."""
        before, after = base_settings([page.filled_base]), base_settings(page.bases)
        content = self.layout.form.contents(before)
        values = {name: value for name, value in after.items() if page.fields[name] == content[name]}
        return self._filled(page, SweepForm(page.loras, page.bases, values))

    @allowed(Role.VISITOR)
    def add_prompts(self, page: SweepPage, pick: object) -> SweepState:
        """Add a set of prompts for the project's kind, or captions of the training images, to those of the form."""
        if pick == CAPTIONS:
            added = self._captions(page)
        else:
            try:
                added = prompts_of_set(page.project.info().kind, str(pick))
            except KeyError as error:
                raise InputError(
                    f"There is no set of prompts {pick!r}.", "Select one of the list.", code="no_set"
                ) from error
        prompts = list(dict.fromkeys([*split_lines(str(page.fields["prompts"] or "")), *added]))
        return self._filled(page, SweepForm(page.loras, values={"prompts": prompts}))

    def _captions(self, page: SweepPage) -> list[str]:
        """Return captions of the training images of the first selected LoRA; raises InputError if there are none."""
        run = next(filter(None, map(run_of, selected_loras(page.project, page.loras))), None)
        captions = [] if run is None else captions_to_test(run.path)
        if not captions:
            raise InputError(
                "The captions that the selected LoRA was trained with are not known.",
                "Select a LoRA of one of this project's runs.",
                code="no_training_captions",
            )
        return captions

    def _filled(self, page: SweepPage, form: SweepForm) -> SweepState:
        return replace(page.shown, form=self._counted(page, form))

    def _counted(self, page: SweepPage, form: SweepForm) -> SweepForm:
        """Return the form with the line below it: what the form describes once it has this content."""
        known = lora_choices(page.project)
        stacked, weights = (page.stacked, page.weights) if form.stacked is None else form.stacked
        after = replace(
            page,
            loras=[given for given in form.loras if given in known],
            bases=page.bases if form.bases is None else list(form.bases),
            stacked=list(stacked),
            weights=weights,
            fields={**page.fields, **self.layout.form.contents(form.values)},
        )
        return replace(form, count=self._count(after))

    def _count(self, page: SweepPage) -> Markup:
        """Return how many images the form describes, or why none. A wrong value is marked at its field by the form."""
        try:
            return cell_count(self._job(page))
        except ConfigError:
            return Markup("")
        except StudioError as error:
            return hint(str(error))

    @allowed(Role.GUEST)
    def select_sweep(self, page: SweepPage, pick: object) -> SweepState:
        """Show another test."""
        return SweepState(page.project, sweep_named(page.project, str(pick)).name)

    @allowed(Role.GUEST)
    def pick_in_grid(self, page: SweepPage, pick: object) -> SweepState:
        """Show another page of the grid or other axes, or enlarge an image."""
        plan = SweepView.load(sweep_named(page.project, page.sweep)).plan
        if (arranged := arrange(plan, page.arrangement or plan.arrangement, str(pick))) is not None:
            return replace(page.shown, arrangement=arranged)
        return self.select_cell(page, pick)

    @allowed(Role.GUEST)
    def select_cell(self, page: SweepPage, pick: object) -> SweepState:
        """Enlarge an image or close it, give it a star, or compare other images with it."""
        view = SweepView.load(sweep_named(page.project, page.sweep))
        text = str(pick)
        if text == CLOSE:
            return replace(page.shown, cell="")
        name = view.file_name(view.drawn_cell(text.removeprefix(STAR).removeprefix(PIN)))
        if text.startswith(STAR):
            require_owner()
            toggle_star(view.folder.path, name)
        elif text.startswith(PIN):
            return replace(page.shown, pinned="" if page.pinned == name else name)
        return replace(page.shown, cell=name)

    def try_change(self, page: SweepPage, pick: object) -> SweepState:
        """Open Train with the settings of the tested run and the change that the verdict asks for."""
        view = SweepView.load(sweep_named(page.project, page.sweep))
        return replace(page.shown, edited=edited_run(page.project, view, str(pick)))

    def upload_lora(self, page: SweepPage, file: str | None) -> SweepState:
        """Import an uploaded LoRA file."""
        if not file:
            raise InputError("No file was uploaded.", "Select a .safetensors file.", code="no_file")
        return self._imported(page, Path(file))

    def add_lora_path(self, page: SweepPage, path: str | None) -> SweepState:
        """Import a LoRA file of this computer. Wired only while the studio is local."""
        text = (path or "").strip().strip("\"'")
        if not text:
            raise InputError("The path is empty.", "Enter the path of a .safetensors file.", code="no_file")
        return replace(self._imported(page, Path(text).expanduser()), is_path_imported=True)

    @allowed(Role.GUEST)
    def update_cell_count(self, values: PageValues) -> Updates:
        """Update the number of images after an edit."""
        try:
            text = self._count(self.read(values))
        except StudioError as error:
            text = hint(str(error))
        return {self.layout.settings.cell_count: text}

    @allowed(Role.GUEST)
    def tick(self, page: SweepPage) -> SweepState | None:
        """Show what changed; called by the timer while a job is active."""
        if page_signature(page.project, page.sweep) == page.signature:
            return None
        return replace(page.shown, is_tick=True)

    def _job(self, page: SweepPage) -> SweepJob:
        """Return the job that the form describes; raises InputError or ConfigError."""
        loras = selected_loras(page.project, page.loras)
        if not page.bases:
            raise InputError("No base model is selected.", "Select one under Base models.", code="no_base")
        if self.studio.mode is not Mode.LOCAL:
            for base in page.bases:
                check_shared_model(base, self.studio.home)
        for base in page.bases:
            resolve_base(base, self.studio.home)
        for path in loras:
            read_lora_header(path)
        stacked = stacked_loras(page.project, page.stacked, page.weights)
        return self.layout.form.parse(page.fields, loras=loras, bases=page.bases, with_loras=stacked)

    def _imported(self, page: SweepPage, file: Path) -> SweepState:
        imported = import_lora(page.project, file)
        form = self._counted(page, SweepForm([*page.loras, imported]))
        return SweepState(page.project, default_sweep(page.project), form=form)
