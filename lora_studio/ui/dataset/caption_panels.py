"""The components of Review, Captions and Statistics."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import NamedTuple

import gradio as gr
from gradio.components import Component

from lora_studio.settings.choices import TagPosition
from lora_studio.ui.dataset.chips import add_field
from lora_studio.ui.shortcuts import Place, key_line
from lora_studio.ui.widgets.html import heading, html, pickable
from lora_studio.ui.widgets.segments import segments

SAVING = "The caption is saved when you leave the text box."
POSITIONS = (
    ("First", TagPosition.FRONT),
    ("After the trigger word", TagPosition.AFTER_TRIGGER),
    ("Last", TagPosition.BACK),
)


class BulkAction(StrEnum):
    """Bulk edits of captions."""

    ADD = "Add"
    REMOVE = "Remove"
    REPLACE = "Replace"
    REGEX = "Regular expression"


class Scope(StrEnum):
    """Captions that a bulk edit applies to."""

    ALL = "All images"
    FILTERED = "Filtered images"


class FieldTexts(NamedTuple):
    """Labels and descriptions of a bulk edit's two text fields; an empty label hides the second one."""

    first: str
    first_info: str
    second: str = ""
    second_info: str = ""


FIELDS: Mapping[BulkAction, FieldTexts] = {
    BulkAction.ADD: FieldTexts("Tags", "Separated by commas. A caption that already has a tag keeps it in its place."),
    BulkAction.REMOVE: FieldTexts("Tags", "Whole tags, separated by commas: hair does not affect long hair."),
    BulkAction.REPLACE: FieldTexts(
        "Tag", "One whole tag.", "With", "One or several tags; a tag that the caption has already is not repeated."
    ),
    BulkAction.REGEX: FieldTexts(
        "Find", r"Matches anywhere in the caption, as in \b(\w+) dress.", "Replace with", r"\1 is the first group."
    ),
}


class ReviewPanel(NamedTuple):
    """Review: one image with its caption as chips and as text, and the mark that it was reviewed."""

    column: gr.Column
    progress: gr.HTML
    picture: gr.HTML
    line: gr.HTML
    previous: gr.Button
    mark: gr.Button
    next: gr.Button
    chips: gr.HTML
    add: gr.HTML
    suggestions: gr.HTML
    hint: gr.HTML
    add_trigger: gr.Button
    caption: gr.Textbox
    saved: gr.HTML
    save: gr.Button
    undo: gr.Button
    toggle: gr.Button
    aside: gr.Button
    facts: gr.HTML
    keys: gr.HTML
    current: gr.Textbox
    original: gr.Textbox


class CaptionsPanel(NamedTuple):
    """Captions: caption checks with their fixes, and bulk edits, previewed before they are applied."""

    column: gr.Column
    undo: gr.Button
    redo: gr.Button
    findings: gr.HTML
    action: gr.Radio
    first: gr.Textbox
    second: gr.Textbox
    position: gr.Radio
    scope: gr.Radio
    preview: gr.Button
    apply: gr.Button
    changes: gr.HTML
    history: gr.HTML
    previewed: gr.State

    @property
    def fields(self) -> list[Component]:
        """The form of a bulk edit, in the order of `BulkForm`."""
        return [self.action, self.first, self.second, self.position, self.scope, self.previewed]


class StatisticsPanel(NamedTuple):
    """Statistics of the captions; `page` is that of the tag table, from 0."""

    column: gr.Column
    figures: gr.HTML
    table: gr.HTML
    co_occurrence: gr.HTML
    split: gr.HTML
    page: gr.State


