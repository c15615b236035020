"""The result of an import: what was added, what was skipped, and what was refused with the reason."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ConfigDict

from lora_studio.plurals import format_count


class Refused(BaseModel):
    """A file that was not imported, with the reason and a remedy; `code` is that of the error."""

    model_config = ConfigDict(frozen=True)

    name: str
    message: str
    remedy: str
    code: str = ""


class Skipped(BaseModel):
    """An image that was not imported again, and where it already is."""

    model_config = ConfigDict(frozen=True)

    name: str
    reason: str


class ImportReport(BaseModel):
    """The result of an import: `added` are the new images, `captions` and `masks` count the imported ones."""

    added: list[Path] = []
    captions: int = 0
    masks: int = 0
    skipped: list[Skipped] = []
    refused: list[Refused] = []
    notes: list[str] = []

    def lines(self) -> list[str]:
        """Return the report as text: the problems, then a summary line."""
        lines = [f"{item.message} {item.remedy}".strip() for item in self.refused]
        counts = [f"{format_count(len(self.added), 'image')} added"]
        if self.captions:
            counts.append(f"{self.captions} with captions")
        if self.masks:
            counts.append(f"{self.masks} with masks")
        if self.skipped:
            counts.append(f"{len(self.skipped)} already in the dataset")
        if self.refused:
            counts.append(f"{len(self.refused)} refused")
        return [*lines, *self.notes, ", ".join(counts) + "."]
