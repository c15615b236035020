"""Kills at random moments: of a process that changes files, and of the app and the worker of a job.

A test kills as often as it says, or as often as the variable LORA_STUDIO_KILLS does.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path
from random import Random
from typing import BinaryIO

from lora_studio import worker
from lora_studio.settings.job_specs import AnyJob
from lora_studio.ui.state.jobs import Jobs
from lora_studio.workspace.job_folder import JobFolder, is_process_alive
from lora_studio.workspace.project import Home
from tests.support.failing_calls import Calls, failing_calls
from tests.support.forked import CONTEXT, wait_for

VICTIMS = ("app", "worker", "both")
PID_FILE = "worker.pid"


def kill_count(default: int) -> int:
    """Return how often a test kills."""
    return int(os.environ.get("LORA_STUDIO_KILLS", default))


class DeadlyCalls(Calls):
    """Calls of which one kills the process: when the file is open and empty, or instead of a rename or a flush."""

    def fail(self, function: Callable[..., object], *args: object, **options: object) -> None:
        if function.__name__ in ("open", "mkstemp"):
            function(*args, **options)
        os.kill(os.getpid(), signal.SIGKILL)


def count_calls(operation: Callable[[], object]) -> int:
    """Run an operation; return how many of its calls change the disk."""
    with failing_calls() as calls:
        operation()
    return calls.count


def die_in_call(number: int, operation: Callable[[], object]) -> bool:
    """Run an operation in a process that dies in the call of this number that changes the disk; return if it did."""
    child = os.fork()
    if child == 0:
        try:
            with failing_calls(number, kind=DeadlyCalls):
                operation()
        finally:
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL


class ForkedWorker:
    """Replaces the process that `worker.start` starts: forked, since importing torch takes seconds."""

    prepare: Callable[[], None] = staticmethod(lambda: None)

    def __init__(self, command: Sequence[str], log: BinaryIO, folder: Path, environment: Mapping[str, str]) -> None:
        self.pid = os.fork()
        if self.pid:
            (folder / PID_FILE).write_text(str(self.pid))
            return
        status = 1
        try:
            os.setsid()
            for stream in (sys.stdout, sys.stderr):
                os.dup2(log.fileno(), stream.fileno())
            self.prepare()
            home = Home(Path(command[command.index("--home") + 1]))
            status = worker.run_detached(folder, home, resume="--resume" in command)
        finally:
            os._exit(status)

    def wait(self) -> int:
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])


def _run_app(home: Home, path: Path, job: AnyJob | None, prepare: Callable[[], None]) -> None:
    ForkedWorker.prepare = staticmethod(prepare)
    worker.start_detached = ForkedWorker  # type: ignore[assignment]
    if job is None:
        Jobs(home).resume(JobFolder(path))
    else:
        Jobs(home).start(path, job)
    while True:
        signal.pause()


def start_app(home: Home, path: Path, job: AnyJob | None, prepare: Callable[[], None]) -> BaseProcess:
    """Start a process that starts a job, or resumes one without `job`, as the app does, and then waits as it does.

    `prepare` is called in the worker before it runs the job.
    """
    (path / PID_FILE).unlink(missing_ok=True)
    process = CONTEXT.Process(target=_run_app, args=(home, path, job, prepare), daemon=True)
    process.start()
    wait_for(lambda: _worker_pid(path) is not None or not process.is_alive())
    return process


def _worker_pid(path: Path) -> int | None:
    try:
        return int((path / PID_FILE).read_text())
    except (FileNotFoundError, ValueError):
        return None


def kill_at(path: Path, app: BaseProcess, victim: str, *, lines: int, delay: float) -> bool:
    """Kill the app, the worker or both, `delay` seconds after the job has written `lines` events.

    Returns False if the worker had already ended.
    """
    folder, pid = JobFolder(path), _worker_pid(path)
    assert pid is not None

    def events() -> int:
        return folder.events_file.read_bytes().count(b"\n") if folder.events_file.exists() else 0

    wait_for(lambda: events() >= lines or not is_process_alive(pid, None))
    time.sleep(delay)
    was_alive = is_process_alive(pid, None)
    if victim in ("app", "both"):
        app.kill()
        app.join()
    if victim in ("worker", "both") and was_alive:
        os.kill(pid, signal.SIGKILL)
    if victim == "app":  # it has taken over, and continues
        wait_for(lambda: folder.status().pid == pid or not is_process_alive(pid, None))
    else:
        wait_for(lambda: not folder.status().state.is_active)
    return was_alive


def moments(seed: str, default: int) -> list[tuple[int, str, float, float]]:
    """Return number, victim, part of the job that is done and part of an event to wait, for each kill of a test."""
    source = Random(seed)
    return [
        (number, VICTIMS[number % len(VICTIMS)], source.random(), source.random())
        for number in range(kill_count(default))
    ]
