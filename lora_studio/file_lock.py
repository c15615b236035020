"""Let one process and thread at a time change a file, so that two studios do not overwrite each other's changes."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from lora_studio.errors import InputError, disk_errors

SECONDS = 30  # far longer than the change of any file takes


@contextmanager
def hold_lock(lock_file: Path, busy: InputError, *, seconds: float = -1) -> Iterator[None]:
    """Hold a lock, whose file is removed at the end; the operating system releases the lock of a process that dies.

    Waits for as long as another process holds it, or raises `busy` after `seconds`. Raises InputError or DiskFullError
    if the lock file cannot be created.
    """
    lock = FileLock(lock_file, timeout=seconds)
    try:
        with disk_errors(lock_file.parent):
            lock.acquire()
    except Timeout as error:
        raise busy from error
    try:
        yield
    finally:
        if os.name == "posix":  # Windows removes it on release; a waiting filelock notices the removal
            with suppress(OSError):
                lock_file.unlink()
        lock.release()


def change_file(file: Path) -> AbstractContextManager[None]:
    """Return a context that holds the lock of a file, `.NAME.lock` beside it, while it is read, changed and written.

    Raises InputError after 30 s, or if the folder cannot be written.
    """
    busy = InputError(f"Another program is changing {file}.", "Try again in a minute.", code="busy")
    return hold_lock(file.with_name(f".{file.name}.lock"), busy, seconds=SECONDS)
