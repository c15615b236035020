"""The ledger as a pandas table, as CSV and as Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any

from lora_studio.ledger.records import RunRecord

if TYPE_CHECKING:
    import pandas as pd

COLUMNS = (
    "project",
    "run",
    "state",
    "parent",
    "differences",
    "base",
    "base_hash",
    "dataset_hash",
    "caption_hash",
    "images",
    "steps",
    "validation_loss",
    "validation_change",
    "split",
    "best_step",
    "verdict",
    "worst_verdict",
    "stopped_by",
    "stars",
    "notes",
    "started",
    "seconds",
    "path",
)
TEXT_COLUMNS = ("project", "run", "state", "differences", "base", "stars", "validation_change", "verdict", "notes")


def row(record: RunRecord) -> dict[str, Any]:
    """Return a run as a row of the ledger: plain values, None where a figure is unknown."""
    figures, data = record.figures, record.data
    started = datetime.fromtimestamp(figures.started).astimezone() if figures.started else None
    return {
        "project": record.project,
        "run": record.name,
        "state": record.status.state.value,
        "parent": record.parent.name if record.parent else None,
        "differences": "; ".join(record.differences),
        "base": record.job.base,
        "base_hash": record.base_hash,
        "dataset_hash": data.dataset_hash if data else None,
        "caption_hash": data.caption_hash if data else None,
        "images": len(data.images) if data else None,
        "steps": figures.steps,
        "validation_loss": record.validation_loss,
        "validation_change": record.validation_change,
        "split": figures.split,
        "best_step": record.best_step,
        "verdict": figures.verdict.code if figures.verdict else None,
        "worst_verdict": figures.worst_verdict.code if figures.worst_verdict else None,
        "stopped_by": record.stopped_by,
        "stars": record.notes.stars,
        "notes": record.notes.notes,
        "started": started.isoformat(timespec="seconds") if started else None,
        "seconds": figures.seconds,
        "path": str(record.folder.path),
    }


def to_frame(records: Sequence[RunRecord]) -> pd.DataFrame:
    """Return the ledger as a table with one row per run and the columns `COLUMNS`."""
    import pandas as pd

    frame = pd.DataFrame([row(record) for record in records], columns=list(COLUMNS))
    return frame.astype({"images": "Int64", "best_step": "Int64"})


def to_csv(records: Sequence[RunRecord]) -> str:
    """Return the ledger as CSV, with all columns."""
    return str(to_frame(records).to_csv(index=False, lineterminator="\n"))


def to_markdown(records: Sequence[RunRecord]) -> str:
    """Return the ledger as a Markdown table, with the columns that people read."""
    lines = [_markdown_row(TEXT_COLUMNS), _markdown_row(["---"] * len(TEXT_COLUMNS))]
    lines += [_markdown_row(text_cells(record)) for record in records]
    return "\n".join(lines) + "\n"


def text_cells(record: RunRecord) -> list[str]:
    """Return a run's values of `TEXT_COLUMNS` as texts."""
    values = row(record)
    return [cell_text(name, values[name]) for name in TEXT_COLUMNS]


def cell_text(name: str, value: Any) -> str:
    """Return a value of a column as text: a change in percent, four digits of a loss, an empty text for None."""
    if value is None:
        return ""
    if name == "validation_change":
        return f"{value:+.1%}"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _markdown_row(cells: Sequence[str]) -> str:
    escaped = (cell.replace("\\", "\\\\").replace("|", "\\|").replace("\n", "<br>") for cell in cells)
    return f"| {' | '.join(escaped)} |"
