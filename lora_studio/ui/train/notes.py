"""The user's stars and notes on a run: a panel that saves while the user types."""

from __future__ import annotations

from typing import NamedTuple

import gradio as gr
from gradio.events import Dependency

from lora_studio.errors import StudioError
from lora_studio.ui.context import Studio
from lora_studio.ui.state.run_history import run_named
from lora_studio.ui.widgets.events import NO_PROGRESS, Updates
from lora_studio.ui.widgets.html import error_card
from lora_studio.workspace.job_folder import JobFolder
from lora_studio.workspace.run_notes import MAX_STARS, change_notes, read_notes

STAR_CHOICES = [("Not rated", 0), *(("★" * stars, stars) for stars in range(1, MAX_STARS + 1))]


class NotesPanel(NamedTuple):
    """Stars and notes of one run.

    `key` names the run and is never shown. It is a part of the page like the fields: what is typed is saved with the
    run that it was typed for, whatever the server shows by then.
    """

    column: gr.Column
    key: gr.Textbox
    stars: gr.Radio
    notes: gr.Textbox


def build_notes(prefix: str) -> NotesPanel:
    """Create the panel; `prefix` begins the ids of its fields."""
    with gr.Column(visible=False, elem_classes="notes") as column:
        key = gr.Textbox(visible="hidden", label="Run", elem_id=f"{prefix}-notes-key")
        stars = gr.Radio(STAR_CHOICES, label="Stars", value=0, elem_id=f"{prefix}-stars", elem_classes="segments small")
        notes = gr.Textbox(
            label="Notes",
            info="What worked and what did not. Saved in the run's folder as you type.",
            lines=3,
            max_lines=12,
            elem_id=f"{prefix}-notes",
        )
    return NotesPanel(column, key, stars, notes)


def wire_notes(panel: NotesPanel, studio: Studio, notice: gr.HTML) -> list[Dependency]:
    """Save stars and notes while the user types; errors are shown in `notice`.

    Returns the events after which both are complete: a field was left, or the stars were chosen.
    """

    def save(key: str, stars: int | None, notes: str | None) -> Updates:
        try:
            project, _, run = (key or "").rpartition("/")
            change_notes(run_named(studio.find_project(project), run).path, stars=stars or 0, notes=notes or "")
        except StudioError as error:
            return {notice: error_card(error)}
        return {notice: ""}

    fields = [panel.key, panel.stars, panel.notes]
    panel.notes.input(save, fields, [notice], trigger_mode="always_last", **NO_PROGRESS)
    complete = (panel.notes.blur, panel.stars.input)
    return [event(save, fields, [notice], trigger_mode="multiple", **NO_PROGRESS) for event in complete]


def show_notes(panel: NotesPanel, project: str, run: JobFolder | None, shown: str | None = "") -> Updates:
    """Return the updates that show the notes on a run, or hide the panel; raises InputError if they are damaged.

    `shown` is the key that the page has: fields of the same run stay as they are, since the user may be typing.
    """
    if run is None:
        return {panel.column: gr.Column(visible=False), panel.key: ""}
    saved, key = read_notes(run.path), f"{project}/{run.name}"
    if key == shown:
        return {panel.column: gr.Column(visible=True)}
    return {
        panel.column: gr.Column(visible=True),
        panel.key: key,
        panel.stars: saved.stars,
        panel.notes: saved.notes,
    }
