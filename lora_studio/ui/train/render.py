"""The Train tab's state as updates of its components."""

from __future__ import annotations

from dataclasses import dataclass

import gradio as gr

from lora_studio.interop.write import ExportedSettings
from lora_studio.planning.presets import own_presets
from lora_studio.planning.project_plan import NextRun
from lora_studio.settings.sample_prompts import read_sample_prompts
from lora_studio.ui.context import NEW_RUN, Studio, TabName
from lora_studio.ui.roles import is_owner
from lora_studio.ui.state.run_history import RunView
from lora_studio.ui.train import view
from lora_studio.ui.train.control import checkpoint_list, controls_of, hidden_controls
from lora_studio.ui.train.exchange import ProjectImport
from lora_studio.ui.train.image_losses import image_losses
from lora_studio.ui.train.layout import Aside, TrainButtons, TrainLayout, preset_choices
from lora_studio.ui.train.lineage import lineage_card, lineage_of
from lora_studio.ui.train.plots import run_charts
from lora_studio.ui.train.queue import queue_table
from lora_studio.ui.train.sample_measures import sample_measures, verdicts_on_samples
from lora_studio.ui.train.state import TrainState
from lora_studio.ui.widgets.events import Updates
from lora_studio.ui.widgets.html import error_card, heading, hint
from lora_studio.ui.widgets.job_status import log, state_card
from lora_studio.ui.widgets.plan_summary import caution_cards, empty_plan_tiles, plan_tiles
from lora_studio.ui.widgets.thumbnails import copy_for_download
from lora_studio.workspace.job_folder import JobState
from lora_studio.workspace.project import Home

LOG_LINES = 40


@dataclass(frozen=True)
class TrainRenderer:
    """Renders states for the components of a layout."""

    studio: Studio
    layout: TrainLayout

    def render(self, state: TrainState) -> Updates:
        """Return the updates that show a state."""
        layout = self.layout
        updates: Updates = {}
        own = own_presets(self.studio.home) if is_owner() else []
        match state.shown:
            case RunView() as run:
                updates |= {self.studio.run: run.folder.name} | _run_updates(layout, run, self.studio.home)
            case NextRun() as next_run:
                updates |= {self.studio.run: NEW_RUN} | _next_run_updates(layout, next_run)
                text = "Add to the queue" if self.studio.jobs.active() else "Start training"
                updates[layout.buttons.start] = gr.Button(text, visible=True)
                updates |= _preset_updates(layout, own, state)
        if state.preset_note:
            updates |= _preset_updates(layout, own, state)
        if state.listed is not None:
            selected = state.shown.folder.name if isinstance(state.shown, RunView) else NEW_RUN
            updates[layout.signature] = state.listed.signature
            updates[layout.queue] = queue_table(self.studio)
            updates[layout.aside.runs] = view.runs_table(state.listed.runs, selected)
        if state.form is not None:
            updates |= layout.form.show(state.form)
            updates |= {self.studio.taken_back: [], self.studio.edited: None}
        if state.other is not None:
            updates |= {layout.form_side.name: state.other.name} | layout.job_fields.fill(state.other.files)
            updates |= {layout.exchange.result: "", layout.exchange.download: gr.DownloadButton(visible=False)}
        if state.variants is not None:
            updates[layout.variants.summary] = state.variants
        if state.file_offer is not None:
            updates[layout.file_offer] = state.file_offer
        match state.exchanged:
            case ProjectImport() as imported:
                updates |= {layout.exchange.result: view.import_card(imported), layout.exchange.path: ""}
            case ExportedSettings() as exported:
                copy = copy_for_download(layout.exchange.download, exported.file)
                updates[layout.exchange.download] = gr.DownloadButton(value=copy, visible=True)
                updates[layout.exchange.result] = view.export_card(exported)
        if state.is_job_started:
            updates |= self.studio.start_polling()
        if state.opens_plan:
            updates |= self.studio.goto(TabName.PLAN)
        return updates


def _preset_updates(layout: TrainLayout, own: list[str], state: TrainState) -> Updates:
    """Return the updates of the lists of presets; after something was done with one, its note and file are shown."""
    presets, note, file = layout.presets, state.preset_note, state.preset_file
    updates: Updates = {
        layout.form_side.preset: gr.Dropdown(preset_choices(own), value=None),
        presets.own: gr.Dropdown(own),
        presets.download: gr.DownloadButton(visible=False),
        presets.result: hint(note) if note else "",
    }
    if file is not None:
        copy = copy_for_download(presets.download, file)
        updates[presets.download] = gr.DownloadButton(value=copy, visible=True)
    elif note:
        updates |= {presets.name: "", presets.own: gr.Dropdown(own, value=None)}
    return updates