def build_review() -> ReviewPanel:
    """Create the components of Review."""
    with gr.Column(visible=False) as column:
        progress = html(elem_id="review-progress")
        picture = pickable(elem_id="review-picture")
        line = html(elem_id="review-line", classes="picture-line")
        with gr.Row(elem_classes="actions review-actions"):
            previous = gr.Button("Previous", elem_id="review-previous", min_width=80)
            mark = gr.Button("Reviewed", variant="primary", elem_id="review-mark", min_width=100)
            following = gr.Button("Next", elem_id="review-next", min_width=80)
        chips = html(js="caption_chips.js", elem_id="review-chips")
        add = html(add_field(), js="add_tag.js", elem_id="review-add")
        suggestions = html(js="tag_suggestions.js", elem_id="review-suggestions")
        hint = html(elem_id="review-hint")
        add_trigger = gr.Button("Put the trigger word first", elem_id="review-trigger", visible=False, size="sm")
        caption = _caption_box()
        saved = html(elem_id="review-saved")
        with gr.Row(elem_classes="actions review-actions"):
            save = gr.Button("Save", elem_id="review-save", min_width=70, size="sm")
            undo = gr.Button("Undo", elem_id="review-undo", min_width=70, size="sm", interactive=False)
            toggle = gr.Button("Mark", elem_id="review-toggle", min_width=70, size="sm")
            aside = gr.Button("Set aside", elem_id="review-aside", min_width=80, size="sm")
        facts = html(elem_id="review-facts")
        keys = html(key_line(Place.REVIEW, SAVING), js="review_keys.js", classes="review-keys")
        current = gr.Textbox(visible=False, elem_id="review-current")
        original = gr.Textbox(visible=False, elem_id="review-original")
    return ReviewPanel(
        *(column, progress, picture, line, previous, mark, following, chips, add, suggestions, hint, add_trigger),
        *(caption, saved, save, undo, toggle, aside, facts, keys, current, original),
    )


def _caption_box() -> gr.Textbox:
    return gr.Textbox(
        label="Caption",
        info="Tag what you want to control in prompts; leave out what the trigger word should learn.",
        lines=2,
        max_lines=10,
        elem_id="review-caption",
    )


def build_captions() -> CaptionsPanel:
    """Create the components of Captions."""
    with gr.Column(visible=False) as column:
        with gr.Row(elem_classes="actions"):
            undo = gr.Button("Undo", elem_id="captions-undo", min_width=100, size="sm", interactive=False)
            redo = gr.Button("Redo", elem_id="captions-redo", min_width=100, size="sm", interactive=False)
        findings = pickable(elem_id="captions-findings")
        html(heading("Bulk edit", "Preview the changes first; the last 50 edits can be undone."))
        with gr.Group(elem_classes="answers"):
            action, texts = _action(), FIELDS[BulkAction.ADD]
            first = gr.Textbox(label=texts.first, info=texts.first_info, max_lines=1, elem_id="bulk-first")
            second = gr.Textbox(label="With", max_lines=1, visible=False, elem_id="bulk-second")
            position, scope = _position(), _scope()
        with gr.Row(elem_classes="actions"):
            preview = gr.Button("Preview", elem_id="bulk-preview", min_width=100)
            apply = gr.Button("Apply", variant="primary", elem_id="bulk-apply", min_width=120, interactive=False)
        changes = html(elem_id="bulk-changes")
        history = html(elem_id="captions-history")
    form = (action, first, second, position, scope)
    return CaptionsPanel(column, undo, redo, findings, *form, preview, apply, changes, history, gr.State(""))


def _action() -> gr.Radio:
    return segments(
        [action.value for action in BulkAction],
        value=BulkAction.ADD.value,
        label="Bulk edit",
        elem_id="bulk-action",
        classes="small bulk-action",
    )


def _position() -> gr.Radio:
    return gr.Radio(
        [(text, position.value) for text, position in POSITIONS],
        value=TagPosition.AFTER_TRIGGER.value,
        label="Position",
        info="The first tags keep their place when tags are shuffled in training.",
        elem_id="bulk-position",
    )


def _scope() -> gr.Radio:
    return gr.Radio(
        [scope.value for scope in Scope],
        value=Scope.ALL.value,
        label="Apply to",
        info="Filtered images: all images that match the filter of the grid, on all its pages.",
        elem_id="bulk-scope",
    )


def build_statistics() -> StatisticsPanel:
    """Create the components of Statistics."""
    with gr.Column(visible=False) as column:
        figures = html(elem_id="statistics-figures")
        tags = pickable(elem_id="statistics-tags")
        co_occurrence = pickable(elem_id="statistics-co-occurrence")
        split = html(elem_id="statistics-split")
    return StatisticsPanel(column, figures, tags, co_occurrence, split, gr.State(0))
