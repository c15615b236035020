"""What a training run told so far, read from its events a piece at a time."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lora_studio.errors import InputError
from lora_studio.planning.losses import smooth
from lora_studio.planning.verdicts import Verdict, judge_losses
from lora_studio.settings.job_specs import TrainJob
from lora_studio.settings.recipe import Recipe
from lora_studio.ui.widgets.formatting import format_value
from lora_studio.workspace.job_folder import JobFolder, JobState, JobStatus
from lora_studio.workspace.project import Project


@dataclass
class RunHistory:
    """Events of one run in order. `steps` holds the step events by step; None where the loss was no number.

    They come from the log whose inode is `file`, up to byte `offset`.
    """

    file: int = 0
    offset: int = 0
    start: dict[str, Any] = field(default_factory=dict)
    steps: dict[int, dict[str, Any]] = field(default_factory=dict)
    losses: dict[int, float | None] = field(default_factory=dict)
    held_out: dict[int, float] = field(default_factory=dict)
    captions: list[str] = field(default_factory=list)
    samples: dict[tuple[int, int], dict[str, Any]] = field(default_factory=dict)
    checkpoints: list[str] = field(default_factory=list)
    timesteps: dict[int, dict[str, Any]] = field(default_factory=dict)
    notes: dict[str, dict[str, Any]] = field(default_factory=dict)

    def add(self, event: dict[str, Any]) -> None:
        """Take in one event."""
        match event.get("event"):
            case "start":
                self.start = event
            case "resume":
                self._rewind(int(event.get("step", 0)))
            case "step" | "nan" as kind:
                step = int(event["step"])
                self.losses[step] = event.get("loss") if kind == "step" else None
                if kind == "step":
                    self.steps[step] = event
            case "validation":
                if event.get("loss") is not None:
                    self.held_out[int(event["step"])] = float(event["loss"])
            case "captions":
                self.captions = [str(text) for text in event.get("examples", [])]
            case "sample":
                self.samples[int(event["step"]), int(event.get("index", 0))] = event
            case "checkpoint":
                if event["path"] not in self.checkpoints:
                    self.checkpoints.append(event["path"])
            case "timesteps":
                self.timesteps[int(event["epoch"])] = event
            case "warning":
                self.notes[str(event.get("code", ""))] = event
            case "hint" if event.get("about") == "recipe":
                # any other hint is an earlier verdict: the page shows the one that holds now
                self.notes[str(event.get("code", ""))] = event

    def _rewind(self, step: int) -> None:
        """A resume goes on from `step`: what came after it is done again."""
        self.steps = {number: event for number, event in self.steps.items() if number <= step}
        self.losses = {number: loss for number, loss in self.losses.items() if number <= step}
        self.held_out = {number: loss for number, loss in self.held_out.items() if number <= step}

    @property
    def last(self) -> dict[str, Any]:
        """The latest step event; empty before the first."""
        return self.steps[max(self.steps)] if self.steps else {}

    def curve(self) -> tuple[list[int], list[float | None], list[float | None]]:
        """Step numbers, losses, and smoothed losses."""
        numbers = sorted(self.losses)
        raw = [self.losses[number] for number in numbers]
        return numbers, raw, smooth(raw)


class RunHistories:
    """RunHistories by folder, kept between looks, so that each look reads only what is new."""

    def __init__(self) -> None:
        self._known: dict[Path, RunHistory] = {}
        self._verdicts: dict[Path, tuple[int, bool, Verdict]] = {}
        self._lock = threading.Lock()

    def read(self, folder: JobFolder) -> RunHistory:
        """The history of a run up to now."""
        with self._lock:
            history = self._known.get(folder.path)
            try:
                found = folder.events_file.stat()
                file, size = found.st_ino, found.st_size
            except OSError:
                file, size = 0, 0
            if history is None or history.file != file or size < history.offset:  # a resume writes the log anew
                history = self._known[folder.path] = RunHistory(file)
            events, history.offset = folder.events(history.offset)
            for event in events:
                history.add(event)
            return history

    def verdict(self, folder: JobFolder, job: TrainJob, *, running: bool) -> Verdict:
        """What the loss says up to now; judged again only when there is something new."""
        history = self.read(folder)
        known = self._verdicts.get(folder.path)
        if known is None or known[:2] != (history.offset, running):
            held_out = dict(sorted(history.held_out.items()))
            judged = judge_losses(history.curve()[1], recipe=job.recipe, running=running, validation=held_out)
            known = self._verdicts[folder.path] = (history.offset, running, judged)
        return known[2]


@dataclass(frozen=True)
class RunView:
    """Everything about one training run that the page shows."""

    folder: JobFolder
    job: TrainJob
    status: JobStatus
    history: RunHistory
    verdict: Verdict

    @classmethod
    def of(cls, folder: JobFolder, histories: RunHistories) -> RunView:
        """Look at a run; raises InputError if its job file cannot be read."""
        job = folder.job()
        if not isinstance(job, TrainJob):
            raise InputError(f"{folder.name} is no training run.", "Choose another one.", code="no_run")
        status = folder.status()
        verdict = histories.verdict(folder, job, running=status.state is JobState.RUNNING)
        return cls(folder, job, status, histories.read(folder), verdict)

    @property
    def alive(self) -> bool:
        """Whether it is at work or waits."""
        return self.status.state.is_active

    @property
    def lora(self) -> Path | None:
        """The finished LoRA, else the latest checkpoint that is there."""
        names = [f"{self.job.name}.safetensors", *reversed(self.history.checkpoints)]
        root = self.folder.path.resolve()
        for name in names:
            path = (root / name).resolve()
            if path.is_relative_to(root) and path.is_file():
                return path
        return None

    @property
    def smoothed_loss(self) -> float | None:
        """The smoothed loss at the end."""
        smoothed = self.history.curve()[2]
        return smoothed[-1] if smoothed else None


def run_named(project: Project, name: str) -> JobFolder:
    """A run of the project by its folder's name; raises InputError if there is none."""
    for folder in project.runs():
        if folder.name == name:
            return folder
    raise InputError(f"There is no run {name!r} in {project.name}.", "Choose one from the list.", code="no_run")


def recipe_changes(own: Recipe, other: Recipe | None = None) -> list[tuple[str, str, str]]:
    """Settings that differ from another recipe (default: the guide's): name, value there, value here."""
    mine, theirs = own.model_dump(), (other or Recipe()).model_dump()
    changed = [name for name in mine if mine[name] != theirs[name]]
    return [(name, format_value(theirs[name]), format_value(mine[name])) for name in changed]
