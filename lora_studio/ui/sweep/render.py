"""Turns the state of the Test tab into updates of its components."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import gradio as gr
from markupsafe import Markup

from lora_studio.errors import InputError
from lora_studio.lora.header import read_lora_header
from lora_studio.sampling.cells import SweepPlan
from lora_studio.settings.job_specs import SweepJob
from lora_studio.ui.context import Studio, TabName
from lora_studio.ui.state.first_tests import before_training, load_first_test
from lora_studio.ui.state.lora_files import lora_choices
from lora_studio.ui.state.sweep_view import SweepView, sweep_named
from lora_studio.ui.sweep import grid, view
from lora_studio.ui.sweep.layout import SweepLayout
from lora_studio.ui.sweep.lightbox import lightbox
from lora_studio.ui.sweep.pictures import picture_measures
from lora_studio.ui.sweep.state import SweepForm, SweepState, page_signature
from lora_studio.ui.widgets.events import Updates
from lora_studio.ui.widgets.html import error_card, heading
from lora_studio.ui.widgets.job_status import log
from lora_studio.ui.widgets.thumbnails import copy_for_download
from lora_studio.workspace.job_folder import JobState, slugify
from lora_studio.workspace.project import Home, Project

LOG_LINES = 40
RESUMABLE = (JobState.STOPPED, JobState.FAILED, JobState.CREATED)


@dataclass(frozen=True)
class SweepRenderer:
    """Renders states for the components of a layout."""

    studio: Studio
    layout: SweepLayout

    def render(self, state: SweepState) -> Updates:
        """Return the updates that show a state."""
        studio = self.studio
        sweep = SweepView.load(sweep_named(state.project, state.sweep)) if state.sweep else None
        return {
            **self._panels(state),
            **self._buttons(sweep),
            **(self._sweep(sweep, state) if sweep else self._placeholder()),
            **(self._form(state.project, state.form) if state.form else {}),
            **(self.layout.form.mark_errors(state.wrong) if state.wrong is not None else {}),
            **({self.layout.panels.notice: error_card(state.error)} if state.error else {}),
            **(studio.start_polling() if state.is_job_started else {}),
            **({self.layout.lora_import.path: ""} if state.is_path_imported else {}),
            **({studio.edited: state.edited, **studio.goto(TabName.TRAIN)} if state.edited else {}),
        }

    def _panels(self, state: SweepState) -> Updates:
        """Show the parts of the tab that apply; without a LoRA and a test, the placeholder."""
        panels, held = self.layout.panels, self.layout.held
        has_work = bool(state.sweep) or bool(lora_choices(state.project))
        return {
            panels.empty: gr.Column(visible=not has_work),
            panels.work: gr.Column(visible=has_work),
            panels.settings_side: gr.Column(visible=has_work),
            panels.results_side: gr.Column(visible=has_work),
            held.sweep: state.sweep,
            held.signature: page_signature(state.project, state.sweep),
            self.layout.results.before: before_training(load_first_test(state.project), self.studio.home),
            self.layout.results.sweeps: _sweeps_table(state.project, state.sweep),
        }

    def _buttons(self, sweep: SweepView | None) -> Updates:
        buttons = self.layout.buttons
        is_stopping = sweep is not None and sweep.folder.stop_requested()
        return {
            buttons.stop: gr.Button(
                "Stopping after this image" if is_stopping else "Stop and save",
                interactive=not is_stopping,
                visible=sweep is not None and sweep.is_active,
            ),
            buttons.resume: gr.Button(visible=sweep is not None and sweep.status.state in RESUMABLE),
            buttons.reuse_settings: gr.Button(visible=sweep is not None),
        }

    def _placeholder(self) -> Updates:
        """Show what the grid will be, before the first test."""
        panels, results = self.layout.panels, self.layout.results
        return {
            panels.title: heading("New test", "Choose settings on the left, then make the grid."),
            panels.tiles: "",
            results.state: "",
            results.large: "",
            results.grid: grid.empty_grid(),
            results.download: gr.DownloadButton(visible=False),
            results.measures: "",
            results.log_fold: gr.Accordion(visible=False),
            self.layout.held.cell: "",
            self.layout.held.pinned: "",
            self.layout.held.arrangement: None,
        }

    def _sweep(self, sweep: SweepView, state: SweepState) -> Updates:
        """Show a test; an enlarged image that no longer exists is closed."""
        panels, results, home = self.layout.panels, self.layout.results, self.studio.home
        shown = state.cell if state.cell in sweep.drawn else ""
        arrangement = state.arrangement or sweep.plan.arrangement
        has_failed = sweep.status.state is JobState.FAILED
        return {
            panels.title: view.title(sweep),
            panels.tiles: view.sweep_tiles(sweep),
            results.state: view.state_cards(sweep),
            results.grid: grid.grid(sweep, home, arrangement, shown),
            results.download: self._download(sweep),
            results.measures: _measures(sweep, home),
            results.log_fold: gr.Accordion(visible=has_failed, open=has_failed),
            results.log: log(sweep.folder.log_tail(LOG_LINES)) if has_failed else "",
            **self._opened(sweep, state, shown),
        }

    def _opened(self, sweep: SweepView, state: SweepState, cell: str) -> Updates:
        """Show what the user opened: the enlarged image, what it is compared with, and the arrangement of the grid.

        A tick, whose answer may come after that to a click, opens and closes nothing.
        """
        results, held = self.layout.results, self.layout.held
        arrangement = state.arrangement or sweep.plan.arrangement
        copy = self._cell_copy(sweep, cell)
        large = lightbox(sweep, self.studio.home, arrangement, cell, state.pinned, copy)
        if state.is_tick:
            return {results.large: large} if cell else {}
        opened: Updates = {held.cell: cell, held.pinned: state.pinned, held.arrangement: state.arrangement}
        return {results.large: large, **opened}

    def _cell_copy(self, sweep: SweepView, name: str) -> str:
        """Return the path of a copy of a cell's file that the browser may download; empty for no cell."""
        if not name:
            return ""
        project = slugify(sweep.folder.path.parents[1].name)
        target = f"{project}-test-{sweep.folder.name}-{name}"
        return copy_for_download(self.layout.results.download, sweep.path(sweep.drawn_cell(name)), target)

    def _download(self, sweep: SweepView) -> gr.DownloadButton:
        if sweep.is_active or sweep.grid is None:
            return gr.DownloadButton(visible=False)
        name = f"{slugify(sweep.folder.path.parents[1].name)}-test-{sweep.folder.name}.png"
        copy = copy_for_download(self.layout.results.download, sweep.grid, name)
        return gr.DownloadButton(value=copy, visible=True)

    def _form(self, project: Project, form: SweepForm) -> Updates:
        """Fill the form. LoRAs that no longer exist are not selected."""
        settings, choices = self.layout.settings, lora_choices(project)
        options = [(choice.label, choice.id) for choice in choices.values()]
        selected = [given for given in dict.fromkeys(form.loras) if given in choices]
        return {
            settings.loras: gr.update(choices=options, value=selected),
            settings.stacked: gr.update(choices=options),
            **self._stacked(form.stacked, options),
            self.layout.tools.lora: gr.update(choices=options),
            self.layout.tools.others: gr.update(choices=options),
            self.layout.release.lora: gr.update(choices=options),
            settings.prompt_sets: view.prompt_sets(project.info().kind),
            **({} if form.bases is None else self._bases(form.bases)),
            **self.layout.form.fill(form.values),
            **({} if form.key is None else {self.layout.held.filled_for: form.key}),
            **({} if form.count is None else {settings.cell_count: form.count}),
        }

    def _stacked(self, stacked: tuple[Sequence[str], str] | None, options: list[tuple[str, str]]) -> Updates:
        if stacked is None:
            return {}
        settings, (ids, weights) = self.layout.settings, stacked
        return {settings.stacked: gr.update(choices=options, value=list(ids)), settings.weights: weights}

    def _bases(self, bases: Sequence[str]) -> Updates:
        return {self.layout.settings.bases: list(bases), self.layout.held.filled_base: next(iter(bases), "")}


def _measures(sweep: SweepView, home: Home) -> Markup:
    """Return the measures by features, or, of a test of an earlier version or without them, those of the pixels."""
    pictures = sweep.pictures
    return view.measures_table(sweep) if pictures is None else picture_measures(sweep, pictures, home)


def cell_count(job: SweepJob) -> Markup:
    """Return the number of images that a job would draw."""
    return view.cell_count(SweepPlan(job, [read_lora_header(path) for path in job.loras]))


def _sweeps_table(project: Project, selected: str) -> Markup:
    """Return the list of the project's tests; those whose job cannot be read are left out."""
    views = []
    for folder in project.sweeps():
        try:
            views.append(SweepView.load(folder))
        except InputError:
            continue
    return view.sweeps_table(views, selected)
