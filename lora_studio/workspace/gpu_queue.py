"""One GPU job at a time: a queue on disk, shared by every process of this user.

A job that wants the GPU puts a ticket into `$LORA_STUDIO_HOME/queue/`. It gets its turn when its ticket is the oldest
whose process lives and the file lock is free. The lock is the operating system's: it falls when its holder dies.
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
    """Wait for the GPU and hold it. `on_wait(ahead, label)` hears how many jobs are ahead, and the first one's label.

    Raises StopRequested when `should_stop` says so while waiting.
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
    """The tickets of living processes with their labels, oldest first; tickets of dead ones are removed."""
    tickets = []
    for path in sorted(queue.glob("*.json")):
        try:
            content = json.loads(path.read_bytes())
        except (OSError, ValueError):
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
    told: tuple[int, str] | None = None
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
        if told != (len(ahead), ahead[0]):
            told = (len(ahead), ahead[0])
            on_wait(*told)
        time.sleep(POLL_SECONDS)
