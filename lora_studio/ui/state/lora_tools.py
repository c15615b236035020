"""Runs of the LoRA tools in a project: their arguments, their output file, and their process."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from lora_studio.errors import InputError, disk_errors
from lora_studio.lora.tools.reports import Naming
from lora_studio.worker import MAIN_FILE
from lora_studio.workspace.job_environment import HUB_SECRETS, worker_environment
from lora_studio.workspace.job_folder import slugify
from lora_studio.workspace.processes import start_detached
from lora_studio.workspace.project import Home, Project
from lora_studio.workspace.tool_run import LORA_TOOL_FILE, Tool, ToolRun, ToolState, read_tool_run

ENDINGS = {
    Tool.RESIZE: "resized",
    Tool.MERGE: "merged",
    Tool.CONVERT: "converted",
    Tool.EXTRACT: "extracted",
    Tool.METADATA: "edited",
    Tool.STRIP: "stripped",
}


@dataclass(frozen=True)
class ToolForm:
    """What the page asks for: `source` is the file, `others` are merged with it, each with one of the `weights`.

    `finetuned` and `base` are checkpoints to extract from, `changes` the fields of the metadata, `name` that of the new
    file without its ending (empty: made from the source's).
    """

    tool: Tool
    source: Path | None = None
    others: list[Path] = field(default_factory=list)
    weights: str = ""
    rank: int | None = None
    keep: float | None = None
    naming: str = Naming.KOHYA
    finetuned: str = ""
    base: str = ""
    changes: Mapping[str, str] = field(default_factory=dict)
    name: str = ""

    def arguments(self, project: Project) -> dict[str, Any]:
        """Return the arguments of the tool's function; raise InputError for what is missing or not a number."""
        if self.tool is Tool.EXTRACT:
            if not self.finetuned or not self.base:
                raise InputError(
                    "Two checkpoints are needed: the finetuned one and its base.", "Enter both.", code="no_file"
                )
            name = Path(self.finetuned).stem
            given = {"finetuned": self.finetuned, "base": self.base, "out": str(self._output(project, name))}
            return {**given, "rank": self.rank, "keep": self.keep}
        if self.source is None:
            raise InputError("No LoRA is selected.", "Select one under LoRA file.", code="no_lora")
        source, name = str(self.source), self.source.stem
        if self.tool is Tool.INSPECT:
            return {"path": source}
        out = {"out": str(self._output(project, name))}
        match self.tool:
            case Tool.RESIZE:
                return {"source": source, "rank": self.rank, "keep": self.keep, **out}
            case Tool.MERGE:
                sources = [source, *map(str, self.others)]
                ranks = {"rank": self.rank, "keep": self.keep}
                return {"sources": sources, "weights": self._weights(len(sources)), **ranks, **out}
            case Tool.CONVERT:
                return {"source": source, "to": self.naming, **out}
            case Tool.METADATA:
                return {"source": source, "changes": dict(self.changes), **out}
            case _:
                return {"source": source, **out}

    def _weights(self, count: int) -> list[float] | None:
        """Return the weights, of which the text has one per file, separated by commas; None if it is empty."""
        parts = [part.strip() for part in self.weights.split(",") if part.strip()]
        try:
            return [float(part) for part in parts] if parts else None
        except ValueError:
            raise InputError(
                f"The weights are {self.weights!r}.", f"Enter {count} numbers, like 1, 0.5.", code="merge_weights"
            ) from None

    def _output(self, project: Project, source: str) -> Path:
        """Return the new file among the project's LoRAs; a name made from the source's gets a number if it exists."""
        folder = project.loras_dir
        if self.name.strip():
            return folder / f"{slugify(self.name) or 'lora'}.safetensors"
        start = f"{slugify(source) or 'lora'}-{ENDINGS[self.tool]}"
        number, path = 1, folder / f"{start}.safetensors"
        while path.exists():
            number += 1
            path = folder / f"{start}-{number}.safetensors"
        return path


def current_tool_run(project: Project) -> ToolRun | None:
    """Return the latest run of a tool in a project; None before the first."""
    return read_tool_run(project.path / LORA_TOOL_FILE)


def start_tool(project: Project, form: ToolForm, home: Home) -> ToolRun:
    """Start the tool in a process of its own, which outlives the page; raise InputError if one is running."""
    with disk_errors(project.path):
        project.loras_dir.mkdir(exist_ok=True)
    command = ["lora", "run", "--home", str(home.path)]
    return start_recorded(project.path / LORA_TOOL_FILE, form.tool, form.arguments(project), command)


def start_recorded(file: Path, tool: Tool, arguments: dict[str, Any], command: Sequence[str]) -> ToolRun:
    """Start a command, which gets `file` as its last argument, in a process that writes its progress into the file.

    Raises InputError if the run before it in the same file has not ended.
    """
    current = read_tool_run(file)
    if current is not None and current.state is ToolState.RUNNING:
        raise InputError("A tool is running in this project.", "Wait until it has ended.", code="busy")
    own = psutil.Process()
    run = ToolRun(tool=tool, arguments=arguments, pid=own.pid, pid_started=own.create_time())
    with disk_errors(file):
        run.save(file)
        with file.with_suffix(".log").open("wb") as log:
            environment = worker_environment(HUB_SECRETS if tool is Tool.UPLOAD else ())
            full = [sys.executable, str(MAIN_FILE), *command, str(file.resolve())]
            process = start_detached(full, log, file.parent, environment)
    threading.Thread(target=_reap, args=(process, file, run.id), daemon=True, name=f"reap {process.pid}").start()
    return run


def _reap(process: subprocess.Popen[bytes], file: Path, run_id: str) -> None:
    """Wait for a tool's process; mark its run as failed if it ended before it wrote anything.

    A process exits a moment after it has written its result; by then the file may be the next run's.
    """
    process.wait()
    run = read_tool_run(file)
    if run is not None and run.id == run_id and run.state is ToolState.RUNNING and run.pid == os.getpid():
        run.state, run.code = ToolState.FAILED, "tool_died"
        run.message, run.remedy = "The tool's process could not start.", f"Its last output is in {file.stem}.log."
        run.save(file)
