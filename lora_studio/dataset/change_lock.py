"""One process at a time adds images to a dataset, moves images, sets them aside or brings them back."""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path

from lora_studio.errors import InputError
from lora_studio.file_lock import hold_lock

LOCK = ".import.lock"  # in the dataset's folder of records
LOCK_SECONDS = 10.0  # that moving images waits for another program's import or curation


def change_lock(records: Path, *, seconds: float = -1) -> AbstractContextManager[None]:
    """Return a context that holds the lock of the dataset whose records are in a folder.

    Waits for as long as another process holds it, or raises InputError after `seconds`.
    """
    busy = InputError(
        f"Another program imports or curates the images of {records}.",
        "Wait until it has finished, then try again.",
        code="busy",
    )
    return hold_lock(records / LOCK, busy, seconds=seconds)
