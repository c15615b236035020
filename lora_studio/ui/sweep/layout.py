"""The components of the Test tab, without their events."""

from __future__ import annotations

from typing import NamedTuple

import gradio as gr

from lora_studio.models.catalogue import BASES
from lora_studio.settings.job_specs import SweepJob
from lora_studio.ui.sweep import grid
from lora_studio.ui.sweep.release_layout import ReleaseLayout, build_release_fold
from lora_studio.ui.sweep.tool_layout import ToolLayout, build_tools
from lora_studio.ui.widgets.html import empty_state, hint, html, pickable
from lora_studio.ui.widgets.settings_form import SettingsForm, build_fields

SIMPLE = ("prompts", "strengths")
FOLDED = ("seeds", "sampler", "steps", "guidance", "width", "height", "clip_skip", "mixed_precision", "trigger_word")
WIDE = ("text_encoder_strength", "negative_prompt", "quality_tags")


class SweepButtons(NamedTuple):
    """Actions; only those that apply are visible."""

    start: gr.Button
    stop: gr.Button
    resume: gr.Button
    reuse_settings: gr.Button


class SweepSettings(NamedTuple):
    """What to test, on the left, beside the fields of the form."""

    loras: gr.Dropdown
    bases: gr.Dropdown
    prompt_sets: gr.HTML
    stacked: gr.Dropdown
    weights: gr.Textbox
    cell_count: gr.HTML


class Panels(NamedTuple):
    """The parts of the tab. While there is no LoRA, `empty` is shown instead of the others."""

    notice: gr.HTML
    empty: gr.Column
    work: gr.Column
    settings_side: gr.Column
    results_side: gr.Column
    title: gr.HTML
    tiles: gr.HTML


class LoraImport(NamedTuple):
    """Import of LoRA files that the studio did not train. The path is visible only while the studio is local."""

    upload: gr.UploadButton
    path: gr.Textbox
    import_path: gr.Button


class Results(NamedTuple):
    """The grid and what belongs to it, on the right."""

    state: gr.HTML
    large: gr.HTML
    grid: gr.HTML
    download: gr.DownloadButton
    measures: gr.HTML
    before: gr.HTML
    sweeps: gr.HTML
    log_fold: gr.Accordion
    log: gr.HTML


class Held(NamedTuple):
    """What the page remembers between events, see `SweepPage`."""

    sweep: gr.State
    cell: gr.State
    pinned: gr.State
    arrangement: gr.State
    signature: gr.State
    filled_base: gr.State
    filled_for: gr.State


class SweepLayout(NamedTuple):
    """All components of the tab. `open_train` is the button of the placeholder."""

    panels: Panels
    open_train: gr.Button
    buttons: SweepButtons
    settings: SweepSettings
    form: SettingsForm[SweepJob]
    lora_import: LoraImport
    tools: ToolLayout
    release: ReleaseLayout
    results: Results
    held: Held


def build_layout(*, local: bool) -> SweepLayout:
    """Create the components. `local`: the studio is not shared, so that paths of this computer can be given."""
    notice = html(elem_id="test-notice")
    empty = empty_state(
        "No LoRA to test yet",
        "Train one first: its final file and its checkpoints can be compared here at any strength. "
        "Or import a LoRA that you have.",
        ["Open Train"],
        visible=False,
    )
    with gr.Column() as work:
        with gr.Row(elem_classes="title-row"):
            with gr.Column(scale=3, min_width=300):
                title = html(elem_id="test-title")
            with gr.Column(scale=2, min_width=320), gr.Row(elem_classes="actions"):
                buttons = SweepButtons(
                    start=gr.Button("Make the grid", variant="primary", elem_id="test-start"),
                    stop=gr.Button("Stop and save", elem_id="test-stop", visible=False),
                    resume=gr.Button("Resume", elem_id="test-resume", visible=False),
                    reuse_settings=gr.Button("Use these settings", elem_id="test-again", visible=False),
                )
        tiles = html(elem_id="test-tiles")
    with gr.Row(elem_classes="sides"):
        with gr.Column(scale=2, min_width=300):
            with gr.Column() as settings_side:
                settings, form = _sweep_settings()
            lora_import = _lora_import(local=local)
            release = build_release_fold(local=local)
            tools = build_tools(local=local)
        with gr.Column(scale=5, min_width=340) as results_side:
            results = _results()
    panels = Panels(notice, empty.group, work, settings_side, results_side, title, tiles)
    held = Held(gr.State(""), gr.State(""), gr.State(""), gr.State(None), gr.State(""), gr.State(""), gr.State(""))
    return SweepLayout(panels, empty.buttons[0], buttons, settings, form, lora_import, tools, release, results, held)


