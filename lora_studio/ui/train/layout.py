"""The components of the Train tab, without their events."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import gradio as gr

from lora_studio.interop.files import FILE_TYPES
from lora_studio.planning.presets import list_presets, preset_title
from lora_studio.ui.train.control import ControlFields, build_control_fields, build_restart_fields
from lora_studio.ui.train.own_presets import OwnPresets, build_own_presets
from lora_studio.ui.train.run_panel import RunPanelLayout, build_run_panel
from lora_studio.ui.train.variants import VariantFields, build_variant_fields
from lora_studio.ui.widgets.choices import checked_by_handlers
from lora_studio.ui.widgets.html import hint, html, pickable, render
from lora_studio.ui.widgets.job_fields import JobFields, build_job_fields
from lora_studio.ui.widgets.recipe_form import RecipeForm, build_form
from lora_studio.workspace.notify import NOTIFY_FILE

GUIDE_DEFAULTS = "The guide's defaults"


class TrainButtons(NamedTuple):
    """Actions for the shown run; only those that apply are visible."""

    start: gr.Button
    stop: gr.Button
    sample: gr.Button
    save: gr.Button
    resume: gr.Button
    test: gr.Button
    overview: gr.Button
    edit_and_rerun: gr.Button
    new_run: gr.Button


class FormSide(NamedTuple):
    """The form of a new run, in place of the loss curve.

    `source` says where its recipe comes from, `lineage` which run it is made from, and what differs.
    """

    column: gr.Column
    source: gr.HTML
    lineage: gr.HTML
    name: gr.Textbox
    preset: gr.Dropdown


class Exchange(NamedTuple):
    """Import and export of settings. The path is visible only while the studio is local."""

    upload: gr.UploadButton
    path: gr.Textbox
    import_path: gr.Button
    export: gr.Button
    download: gr.DownloadButton
    result: gr.HTML


class RunSide(NamedTuple):
    """The loss curve, the loss by image, and the samples of a run."""

    column: gr.Column
    curve: gr.HTML
    images: gr.HTML
    filmstrip: gr.HTML


class Aside(NamedTuple):
    """The right side: verdict, files, details and the list of runs."""

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


class TrainLayout(NamedTuple):
    """All components of the tab.

    `planned` is the ProjectPlan that the form was filled from, None before that; `signature` belongs to the shown run.
    """

    title: gr.HTML
    buttons: TrainButtons
    tiles: gr.HTML
    form_side: FormSide
    exchange: Exchange
    presets: OwnPresets
    form: RecipeForm
    job_fields: JobFields
    file_offer: gr.HTML
    variants: VariantFields
    run_side: RunSide
    aside: Aside
    control: ControlFields
    run_panel: RunPanelLayout
    queue: gr.HTML
    planned: gr.State
    signature: gr.State


def build_layout(*, local: bool) -> TrainLayout:
    """Create the components. `local`: the studio is not shared, so that paths of this computer can be given."""
    with gr.Row(elem_classes="title-row"):
        with gr.Column(scale=3, min_width=300):
            title = html(elem_id="train-title")
        with gr.Column(scale=2, min_width=320), gr.Row(elem_classes="actions"):
            buttons = TrainButtons(
                start=gr.Button("Start training", variant="primary", elem_id="train-start", visible=False),
                stop=gr.Button("Stop and save", elem_id="train-stop", visible=False),
                sample=gr.Button("Sample now", elem_id="train-sample", visible=False),
                save=gr.Button("Save now", elem_id="train-save", visible=False),
                resume=gr.Button("Resume", variant="primary", elem_id="train-resume", visible=False),
                test=gr.Button("Test it", variant="primary", elem_id="train-test", visible=False),
                overview=gr.Button("Overview by epoch", elem_id="train-overview", visible=False),
                edit_and_rerun=gr.Button("Edit and rerun", elem_id="train-again", visible=False),
                new_run=gr.Button("New run", elem_id="train-new", visible=False),
            )
    tiles = html(elem_id="train-tiles")
    with gr.Row(elem_classes="sides"):
        with gr.Column(scale=3, min_width=340):
            form_side, exchange, presets, form, job_fields, file_offer, variants = _form_side(local=local)
            run_side = _run_side()
        with gr.Column(scale=2, min_width=320):
            aside, control, run_panel, queue = _aside(local=local)
    states = gr.State(None), gr.State("")
    form_sides = (form_side, exchange, presets, form, job_fields, file_offer, variants)
    sides = (*form_sides, run_side, aside, control, run_panel, queue)
    return TrainLayout(title, buttons, tiles, *sides, *states)


def _form_side(*, local: bool) -> tuple[FormSide, Exchange, OwnPresets, RecipeForm, JobFields, gr.HTML, VariantFields]:
    with gr.Column(visible=False) as column:
        source = pickable(elem_id="train-source")
        lineage = pickable(elem_id="train-lineage")
        with gr.Row(elem_classes="fields"):
            name = gr.Textbox(
                label="LoRA name",
                info="The file name; the folder of the run gets a number before it.",
                max_lines=1,
                elem_id="train-name",
            )
            preset = checked_by_handlers(
                gr.Dropdown(
                    preset_choices(()),
                    value=None,
                    label="Load settings from",
                    info="A preset changes only the settings that it names.",
                    elem_id="train-preset",
                )
            )
        presets = build_own_presets()
        exchange = _exchange(local=local)
        form = build_form()
        job_fields = build_job_fields(local=local)
        file_offer = pickable(elem_id="train-file-offer")
        variants = build_variant_fields()
    return FormSide(column, source, lineage, name, preset), exchange, presets, form, job_fields, file_offer, variants


def _exchange(*, local: bool) -> Exchange:
    with gr.Accordion("Settings of kohya's tools", open=False, elem_id="train-exchange"):
        html(
            hint(
                "Import the JSON of kohya_ss, a TOML of sd-scripts (config or dataset_config), or the metadata of a "
                "LoRA file. Export writes the settings below as a TOML for sd-scripts."
            )
        )
        with gr.Row():
            upload = gr.UploadButton(
                "Import a file", file_types=list(FILE_TYPES), file_count="single", elem_id="train-import"
            )
            export = gr.Button("Export for sd-scripts", elem_id="train-export")
            download = gr.DownloadButton("Download the TOML", elem_id="train-exported", visible=False)
        path = gr.Textbox(
            label="Or a path on this computer",
            info="Finds the files that it names, too. Works only while the studio is not shared.",
            max_lines=1,
            elem_id="train-import-path",
            visible=local,
        )
        import_path = gr.Button("Import this file", elem_id="train-import-add", visible=local)
        result = html(elem_id="train-exchanged")
    return Exchange(upload, path, import_path, export, download, result)


def preset_choices(own: Sequence[str]) -> list[tuple[str, str]]:
    """Return the choices of the list of presets: the defaults, the user's `own`, those that ship."""
    mine = [(f"{name} (yours)", name) for name in own]
    presets = [(f"{name}: {preset_title(name)}" if preset_title(name) else name, name) for name in list_presets()]
    return [(GUIDE_DEFAULTS, GUIDE_DEFAULTS), *mine, *presets]


