"""What the page of a run has besides its results: notes, and files that are not on this machine.

It follows the run that the page shows, apart from the ticks that update its results: a tick must not overwrite what the
user is typing.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import gradio as gr
from markupsafe import Markup

from lora_studio.errors import InputError, StudioError
from lora_studio.ledger.records import read_records
from lora_studio.settings.job_specs import TrainJob
from lora_studio.ui.context import NEW_RUN, Studio
from lora_studio.ui.roles import Role, allowed
from lora_studio.ui.server import Mode
from lora_studio.ui.state.run_history import run_named
from lora_studio.ui.train.lineage import differences_card, input_label
from lora_studio.ui.train.notes import NotesPanel, build_notes, show_notes, wire_notes
from lora_studio.ui.widgets.events import NO_PROGRESS, Updates
from lora_studio.ui.widgets.html import Tone, card, error_card, html
from lora_studio.workspace.job_folder import JobFolder
from lora_studio.workspace.job_paths import missing_paths, move_path


class MovedPanel(NamedTuple):
    """Asks where the first file or folder is that a run needs and that does not exist here."""

    column: gr.Column
    what: gr.HTML
    path: gr.Textbox
    save: gr.Button


class RunPanelLayout(NamedTuple):
    """The components; `notice` shows errors."""

    notice: gr.HTML
    moved: MovedPanel
    made_from: gr.HTML
    notes: NotesPanel


def build_run_panel(*, local: bool) -> RunPanelLayout:
    """Create the components, hidden. `local`: paths of this computer can be given."""
    notice = html(elem_id="train-run-notice")
    with gr.Column(visible=False) as column:
        what = html(elem_id="train-moved")
        with gr.Row(visible=local):
            path = gr.Textbox(label="Where it is now", max_lines=1, scale=3, elem_id="train-moved-path")
            save = gr.Button("Use this path", scale=1, min_width=120, elem_id="train-moved-save")
    made_from = html(elem_id="train-made-from")
    return RunPanelLayout(notice, MovedPanel(column, what, path, save), made_from, build_notes("train"))


class RunPanel:
    """Event handlers of the panel."""

    def __init__(self, studio: Studio, layout: RunPanelLayout) -> None:
        self.studio = studio
        self.layout = layout

    def wire(self) -> None:
        """Register the events."""
        studio, moved = self.studio, self.layout.moved
        outputs = [self.layout.notice, self.layout.made_from, *self.layout.notes, *moved]
        shown = [studio.project, studio.run, self.layout.notes.key]
        gr.on([studio.run.change, studio.project.change], self.show_run, shown, outputs, **NO_PROGRESS)
        wire_notes(self.layout.notes, studio, self.layout.notice)
        if studio.mode is Mode.LOCAL:
            gr.on([moved.save.click, moved.path.submit], self.save_path, [*shown, moved.path], outputs, **NO_PROGRESS)

    @allowed(Role.GUEST)
    def show_run(self, project: str, run: str | None, notes_key: str | None) -> Updates:
        """Show the notes on a run and what it was made from, and ask for the first path that is missing.

        `notes_key` names the run whose notes the page has.
        """
        try:
            folder = self._run(project, run)
            return {
                self.layout.notice: "",
                self.layout.made_from: made_from_card(folder) if folder is not None else "",
                **show_notes(self.layout.notes, project, folder, notes_key),
                **self._moved_updates(folder),
            }
        except StudioError as error:
            return {self.layout.notice: error_card(error), **show_notes(self.layout.notes, project, None)}

    def save_path(self, project: str, run: str | None, notes_key: str | None, path: str | None) -> Updates:
        """Record where a missing path is now, for all jobs of the project. Wired only while the studio is local."""
        try:
            folder = self._run(project, run)
            text = (path or "").strip().strip("\"'")
            if folder is not None and text and (missing := _missing(folder)):
                move_path(folder.path, next(iter(missing.values())), Path(text).expanduser())
            return self.show_run(project, run, notes_key)
        except StudioError as error:
            return {self.layout.notice: error_card(error)}

    def _run(self, project: str, run: str | None) -> JobFolder | None:
        if not project or run is None or run == NEW_RUN:
            return None
        try:
            return run_named(self.studio.find_project(project), run)
        except InputError:  # the project has changed, and the page shows another run in a moment
            return None

    def _moved_updates(self, folder: JobFolder | None) -> Updates:
        moved = self.layout.moved
        missing = _missing(folder) if folder is not None else {}
        if not missing:
            return {moved.column: gr.Column(visible=False), moved.path: ""}
        name, path = next(iter(missing.items()))
        text = f"{input_label(name)} of this run was {path}, which does not exist here. It is needed to resume the run."
        what = card("A file has moved" if Path(path).suffix else "A folder has moved", text, "", Tone.WARNING)
        return {moved.column: gr.Column(visible=True), moved.what: what, moved.path: ""}


def made_from_card(folder: JobFolder) -> Markup:
    """Return what differs between a run and the run it was made from; empty if it was not made from one."""
    records = read_records([folder], "")
    if not records or records[0].parent is None:
        return Markup("")
    return differences_card(records[0], f"Made from {records[0].parent.name}")


def _missing(folder: JobFolder) -> dict[str, str]:
    job = folder.job()
    return missing_paths(job) if isinstance(job, TrainJob) else {}
