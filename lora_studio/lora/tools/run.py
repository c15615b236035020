"""Run the LoRA tool that a file describes, and write progress and result into the file."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import psutil
from pydantic import BaseModel

from lora_studio.errors import InputError, JobError, StudioError
from lora_studio.lora.tools.convert import convert_lora
from lora_studio.lora.tools.extract import extract_lora
from lora_studio.lora.tools.files import Progress
from lora_studio.lora.tools.inspect import inspect_file
from lora_studio.lora.tools.merge import merge_loras
from lora_studio.lora.tools.metadata import edit_metadata, strip_metadata
from lora_studio.lora.tools.resize import resize_lora
from lora_studio.workspace.project import Home
from lora_studio.workspace.tool_run import Tool, ToolState, read_tool_run

PROGRESS_SECONDS = 0.5


def run_tool(file: Path, home: Home) -> bool:
    """Run the tool of a file made by `ToolRun.save`; return whether it succeeded. Its error is written, not raised."""
    run = read_tool_run(file)
    if run is None:
        raise InputError(f"{file} does not describe a tool.", "The studio writes this file itself.", code="tool_file")
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
        result = _call(run.tool, run.arguments, home, report)
        run.result = result.model_dump(mode="json") if isinstance(result, BaseModel) else {"metadata": result}
        run.state = ToolState.DONE
    except StudioError as error:
        run.state, run.message, run.remedy, run.code = ToolState.FAILED, error.message, error.remedy, error.code
    except (MemoryError, OSError, RuntimeError, ValueError) as error:
        failure = JobError(f"The tool failed: {error}.", "Check the file with Inspect first.", code="tool_failed")
        run.state, run.message, run.remedy, run.code = ToolState.FAILED, failure.message, failure.remedy, failure.code
    run.save(file)
    return run.state is ToolState.DONE


def _call(tool: Tool, arguments: dict[str, Any], home: Home, on_progress: Progress) -> BaseModel | dict[str, str]:
    match tool:
        case Tool.INSPECT:
            return inspect_file(**arguments, on_progress=on_progress)
        case Tool.RESIZE:
            return resize_lora(**arguments, on_progress=on_progress)
        case Tool.MERGE:
            return merge_loras(**arguments, on_progress=on_progress)
        case Tool.CONVERT:
            return convert_lora(**arguments, on_progress=on_progress)
        case Tool.EXTRACT:
            return extract_lora(**arguments, home=home, on_progress=on_progress)
        case Tool.METADATA:
            return edit_metadata(**arguments)
        case Tool.STRIP:
            return strip_metadata(**arguments)
