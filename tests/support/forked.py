"""Worker processes that are forked from one that has imported torch, for tests that kill workers."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from lora_studio import files, worker
from lora_studio.workspace.job_folder import JobFolder
from lora_studio.workspace.project import Home
from tests.support.events import records_of

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["lora_studio.training.train", "tests.support.forked"])


def start_worker(
    folder: JobFolder,
    home: Home,
    *,
    resume: bool = False,
    prepare: Callable[[], None] | None = None,
    **environment: str,
) -> BaseProcess:
    """Start the body of a worker in a forked process, after calling `prepare` there; it exits as a worker does."""
    process = CONTEXT.Process(target=_work, args=(folder.path, home, resume, prepare, environment), daemon=True)
    process.start()
    return process


def _work(
    path: Path, home: Home, resume: bool, prepare: Callable[[], None] | None, environment: dict[str, str]
) -> None:
    os.environ.update(environment)
    with (path / "worker.log").open("ab", buffering=0) as log:
        for stream in (sys.stdout, sys.stderr):
            os.dup2(log.fileno(), stream.fileno())
    if prepare is not None:
        prepare()
    sys.exit(worker.run_detached(path, home, resume=resume))


def wait_for(condition: Callable[[], bool], seconds: float = 180) -> None:
    """Wait until the condition is true; raise AssertionError after `seconds`."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "timeout"
        time.sleep(0.005)


def events_of(folder: JobFolder, kind: str) -> list[dict[str, Any]]:
    """Return the records of the events of one kind that are complete, also while the job writes them."""
    return [event.record() for event in folder.events()[0] if event.name == kind]


def die_in_write(number: int) -> None:
    """Kill this process when half of the content of the `number`th file is written."""
    from lora_studio.training import resume_state as checkpoints

    count = 0

    def write(path: Path, content: bytes) -> None:
        nonlocal count
        count += 1
        if count == number:
            path.write_bytes(content[: len(content) // 2])
            os.kill(os.getpid(), signal.SIGKILL)
        path.write_bytes(content)

    files.write_content = checkpoints._write = write


def without_times(folder: JobFolder) -> list[str]:
    """Return the events of the training itself as JSON, without fields that depend on clock, memory or folder."""
    changing = {"time", "seconds", "seconds_left", "memory_gib", "worst"}  # the last has paths of images
    attempts = {"waiting", "phase", "warning", "start", "resume", "stopped", "failed"}
    return [
        json.dumps({name: value for name, value in event.items() if name not in changing}, sort_keys=True)
        for event in records_of(folder)
        if event["event"] not in attempts
    ]
