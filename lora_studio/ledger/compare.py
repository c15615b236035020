"""Two or more runs side by side: what differs in their settings and data, and how their losses went."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from lora_studio.errors import InputError
from lora_studio.ledger.experiments import are_comparable
from lora_studio.ledger.records import INPUTS, RunRecord
from lora_studio.ledger.table import cell_text, row
from lora_studio.settings.declare import setting_label
from lora_studio.settings.recipe import Recipe
from lora_studio.settings.values import format_value

FIGURES = ("steps", "split", "validation_loss", "validation_change", "best_step", "verdict", "stars", "seconds")


@dataclass(frozen=True)
class ComparedValue:
    """A setting, hash or figure with its value in each run, as text."""

    name: str
    label: str
    values: tuple[str, ...]


@dataclass(frozen=True)
class Comparison:
    """Runs side by side. `settings` has only what differs; `is_fair` is false if the losses cannot be compared."""

    runs: tuple[RunRecord, ...]
    settings: tuple[ComparedValue, ...]
    figures: tuple[ComparedValue, ...]
    is_fair: bool

    def summary(self) -> dict[str, Any]:
        """Return the comparison as plain values for JSON."""
        return {
            "runs": [row(record) for record in self.runs],
            "settings": {item.name: list(item.values) for item in self.settings},
            "validation": [
                [{"step": step, "loss": loss} for step, loss in record.figures.validation.items()]
                for record in self.runs
            ],
            "comparable": self.is_fair,
        }

    def lines(self) -> list[list[str]]:
        """Return the comparison as rows of text: a header with the runs, the settings that differ, the figures."""
        header = ["", *(record.name for record in self.runs)]
        return [header, *([item.name, *item.values] for item in (*self.settings, *self.figures))]


def compare(records: Sequence[RunRecord]) -> Comparison:
    """Compare two or more runs; raises InputError for fewer."""
    if len(records) < 2:
        raise InputError("A comparison needs two runs.", "Select at least two.", code="compare")
    rows = [row(record) for record in records]
    figures = tuple(ComparedValue(name, name, tuple(cell_text(name, each[name]) for each in rows)) for name in FIGURES)
    fair = all(are_comparable(record, records[0]) for record in records[1:])
    return Comparison(tuple(records), tuple(_different(records, rows)), figures, fair)


def find_run(records: Sequence[RunRecord], name: str) -> RunRecord:
    """Return a run by name, number, PROJECT/NAME or path; raises InputError if there is none, or several."""
    found = [
        record
        for record in records
        if name in (record.name, f"{record.project}/{record.name}", str(record.folder.path))
    ] or [record for record in records if name.isdigit() and record.name.split("-")[0] == name.zfill(3)]
    if len(found) == 1:
        return found[0]
    if found:
        several = ", ".join(f"{record.project}/{record.name}" for record in found)
        raise InputError(f"{name!r} is the name of several runs: {several}.", "Give one of these.", code="no_run")
    known = ", ".join(record.name for record in records) or "none"
    raise InputError(f"There is no run {name!r}.", f"Give one of the runs here: {known}.", code="no_run")


def _different(records: Sequence[RunRecord], rows: Sequence[dict[str, Any]]) -> list[ComparedValue]:
    """Return inputs, hashes and settings that are not the same in all runs."""
    found = []
    for name, label in INPUTS.items():
        found.append(_compared(name, label, [getattr(record.job, name) or "none" for record in records]))
    for name, label in (("base_hash", "Base weights"), ("dataset_hash", "Images"), ("caption_hash", "Captions")):
        found.append(_compared(name, label, [each[name] or "unknown" for each in rows]))
    found.append(_compared("subsets", "Subsets", [record.job.subsets or "none" for record in records]))
    for name in Recipe.model_fields:
        values = [getattr(record.job.recipe, name) for record in records]
        found.append(_compared(name, setting_label(Recipe, name), values))
    return [item for item in found if len(set(item.values)) > 1]


def _compared(name: str, label: str, values: Sequence[Any]) -> ComparedValue:
    return ComparedValue(name, label, tuple(format_value(value) for value in values))
