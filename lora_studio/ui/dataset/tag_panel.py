"""The components of the Tag section."""

from __future__ import annotations

from typing import NamedTuple

import gradio as gr
from gradio.blocks import Block
from gradio.components import Component

from lora_studio.dataset.tagging.catalogue import CATALOGUE
from lora_studio.settings.choices import ExistingCaptions
from lora_studio.settings.job_specs import TagJob
from lora_studio.ui.widgets.events import Updates
from lora_studio.ui.widgets.html import html

DEFAULT_TAGGER = "wd14"
THRESHOLD_HINT = "Higher: fewer, more confident tags. Captioning models have no threshold."
EXCLUDE_EXAMPLE = "white background, simple background"


class TagPanel(NamedTuple):
    """The section: state of the job, its buttons, and the form."""

    column: gr.Column
    state: gr.HTML
    start: gr.Button
    stop: gr.Button
    resume: gr.Button
    undo: gr.Button
    tagger: gr.Dropdown
    also: gr.Dropdown
    trigger: gr.Textbox
    threshold: gr.Slider
    character_threshold: gr.Slider
    existing: gr.Radio
    exclude: gr.Textbox
    only: gr.Textbox
    prompt: gr.Textbox
    max_caption_tokens: gr.Slider
    compare: gr.Button

    @property
    def fields(self) -> list[Component]:
        """The form, in the order of `TagForm`."""
        thresholds = [self.threshold, self.character_threshold]
        words = [self.existing, self.exclude, self.only, self.prompt, self.max_caption_tokens]
        return [self.tagger, self.also, self.trigger, *thresholds, *words]

    @property
    def tagger_outputs(self) -> list[Block]:
        """Components that change with the tagger."""
        return [self.tagger, self.threshold, self.character_threshold, self.prompt]

    def tagger_changed(self, tagger: str | None) -> Updates:
        """Describe another tagger, and enable the thresholds if it has them."""
        known = CATALOGUE.get(tagger or "")
        has_thresholds = known is None or known.output_kind == "tags"
        return {
            self.tagger: gr.update(info=tagger_info(tagger or "")),
            self.threshold: gr.Slider(interactive=has_thresholds),
            self.character_threshold: gr.Slider(interactive=has_thresholds),
            self.prompt: gr.Textbox(visible=takes_prompt(tagger or "")),
        }


def build_tag_panel() -> TagPanel:
    """Create the components."""
    with gr.Column(visible=False) as column:
        state = html(elem_id="tag-state")
        with gr.Row(elem_classes="actions"):
            start = gr.Button("Tag the images", variant="primary", elem_id="tag-start", min_width=140)
            stop = gr.Button("Stop and save", elem_id="tag-stop", visible=False, min_width=140)
            resume = gr.Button("Resume", elem_id="tag-resume", visible=False, min_width=90)
            undo = gr.Button("Undo the last tagging", elem_id="tag-undo", visible=False, min_width=160)
        with gr.Group(elem_classes="answers"):
            tagger, trigger = _tagger(), _trigger()
            prompt = _prompt()
            threshold = _threshold("threshold", "Threshold", 0.95, THRESHOLD_HINT)
            existing, exclude = _existing(), _tags("exclude_tags", "Exclude tags", "tag-exclude", EXCLUDE_EXAMPLE)
        with gr.Accordion("More", open=False, elem_id="tag-more"):
            also = _also()
            characters = _threshold("character_threshold", "Character threshold", 1.0, "At 1 none are written.")
            only = _tags("only_tags", "Allow only these tags", "tag-only")
            tokens = _max_caption_tokens()
        compare = gr.Button("Compare on this image", elem_id="tag-compare", size="sm")
    job = (column, state, start, stop, resume, undo)
    rules = (tagger, also, trigger, threshold, characters, existing)
    return TagPanel(*job, *rules, exclude, only, prompt, tokens, compare)


def tagger_info(tagger: str) -> str:
    """Return what a tagger is good for."""
    known = CATALOGUE.get(tagger)
    if known is None:
        return "A Hub repository or a folder: a WD v3 tagger, BLIP, or an image-text model such as Qwen-VL."
    if not isinstance(known.location, str):
        return known.why
    return f"{known.why} Downloaded on first use; a folder or another Hub repository can be typed instead."


def takes_prompt(tagger: str) -> bool:
    """Return whether a tagger may follow a prompt: an image-text model, or one that is not in the catalogue."""
    known = CATALOGUE.get(tagger)
    return known is None or known.takes_prompt


def _prompt() -> gr.Textbox:
    return gr.Textbox(
        label="Prompt",
        info=TagJob.model_fields["prompt"].description,
        lines=2,
        max_lines=6,
        visible=takes_prompt(DEFAULT_TAGGER),
        elem_id="tag-prompt",
    )


def _max_caption_tokens() -> gr.Slider:
    declared = TagJob.model_fields["max_caption_tokens"]
    return gr.Slider(
        10,
        1000,
        value=declared.get_default(),
        step=10,
        label="Max caption tokens",
        info=declared.description,
        elem_id="tag-max-caption-tokens",
    )


def _tagger() -> gr.Dropdown:
    return gr.Dropdown(
        [(f"{name} ({known.output_kind})", name) for name, known in CATALOGUE.items()],
        value=DEFAULT_TAGGER,
        allow_custom_value=True,
        label="Tagger",
        info=tagger_info(DEFAULT_TAGGER),
        elem_id="tag-tagger",
    )


def _trigger() -> gr.Textbox:
    return gr.Textbox(
        label="Trigger word",
        info="Put first in every caption, once. Saved with the project.",
        max_lines=1,
        elem_id="tag-trigger",
    )


def _threshold(name: str, label: str, maximum: float, more: str) -> gr.Slider:
    declared = TagJob.model_fields[name]
    return gr.Slider(
        0.05,
        maximum,
        value=declared.get_default(),
        step=0.01,
        label=label,
        info=f"{declared.description} {more}",
        elem_id=f"tag-{name.replace('_', '-')}",
    )


def _existing() -> gr.Radio:
    choices = (ExistingCaptions.IGNORE, ExistingCaptions.APPEND, ExistingCaptions.OVERWRITE)
    return gr.Radio(
        [(text, choice.value) for text, choice in zip(("Keep", "Append", "Overwrite"), choices, strict=True)],
        value=ExistingCaptions.IGNORE.value,
        label="Existing captions",
        info="Each of these can be undone afterwards.",
        elem_id="tag-existing",
    )


def _also() -> gr.Dropdown:
    return gr.Dropdown(
        list(CATALOGUE),
        value=[],
        multiselect=True,
        allow_custom_value=True,
        label="Combine with",
        info=TagJob.model_fields["also"].description,
        elem_id="tag-also",
    )


def _tags(name: str, label: str, elem_id: str, example: str = "") -> gr.Textbox:
    return gr.Textbox(
        label=label, info=TagJob.model_fields[name].description, placeholder=example, max_lines=2, elem_id=elem_id
    )
