"""A run of a LoRA tool in a process of its own, as one JSON file: the request, then progress and the result.

Only the process that runs the tool writes the file after its start, atomically, so that the page can read it at any
time and find a run again after a reload.
"""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Any
from uuid import uuid4

from pydantic import BaseModel, Field, ValidationError

from lora_studio.files import write_text
from lora_studio.workspace.job_folder import is_process_alive

FILE_NAME = "lora_tool.json"


class Tool(StrEnum):
    """The tools on LoRA files."""

    INSPECT = "inspect"
    RESIZE = "resize"
    MERGE = "merge"
    CONVERT = "convert"
    EXTRACT = "extract"
    METADATA = "metadata"
    STRIP = "strip"


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
