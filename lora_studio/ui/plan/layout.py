"""The components of the Plan tab, without their events."""

from __future__ import annotations

from typing import NamedTuple

import gradio as gr

from lora_studio.device import find_gpu
from lora_studio.models.catalogue import BASES
from lora_studio.settings.choices import LoraKind
from lora_studio.settings.plan_numbers import PlanNumbers, check_plan_number
from lora_studio.ui.plan.make_all import MakeAllLayout, build_make_all
from lora_studio.ui.plan.share import Share, build_picture, build_share
from lora_studio.ui.plan.what_if import WhatIfFold, build_what_if
from lora_studio.ui.tab_events import PageValues
from lora_studio.ui.widgets.html import html, pickable
from lora_studio.ui.widgets.setting_spec import SettingSpec
from lora_studio.workspace.project import ProjectInfo

IMAGES, VRAM, HOURS = (SettingSpec.of(PlanNumbers, name) for name in ("images", "vram_gib", "hours"))


class Answers(NamedTuple):
    """The questions on the left."""

    kind: gr.Radio
    base: gr.Dropdown
    trigger_word: gr.Textbox
    images: gr.Number
    vram_gib: gr.Number
    hours: gr.Number

    def read(self, data: PageValues, info: ProjectInfo, *, counted: bool) -> ProjectInfo:
        """Return a project's settings with the answers in the form; raises InputError for a number out of its bounds.

        An empty number of images, or one that was `counted` in the dataset, is not an answer.
        """
        images = info.expected_images if counted or data[self.images] is None else data[self.images]
        for name, number in (("images", images), ("vram_gib", data[self.vram_gib]), ("hours", data[self.hours])):
            check_plan_number(name, number)
        answers = {
            "kind": data[self.kind] or info.kind,
            "base": (data[self.base] or "").strip(),
            "trigger_word": (data[self.trigger_word] or "").strip(),
            "expected_images": images,
            "vram_gib": data[self.vram_gib],
            "hours": data[self.hours],
        }
        return ProjectInfo.parse(info.model_dump() | answers)


class BasePanel(NamedTuple):
    """What belongs to the chosen base, below its dropdown: facts, the download, and the models on this machine."""

    facts: gr.HTML
    download: gr.Button
    stop: gr.Button
    models: gr.HTML


class FirstTestPanel(NamedTuple):
    """The test of the bare base: its button, stop, and images."""

    start: gr.Button
    stop: gr.Button
    images: gr.HTML


class Result(NamedTuple):
    """The plan on the right, with what belongs to it."""

    notice: gr.HTML
    train: gr.Button
    to_dataset: gr.Button
    tiles: gr.HTML
    measure: gr.Button
    stop: gr.Button
    measurement: gr.HTML
    changes: gr.HTML
    cautions: gr.HTML
    recipe: gr.HTML
    memory: gr.HTML
    guide: gr.HTML


class PlanLayout(NamedTuple):
    """All components of the tab.

    `trigger_help` is below the trigger word: its tokens, and free words to click. `signature` is that of the jobs that
    the page shows.
    """

    answers: Answers
    base: BasePanel
    result: Result
    share: Share
    what_if: WhatIfFold
    first_test: FirstTestPanel
    make_all: MakeAllLayout
    trigger_help: gr.HTML
    signature: gr.State


def build_layout(guide_notes: str) -> PlanLayout:
    """Create the components."""
    with gr.Row(elem_classes="sides"):
        with gr.Column(scale=2, min_width=300):
            answers, base, trigger_help = _answers()
        with gr.Column(scale=5, min_width=340):
            result, share, fold, first_test, make_all = _result(guide_notes)
    return PlanLayout(answers, base, result, share, fold, first_test, make_all, trigger_help, gr.State(""))


def _answers() -> tuple[Answers, BasePanel, gr.HTML]:
    gpu = find_gpu()
    found = f"Found: {gpu.name}, {gpu.vram_gib:g} GiB." if gpu else f"No GPU was found here. {VRAM.why}"
    with gr.Group(elem_classes="answers"):
        kind = gr.Radio(
            [(kind.value.capitalize(), kind.value) for kind in LoraKind],
            label="What are you making?",
            info="Sets the network, the length and the sample prompts.",
            elem_id="plan-kind",
        )
        base = gr.Dropdown(
            list(BASES),
            allow_custom_value=True,
            label="Base model",
            info="Choose one, or type a Hub repository, a folder or a .safetensors file.",
            elem_id="plan-base",
        )
        facts, download, stop = _base_panel()
        trigger_word = gr.Textbox(
            label="Trigger word",
            info="Unique and easy to type, for example saria_zelda.",
            max_lines=1,
            elem_id="plan-trigger",
        )
        trigger_help = pickable(elem_id="plan-trigger-help")
        images = gr.Number(None, label=IMAGES.label, info=IMAGES.why, precision=0, elem_id="plan-images")
        vram_gib = gr.Number(None, label=VRAM.label, info=found, elem_id="plan-vram")
        hours = gr.Number(None, label=HOURS.label, info=HOURS.why, elem_id="plan-hours")
    with gr.Accordion("Base models on this machine", open=False):
        models = html(elem_id="plan-models")
    panel = BasePanel(facts, download, stop, models)
    return Answers(kind, base, trigger_word, images, vram_gib, hours), panel, trigger_help


def _base_panel() -> tuple[gr.HTML, gr.Button, gr.Button]:
    facts = html(elem_id="plan-base-facts")
    download = gr.Button("Download", size="sm", visible=False, elem_id="plan-download")
    stop = gr.Button("Stop the download", size="sm", visible=False, elem_id="plan-download-stop")
    return facts, download, stop


def _result(guide_notes: str) -> tuple[Result, Share, WhatIfFold, FirstTestPanel, MakeAllLayout]:
    notice = html(elem_id="plan-notice")
    with gr.Row(elem_classes="actions"):
        train = gr.Button("Train with this recipe", variant="primary", scale=2, elem_id="plan-train")
        to_dataset = gr.Button("Open the dataset", scale=1)
    make_all = build_make_all()
    tiles = html(elem_id="plan-tiles")
    with gr.Row(elem_classes="actions"):
        measure = gr.Button(
            "Measure time and memory on this machine", size="sm", scale=0, min_width=300, elem_id="plan-measure"
        )
        stop = gr.Button(
            "Stop measuring", size="sm", scale=0, min_width=260, visible=False, elem_id="plan-measure-stop"
        )
        start = gr.Button("Test first", size="sm", scale=0, min_width=220, elem_id="plan-test-first")
        stop_test = gr.Button(
            "Stop the test", size="sm", scale=0, min_width=130, visible=False, elem_id="plan-test-first-stop"
        )
        copy, draw = build_share()
    share = Share(copy, draw, *build_picture())
    measurement = html(elem_id="plan-measurement")
    before = html(elem_id="plan-before")
    changes = pickable(elem_id="plan-changes")
    cautions = html(elem_id="plan-cautions")
    recipe = pickable(elem_id="plan-recipe")
    fold = build_what_if()
    with gr.Accordion("Ways to save memory", open=False):
        memory = html(elem_id="plan-memory")
    advice = html(guide_notes, js="guide_links.js", elem_id="plan-guide")
    result = Result(
        notice, train, to_dataset, tiles, measure, stop, measurement, changes, cautions, recipe, memory, advice
    )
    return result, share, fold, FirstTestPanel(start, stop_test, before), make_all
