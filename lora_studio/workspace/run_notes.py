"""The user's notes on a training run and its stars, in notes.json of the run's folder."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field, ValidationError

from lora_studio.errors import InputError
from lora_studio.file_lock import change_file
from lora_studio.files import write_text
from lora_studio.settings.declare import Settings

NOTES_FILE = "notes.json"
MAX_STARS = 5


class RunNotes(Settings):
    """What the user thinks of a run. 0 stars: not rated."""

    stars: int = Field(default=0, ge=0, le=MAX_STARS)
    notes: str = Field(default="", max_length=20_000)


def read_notes(run: Path) -> RunNotes:
    """Return the notes on the run in a folder, empty ones if there are none; raises InputError if they are damaged."""
    file = run / NOTES_FILE
    try:
        return RunNotes.model_validate_json(file.read_bytes())
    except FileNotFoundError:
        return RunNotes()
    except (OSError, ValidationError) as error:
        raise InputError(
            f"{file} cannot be read: {error}", "Correct it, or remove it to start again.", code="notes"
        ) from error


def change_notes(run: Path, *, stars: int | None = None, notes: str | None = None) -> RunNotes:
    """Set the stars or the notes of a run, write them, and return both.

    Raises ConfigError for values out of bounds, InputError if the folder is not a run or the file is damaged.
    """
    if not (run / "job.toml").is_file():
        raise InputError(f"{run} does not contain a job.toml.", "Give the folder of a run.", code="no_job")
    with change_file(run / NOTES_FILE):
        before = read_notes(run)
        given = {"stars": stars, "notes": notes}
        after = RunNotes.parse(
            before.model_dump() | {name: value for name, value in given.items() if value is not None}
        )
        if after != before:
            write_text(run / NOTES_FILE, after.model_dump_json(indent=1) + "\n")
    return after