def _next_run_updates(layout: TrainLayout, run: NextRun) -> Updates:
    """Return the updates that show the form's figures, warnings and source, without its fields."""
    aside, info = layout.aside, run.planned.info
    return {
        layout.title: view.form_title(" · ".join([info.base, info.trigger_word or "no trigger word yet"])),
        **_button_updates(layout.buttons, layout.buttons.start),
        layout.tiles: plan_tiles(run.figures) if run.figures else empty_plan_tiles("correct the recipe"),
        layout.form_side.column: gr.Column(visible=True),
        layout.form_side.source: view.plan_source(run),
        layout.form_side.lineage: lineage_card(lineage_of(run)),
        layout.planned: run.planned,
        layout.run_side.column: gr.Column(visible=False),
        aside.notice: error_card(run.error) if run.error else "",
        aside.state: "",
        **hidden_controls(layout.control),
        aside.cards: caution_cards(run.figures) if run.figures else "",
        aside.files: gr.Column(visible=False),
        aside.details: gr.Accordion(visible=False),
        aside.log_fold: gr.Accordion(visible=False),
    }


def _run_updates(layout: TrainLayout, run: RunView, home: Home) -> Updates:
    aside = layout.aside
    failed = run.status.state is JobState.FAILED
    return {
        layout.title: view.title(run),
        layout.tiles: view.run_tiles(run),
        layout.form_side.column: gr.Column(visible=False),
        layout.run_side.column: gr.Column(visible=True),
        layout.run_side.curve: run_charts(run, home),
        layout.run_side.images: image_losses(run, home),
        layout.run_side.filmstrip: view.filmstrip(run, home) + sample_measures(run, home) + checkpoint_list(run),
        **_buttons_of_run(layout.buttons, run),
        aside.state: state_card(run.status, job="run", has_results=bool(run.history.steps)),
        **controls_of(layout.control, run),
        aside.cards: view.verdict_cards(run, verdicts_on_samples(run)),
        **_file_updates(aside, run),
        aside.details: gr.Accordion(visible=True),
        aside.recipe: view.recipe_of_run(run.job) + view.training_captions(run),
        aside.log_fold: gr.Accordion(visible=failed, open=failed),
        aside.log: log(run.folder.log_tail(LOG_LINES)) if failed else "",
    }


def _buttons_of_run(buttons: TrainButtons, run: RunView) -> Updates:
    """Return the updates that show the actions for a run, of which one is primary."""
    if run.status.state is JobState.WAITING:
        updates = _button_updates(buttons, buttons.stop, buttons.new_run)
        updates[buttons.stop] = gr.Button("Remove from the queue", interactive=True, visible=True)
        return updates
    if run.is_active:
        stopping = run.folder.stop_requested()
        text = "Stopping after this step" if stopping else "Stop and save"
        updates = _button_updates(buttons, buttons.stop, buttons.new_run)
        updates[buttons.stop] = gr.Button(text, interactive=not stopping, visible=True)
        if run.status.state is JobState.RUNNING and read_sample_prompts(run.job.recipe) and not stopping:
            requested = run.folder.samples_requested()
            text = "Sampling …" if requested else "Sample now"
            updates[buttons.sample] = gr.Button(text, interactive=not requested, visible=True)
        if run.status.state is JobState.RUNNING and run.history.steps and not stopping:
            requested = run.folder.save_requested()
            text = "Saving …" if requested else "Save now"
            updates[buttons.save] = gr.Button(text, interactive=not requested, visible=True)
        return updates
    is_done = run.status.state is JobState.DONE
    updates = _button_updates(buttons, buttons.edit_and_rerun, buttons.new_run)
    if not is_done:
        updates[buttons.resume] = gr.Button(visible=True)
    if run.lora is not None:
        updates[buttons.test] = gr.Button(visible=True, variant="primary" if is_done else "secondary")
        updates[buttons.overview] = gr.Button(visible=len(run.history.checkpoints) > 1)
    return updates


def _button_updates(buttons: TrainButtons, *shown: gr.Button) -> Updates:
    return {button: gr.Button(visible=button in shown) for button in buttons}


def _file_updates(aside: Aside, run: RunView) -> Updates:
    if run.is_active or run.lora is None or not is_owner():
        return {aside.files: gr.Column(visible=False)}
    return {
        aside.files: gr.Column(visible=True),
        aside.path: heading("LoRA", str(run.lora)),
        aside.download: gr.DownloadButton(value=copy_for_download(aside.download, run.lora)),
    }
