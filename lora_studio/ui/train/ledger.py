"""All runs as a table that can be sorted and filtered, with the notes on the selected one."""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from typing import TYPE_CHECKING, Any, NamedTuple

import gradio as gr
from gradio.processing_utils import save_bytes_to_cache
from markupsafe import Markup

from lora_studio.errors import InputError, StudioError
from lora_studio.ledger.experiments import suggest_next
from lora_studio.ledger.records import RunRecord, home_records, project_records
from lora_studio.ledger.table import row, to_csv, to_markdown
from lora_studio.ui.context import Studio
from lora_studio.ui.roles import Role, allowed, is_owner
from lora_studio.ui.state.run_history import run_named
from lora_studio.ui.train.lineage import differences_card
from lora_studio.ui.train.notes import NotesPanel, build_notes, show_notes, wire_notes
from lora_studio.ui.widgets.events import NO_PROGRESS, Updates
from lora_studio.ui.widgets.html import empty_card, error_card, html, pickable, render
from lora_studio.ui.widgets.segments import segments

if TYPE_CHECKING:
    import pandas as pd

OPEN, COMPARE, EDIT = "open", "compare", "edit"


class Scope(StrEnum):
    """Whose runs the table has."""

    PROJECT = "This project"
    HOME = "All projects"


# Columns of the page with their width in px, by the ledger's name.
COLUMNS: dict[str, tuple[str, int]] = {
    "run": ("Run", 150),
    "stars": ("Stars", 90),
    "validation_change": ("Loss vs base, %", 110),
    "verdict": ("Verdict", 190),
    "differences": ("Differences to its parent", 330),
    "notes": ("Notes", 260),
    "parent": ("Parent", 130),
    "steps": ("Steps", 90),
    "minutes": ("Minutes", 100),
    "started": ("Started", 150),
    "validation_loss": ("Fixed-noise loss", 130),
    "split": ("Measured on", 120),
    "base": ("Base", 140),
    "base_hash": ("Base hash", 130),
    "dataset_hash": ("Images hash", 130),
    "caption_hash": ("Captions hash", 130),
    "project": ("Project", 140),
}
SPLITS = {"validation": "validation split", "training": "training images"}
NUMBERS = ("validation_change", "steps", "minutes", "validation_loss")  # columns that are sorted as numbers


class LedgerLayout(NamedTuple):
    """The components. `selected` is the row with the notes, as PROJECT/RUN."""

    column: gr.Column
    scope: gr.Radio
    csv: gr.DownloadButton
    markdown: gr.DownloadButton
    notice: gr.HTML
    suggestion: gr.HTML
    table: gr.Dataframe
    detail: gr.HTML
    notes: NotesPanel


def build_ledger() -> LedgerLayout:
    """Create the components, hidden."""
    with gr.Column(visible=False, elem_id="train-ledger") as column:
        with gr.Row(elem_classes="title-row"):
            with gr.Column(scale=3, min_width=300):
                scope = segments(
                    [scope.value for scope in Scope],
                    value=Scope.PROJECT.value,
                    label="Runs of",
                    elem_id="ledger-scope",
                    classes="small",
                )
            with gr.Column(scale=1, min_width=320), gr.Row(elem_classes="actions"):
                csv = gr.DownloadButton("Download CSV", elem_id="ledger-csv", size="sm")
                markdown = gr.DownloadButton("Download Markdown", elem_id="ledger-markdown", size="sm")
        notice = html(elem_id="ledger-notice")
        suggestion = pickable(elem_id="ledger-next")
        table = gr.Dataframe(
            headers=[header for header, _ in COLUMNS.values()],
            datatype=["number" if name in NUMBERS else "str" for name in COLUMNS],
            column_widths=[width for _, width in COLUMNS.values()],
            type="array",
            interactive=False,
            wrap=True,
            show_search="filter",
            buttons=["fullscreen", "copy"],
            pinned_columns=1,
            max_height=520,
            label="Runs",
            show_label=False,
            elem_id="ledger-table",
        )
        detail = pickable(elem_id="ledger-detail")
        notes = build_notes("ledger")
    return LedgerLayout(column, scope, csv, markdown, notice, suggestion, table, detail, notes)