def _run_side() -> RunSide:
    with gr.Column(visible=False) as column:
        curve = html(elem_id="train-curve")
        images = html(elem_id="train-images")
        filmstrip = html(elem_id="train-film")
    return RunSide(column, curve, images, filmstrip)


def _aside(*, local: bool) -> tuple[Aside, ControlFields, RunPanelLayout, gr.HTML]:
    notice = html(elem_id="train-notice")
    state = html(elem_id="train-state")
    restart = build_restart_fields()
    cards = html(elem_id="train-cards")
    control = build_control_fields(restart)
    run_panel = build_run_panel(local=local)
    with gr.Column(visible=False) as files:
        path = html(elem_id="train-path")
        download = gr.DownloadButton("Download the LoRA", elem_id="train-download")
    with gr.Accordion("Recipe of this run", open=False, visible=False) as details:
        recipe = html()
    with gr.Accordion("Log", open=False, visible=False) as log_fold:
        log = html(elem_id="train-log")
    queue = pickable(elem_id="train-queue")
    html(render("train/notify.html", file=NOTIFY_FILE), js="notify.js", elem_id="train-notify")
    runs = pickable(elem_id="train-runs")
    aside = Aside(notice, state, cards, runs, files, path, download, details, recipe, log_fold, log)
    return aside, control, run_panel, queue
