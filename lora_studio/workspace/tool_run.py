"""A run of a tool in a process of its own, as one JSON file: the request, then progress and the result.

Only the process that runs the tool writes the file after its start, atomically, so that the page can read it at any
time and find a run again after a reload.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import Any
from uuid import uuid4

import psutil
from pydantic import BaseModel, Field, ValidationError

from lora_studio.errors import InputError, JobError, StudioError
from lora_studio.files import write_text
from lora_studio.workspace.job_folder import is_process_alive

LORA_TOOL_FILE = "lora_tool.json"  # in a project: the latest run of a tool on LoRA files
UPLOAD_FILE = "upload.json"  # in a project: the latest upload of a release
PROGRESS_SECONDS = 0.5

Progress = Callable[[int, int], None]  # (done, total)


class Tool(StrEnum):
    """The tools on LoRA files, and the upload of a release."""

    INSPECT = "inspect"
    RESIZE = "resize"
    MERGE = "merge"
    CONVERT = "convert"
    EXTRACT = "extract"
    METADATA = "metadata"
    STRIP = "strip"
    UPLOAD = "upload"


class ToolState(StrEnum):
    """The state of a tool's run."""

    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"


class ToolRun(BaseModel):
    """A run of a tool: `arguments` of its function, (`done`, `total`) layers, and its report or its error.

    `id` distinguishes a run from the next one in the same file.
    """

    id: str = Field(default_factory=lambda: uuid4().hex)
    tool: Tool
    arguments: dict[str, Any]
    state: ToolState = ToolState.RUNNING
    done: int = 0
    total: int = 0
    message: str = ""
    remedy: str = ""
    code: str = ""
    result: dict[str, Any] = {}
    pid: int | None = None
    pid_started: float | None = None

    def save(self, file: Path) -> None:
        """Write the run atomically."""
        write_text(file, self.model_dump_json(indent=1) + "\n")


def record_run(file: Path, call: Callable[[ToolRun, Progress], BaseModel | dict[str, Any]]) -> bool:
    """Run the tool that a file made by `ToolRun.save` describes, in this process; return whether it succeeded.

    `call` gets the run and a function that reports progress. Progress, the result and an error are written into the
    file; a StudioError is not raised.
    """
    run = read_tool_run(file)
    if run is None:
        raise InputError(
            f"{file} does not describe a tool.",
            "Start the tool again: the studio writes this file itself.",
            code="tool_file",
        )
    process = psutil.Process()
    run.state, run.pid, run.pid_started = ToolState.RUNNING, os.getpid(), process.create_time()
    run.message = run.remedy = run.code = ""
    run.save(file)
    written = time.monotonic()

    def report(done: int, total: int) -> None:
        nonlocal written
        if time.monotonic() - written >= PROGRESS_SECONDS:
            written, run.done, run.total = time.monotonic(), done, total
            run.save(file)

    try:
        result = call(run, report)
        run.result = result.model_dump(mode="json") if isinstance(result, BaseModel) else result
        run.state = ToolState.DONE
    except StudioError as error:
        run.state, run.message, run.remedy, run.code = ToolState.FAILED, error.message, error.remedy, error.code
    except (MemoryError, OSError, RuntimeError, ValueError) as error:
        failure = JobError(f"The tool failed: {error}.", "Check the file with Inspect first.", code="tool_failed")
        run.state, run.message, run.remedy, run.code = ToolState.FAILED, failure.message, failure.remedy, failure.code
    run.save(file)
    return run.state is ToolState.DONE


def read_tool_run(file: Path) -> ToolRun | None:
    """Return the run that a file describes; None if there is none.

    A run whose process has ended without a result is failed.
    """
    try:
        run = ToolRun.model_validate_json(file.read_text("utf-8"))
    except (OSError, ValidationError):
        return None
    if run.state is ToolState.RUNNING and not is_process_alive(run.pid, run.pid_started):
        message = "The tool's process ended unexpectedly."
        remedy = "Run it again; if it ran out of memory, close other programs first."
        return run.model_copy(
            update={"state": ToolState.FAILED, "message": message, "remedy": remedy, "code": "tool_died"}
        )
    return run