class Ledger:
    """Reads and shows the ledger."""

    def __init__(self, studio: Studio, layout: LedgerLayout) -> None:
        self.studio = studio
        self.layout = layout

    @property
    def outputs(self) -> list[gr.blocks.Block]:
        """The components that `show` and `select` update, without the column."""
        layout = self.layout
        shown = [layout.scope, layout.csv, layout.markdown, layout.notice, layout.suggestion, layout.table]
        return [*shown, layout.detail, *layout.notes]

    def wire(self) -> None:
        """Register the events of the table, except those that leave it."""
        layout, progress = self.layout, self.studio.with_progress
        inputs = [self.studio.project, layout.scope]
        layout.scope.input(self.show, inputs, self.outputs, **progress)
        layout.table.select(self.select, inputs, self.outputs, **progress)
        for saved in wire_notes(layout.notes, self.studio, layout.notice):
            saved.then(self.refresh, inputs, [layout.table, layout.csv, layout.markdown], **NO_PROGRESS)

    @allowed(Role.GUEST)
    def show(self, project: str, scope: str) -> Updates:
        """Show the runs of the project, or of all projects."""
        try:
            records = self._records(project, scope)
        except StudioError as error:
            return {self.layout.notice: error_card(error)}
        layout = self.layout
        updates: Updates = {layout.notice: "", layout.table: page_rows(records), layout.suggestion: ""}
        if scope == Scope.PROJECT:
            updates[layout.suggestion] = suggestion_card(records)
        for button, text, suffix in ((layout.csv, to_csv, "csv"), (layout.markdown, to_markdown, "md")):
            name = f"{project if scope == Scope.PROJECT else 'all'}-runs.{suffix}"
            copy = save_bytes_to_cache(text(records).encode(), name, button.GRADIO_CACHE)
            updates[button] = gr.DownloadButton(value=copy, interactive=bool(records))
        return updates

    @allowed(Role.GUEST)
    def refresh(self, project: str, scope: str) -> Updates:
        """Show the table again after a note was saved; the error of saving stays."""
        kept = (self.layout.notice, self.layout.suggestion)
        updates = {item: update for item, update in self.show(project, scope).items() if item not in kept}
        return updates or gr.skip()

    @allowed(Role.GUEST)
    def select(self, project: str, scope: str, event: gr.SelectData) -> Updates:
        """Show the differences and the notes of the run in the selected row."""
        try:
            cells = dict(zip(COLUMNS, event.row_value, strict=True))
            owner = str(cells["project"])
            records = self._records(owner or project, Scope.PROJECT if owner else scope)
            record = next((record for record in records if record.name == cells["run"]), None)
            if record is None:
                raise InputError("This run does not exist any more.", "Reload the page.", code="no_run")
            folder = run_named(self.studio.find_project(owner), record.name) if owner else None
            return {
                self.layout.notice: "",
                self.layout.detail: detail(record, project),
                **show_notes(self.layout.notes, owner, folder),
            }
        except StudioError as error:
            return {self.layout.notice: error_card(error)}

    def hide_detail(self) -> Updates:
        """Show no run below the table."""
        return {self.layout.detail: "", **show_notes(self.layout.notes, "", None)}

    def _records(self, project: str, scope: str) -> list[RunRecord]:
        if scope == Scope.HOME:
            return [record for record in home_records(self.studio.home) if self.studio.may_see(record.project)]
        return project_records(self.studio.find_project(project))


def page_rows(records: Sequence[RunRecord]) -> pd.DataFrame:
    """Return the ledger as the page shows it, latest run first."""
    import pandas as pd

    rows = [_page_row(record) for record in reversed(records)]
    frame = pd.DataFrame(rows, columns=list(COLUMNS))
    return frame.rename(columns={name: header for name, (header, _) in COLUMNS.items()})


def _page_row(record: RunRecord) -> dict[str, Any]:
    values = row(record)
    change, verdict, worst = record.validation_change, record.figures.verdict, record.figures.worst_verdict
    stopped = "; stopped by itself" if record.stopped_by else ""
    texts = {
        "stars": "★" * record.notes.stars,
        "validation_loss": None if record.validation_loss is None else round(record.validation_loss, 5),
        "validation_change": None if change is None else round(100 * change, 1),
        "split": SPLITS.get(record.figures.split or "", ""),
        "verdict": (verdict.title if verdict else "") + (f"; before that: {worst.title}" if worst else "") + stopped,
        "minutes": round(record.figures.seconds / 60, 1),
        "started": (values["started"] or "")[:16].replace("T", " "),
    }
    return {name: ("" if (value := texts.get(name, values.get(name))) is None else value) for name in COLUMNS}


def suggestion_card(records: Sequence[RunRecord]) -> Markup:
    """Return what to try next, in the guide's order, with a button that picks it; a placeholder without runs."""
    if not records:
        return empty_card("Your runs will appear here", "Each with what it changed, its loss and your notes.")
    suggestion = suggest_next(records)
    if suggestion is None:
        return Markup("")
    return render(
        "train/suggestion.html",
        title=suggestion.rule.rule.lower(),
        why=suggestion.rule.why,
        run=suggestion.run,
        pick=f"{EDIT}:{records[0].project}/{suggestion.run}",
    )


def detail(record: RunRecord, project: str) -> Markup:
    """Return a run's differences to its parent, and buttons that open or compare it: they pick PROJECT/RUN.

    A run of another project than the selected one has none.
    """
    key, buttons = f"{record.project}/{record.name}", {}
    if record.project == project:
        buttons[f"{OPEN}:{key}"] = "Open this run"
        if record.parent:
            buttons[f"{COMPARE}:{key}"] = f"Compare with {record.parent.name}"
    path = str(record.folder.path) if is_owner() else ""
    return differences_card(record, record.name, buttons=buttons, path=path)


def picked(pick: object) -> tuple[str, str, str]:
    """Return action, project and run of a button of the ledger, as the browser sent them."""
    action, _, key = str(pick).partition(":")
    project, _, run = key.rpartition("/")
    return action, project, run
