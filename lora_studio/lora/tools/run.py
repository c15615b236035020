"""Run the LoRA tool that a file describes, and write progress and result into the file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import BaseModel

from lora_studio.errors import InputError
from lora_studio.lora.tools.convert import convert_lora
from lora_studio.lora.tools.extract import extract_lora
from lora_studio.lora.tools.inspect import inspect_file
from lora_studio.lora.tools.merge import merge_loras
from lora_studio.lora.tools.metadata import edit_metadata, strip_metadata
from lora_studio.lora.tools.resize import resize_lora
from lora_studio.workspace.project import Home
from lora_studio.workspace.tool_run import Progress, Tool, ToolRun, record_run


def run_tool(file: Path, home: Home) -> bool:
    """Run the tool of a file made by `ToolRun.save`; return whether it succeeded. Its error is written, not raised."""
    return record_run(file, lambda run, on_progress: _call(run, home, on_progress))


def _call(run: ToolRun, home: Home, on_progress: Progress) -> BaseModel | dict[str, Any]:
    arguments = run.arguments
    match run.tool:
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
            return {"metadata": edit_metadata(**arguments)}
        case Tool.STRIP:
            return {"metadata": strip_metadata(**arguments)}
        case _:
            raise InputError(f"{run.tool} is not a tool on LoRA files.", f"Use one of {', '.join(Tool)}.", code="tool")
