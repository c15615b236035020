"""Run one GPU job at a time: a queue on disk, shared by all processes that use the same home.

A job that needs the GPU writes a ticket to `$LORA_STUDIO_HOME/queue/`. It starts when its ticket is the oldest of a
living process and the file lock is free. The operating system releases the lock when the process that holds it dies.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
from filelock import FileLock, Timeout

from lora_studio.errors import StopRequested, disk_errors
from lora_studio.files import write_json
from lora_studio.workspace.job_folder import is_process_alive

POLL_SECONDS = 0.5


@contextmanager
def hold_gpu(
    queue: Path,
    label: str,
    *,
    should_stop: Callable[[], bool] = lambda: False,
    on_wait: Callable[[int, str], None] = lambda ahead, label: None,
) -> Iterator[None]:
    """Wait for the GPU and hold it inside the block.

    `on_wait(ahead, label)` is called with the number of jobs ahead and the label of the first one, whenever these
    change. Raises StopRequested if `should_stop` returns True while waiting.
    """
    with disk_errors(queue):
        queue.mkdir(parents=True, exist_ok=True)
    ticket = queue / f"{time.time_ns()}-{os.getpid()}.json"
    process = psutil.Process()
    write_json(ticket, {"label": label, "pid": process.pid, "pid_started": process.create_time()})
    lock = FileLock(queue / "gpu.lock")
    try:
        _wait(lock, queue, ticket, should_stop, on_wait)
        try:
            yield
        finally:
            lock.release()
    finally:
        ticket.unlink(missing_ok=True)


def live_tickets(queue: Path) -> list[tuple[Path, str]]:
    """Return the tickets of living processes with their labels, oldest first; delete tickets of dead processes."""
    tickets = []
    for path in sorted(queue.glob("*.json")):
        try:
            content = json.loads(path.read_bytes())
        except (OSError, ValueError):
            continue
        if not isinstance(content, dict):
            continue
        if is_process_alive(content.get("pid"), content.get("pid_started")):
            tickets.append((path, str(content.get("label", ""))))
        else:
            path.unlink(missing_ok=True)
    return tickets


def _wait(
    lock: FileLock,
    queue: Path,
    ticket: Path,
    should_stop: Callable[[], bool],
    on_wait: Callable[[int, str], None],
) -> None:
    reported: tuple[int, str] | None = None
    while True:
        ahead = [label for path, label in live_tickets(queue) if path.name < ticket.name]
        if not ahead:
            try:
                lock.acquire(timeout=0)
                return
            except Timeout:
                ahead = ["another program"]
        if should_stop():
            raise StopRequested
        if reported != (len(ahead), ahead[0]):
            reported = (len(ahead), ahead[0])
            on_wait(*reported)
        time.sleep(POLL_SECONDS)
