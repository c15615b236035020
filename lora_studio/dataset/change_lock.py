"""One process at a time adds images to a dataset, sets images aside or brings them back."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from lora_studio.errors import InputError

LOCK = ".import.lock"  # in the dataset's folder of records


@contextmanager
def change_lock(records: Path, *, seconds: float = -1) -> Iterator[None]:
    """Hold the lock of the dataset whose records are in a folder; the lock file is removed at the end.

    Waits for as long as another process holds it, or raises InputError after `seconds`.
    """
    lock = FileLock(records / LOCK, timeout=seconds)
    try:
        lock.acquire()
    except Timeout as error:
        raise InputError(
            f"Another program imports or curates the images of {records}.",
            "Wait until it has finished, then try again.",
            code="busy",
        ) from error
    try:
        yield
    finally:
        if os.name == "posix":  # Windows removes it on release; a waiting filelock notices the removal
            lock_file = records / LOCK
            lock_file.unlink(missing_ok=True)
        lock.release()