def _sweep_settings() -> tuple[SweepSettings, SettingsForm[SweepJob]]:
    with gr.Group(elem_classes="answers"):
        loras = gr.Dropdown(
            [],
            multiselect=True,
            max_choices=20,
            allow_custom_value=True,  # the handlers check the choices of a page that is older than the list
            label="LoRAs",
            info="Final files and checkpoints: the best epoch is often not the last.",
            elem_id="test-loras",
        )
        bases = gr.Dropdown(
            list(BASES),
            multiselect=True,
            max_choices=8,
            allow_custom_value=True,
            label="Base models",
            info="The one that the LoRA was trained on; the guide also tries others of the same family.",
            elem_id="test-bases",
        )
        form = build_fields(SweepJob, SIMPLE, "test")
        prompt_sets = pickable(elem_id="test-prompt-sets")
    with gr.Accordion("Seeds, steps, size and more", open=False):
        rest = build_fields(SweepJob, (*FOLDED, *WIDE), "test")
        stacked = gr.Dropdown(
            [],
            multiselect=True,
            max_choices=4,
            allow_custom_value=True,
            label="Other LoRAs in every image",
            info="Added to all images, strength 0 too: does yours still work beside them?",
            elem_id="test-stacked",
        )
        weights = gr.Textbox(
            label="Their strengths",
            info="In that order, by commas; 0.6:0.3 is 0.6 in the UNet, 0.3 in the text encoders. Empty: 1 each.",
            max_lines=1,
            elem_id="test-weights",
        )
    form = form.merged(rest)
    form.wire()
    return SweepSettings(loras, bases, prompt_sets, stacked, weights, html(elem_id="test-count")), form


def _lora_import(*, local: bool) -> LoraImport:
    with gr.Accordion("Import a LoRA", open=False):
        html(hint("An SDXL LoRA as a .safetensors file. It is checked and copied into the project."))
        upload = gr.UploadButton(
            "Upload a LoRA file", file_types=[".safetensors"], file_count="single", elem_id="test-upload"
        )
        path = gr.Textbox(
            label="Or a path on this computer",
            info="Works only while the studio is not shared.",
            max_lines=1,
            elem_id="test-path",
            visible=local,
        )
        import_path = gr.Button("Import this file", elem_id="test-add", visible=local)
    return LoraImport(upload, path, import_path)


def _results() -> Results:
    state = html(elem_id="test-state")
    large = html(elem_id="test-large", js=("pick.js", "copy_text.js"))
    images = pickable(elem_id="test-grid")
    download = gr.DownloadButton("Download the grid as an image", elem_id="test-download", visible=False)
    html(grid.strength_advice())
    with gr.Accordion("How to read the grid", open=False):
        html(grid.how_to_read())
    measures = html(elem_id="test-measures", js=("pick.js", "lightbox.js"))
    with gr.Accordion("Log", open=False, visible=False) as log_fold:
        log_lines = html(elem_id="test-log")
    before = html(elem_id="test-before")
    sweeps = pickable(elem_id="test-sweeps")
    return Results(state, large, images, download, measures, before, sweeps, log_fold, log_lines)
