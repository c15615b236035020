"""The events of a training run so far, read incrementally, and the verdict on them."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from pathlib import Path

from lora_studio.errors import InputError
from lora_studio.events import (
    CaptionsEvent,
    CheckpointEvent,
    Event,
    HintEvent,
    ImageLossesEvent,
    NanEvent,
    ResumeEvent,
    SampleEvent,
    StartEvent,
    StepEvent,
    TimestepsEvent,
    ValidationEvent,
    WarningEvent,
)
from lora_studio.planning.losses import smooth
from lora_studio.planning.verdicts import Verdict, judge_losses
from lora_studio.settings.job_specs import TrainJob
from lora_studio.workspace.job_folder import JobFolder, JobState, JobStatus
from lora_studio.workspace.project import Project


@dataclass
class RunHistory:
    """Events of one run. `steps` has the step events by step number; `losses` is None where the loss was not finite.

    The events come from the log file with inode `inode`, up to byte `offset`.
    """

    inode: int = 0
    offset: int = 0
    start: StartEvent | None = None
    steps: dict[int, StepEvent] = field(default_factory=dict)
    losses: dict[int, float | None] = field(default_factory=dict)
    validation_losses: dict[int, float] = field(default_factory=dict)
    captions: list[str] = field(default_factory=list)
    samples: dict[tuple[int, int], SampleEvent] = field(default_factory=dict)
    checkpoints: list[str] = field(default_factory=list)
    timesteps: dict[int, TimestepsEvent] = field(default_factory=dict)
    image_losses: ImageLossesEvent | None = None
    warnings: dict[str, WarningEvent | HintEvent] = field(default_factory=dict)

    def add(self, event: Event) -> None:
        """Add one event."""
        match event:
            case StartEvent():
                self.start = event
            case ResumeEvent():
                self._rewind(event.step)
            case StepEvent():
                self.losses[event.step] = event.loss
                self.steps[event.step] = event
            case NanEvent():
                self.losses[event.step] = None
            case ValidationEvent():
                if event.loss is not None:
                    self.validation_losses[event.step] = event.loss
            case CaptionsEvent():
                self.captions = event.examples
            case SampleEvent():
                self.samples[event.step, event.index] = event
            case CheckpointEvent():
                if event.path not in self.checkpoints:
                    self.checkpoints.append(event.path)
            case TimestepsEvent():
                self.timesteps[event.epoch] = event
            case ImageLossesEvent():
                self.image_losses = event
            case WarningEvent():
                self.warnings[event.code] = event
            case HintEvent(about="recipe"):
                # Any other hint is an earlier verdict: the page shows the current one.
                self.warnings[event.code] = event

    def _rewind(self, step: int) -> None:
        """Drop the events after `step`: a resumed run repeats those steps."""
        self.steps = {number: event for number, event in self.steps.items() if number <= step}
        self.losses = {number: loss for number, loss in self.losses.items() if number <= step}
        self.validation_losses = {number: loss for number, loss in self.validation_losses.items() if number <= step}

    @property
    def last_step(self) -> StepEvent | None:
        """The latest step event; None before the first."""
        return self.steps[max(self.steps)] if self.steps else None

    @property
    def total_steps(self) -> int:
        """The optimizer steps of the whole run; 0 if unknown."""
        latest = self.last_step or self.start
        return latest.total if latest else 0

    def loss_curve(self) -> tuple[list[int], list[float | None], list[float | None]]:
        """Return step numbers, losses, and smoothed losses."""
        numbers = sorted(self.losses)
        raw = [self.losses[number] for number in numbers]
        return numbers, raw, smooth(raw)


class RunHistories:
    """Caches the history of each run, so that only new events are read."""

    def __init__(self) -> None:
        self._histories: dict[Path, RunHistory] = {}
        self._verdicts: dict[Path, tuple[int, bool, Verdict]] = {}
        self._lock = threading.Lock()

    def history(self, folder: JobFolder) -> RunHistory:
        """Return the history of a run, with all events up to now."""
        with self._lock:
            history = self._histories.get(folder.path)
            try:
                found = folder.events_file.stat()
                inode, size = found.st_ino, found.st_size
            except OSError:
                inode, size = 0, 0
            # A resumed run rewrites its log.
            if history is None or history.inode != inode or size < history.offset:
                history = self._histories[folder.path] = RunHistory(inode)
            events, history.offset = folder.events(history.offset)
            for event in events:
                history.add(event)
            return history

    def verdict(self, folder: JobFolder, job: TrainJob, *, running: bool) -> Verdict:
        """Return the verdict on the losses up to now, computed again only after new events."""
        history = self.history(folder)
        known = self._verdicts.get(folder.path)
        if known is None or known[:2] != (history.offset, running):
            validation = dict(sorted(history.validation_losses.items()))
            losses = history.loss_curve()[1]
            verdict = judge_losses(losses, recipe=job.recipe, running=running, validation=validation)
            known = self._verdicts[folder.path] = (history.offset, running, verdict)
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
    def load(cls, folder: JobFolder, histories: RunHistories) -> RunView:
        """Read a run; raises InputError if its job file cannot be read."""
        job = folder.job()
        if not isinstance(job, TrainJob):
            raise InputError(f"{folder.name} is not a training run.", "Select another one.", code="no_run")
        status = folder.status()
        verdict = histories.verdict(folder, job, running=status.state is JobState.RUNNING)
        return cls(folder, job, status, histories.history(folder), verdict)

    @property
    def is_active(self) -> bool:
        """True while the run is running or queued."""
        return self.status.state.is_active

    @property
    def lora(self) -> Path | None:
        """The final LoRA if there is one, else the latest checkpoint that exists."""
        names = [f"{self.job.name}.safetensors", *reversed(self.history.checkpoints)]
        root = self.folder.path.resolve()
        for name in names:
            path = (root / name).resolve()
            if path.is_relative_to(root) and path.is_file():
                return path
        return None

    @property
    def smoothed_loss(self) -> float | None:
        """The smoothed loss at the last step."""
        smoothed = self.history.loss_curve()[2]
        return smoothed[-1] if smoothed else None


def run_named(project: Project, name: str) -> JobFolder:
    """Return a run of the project by its folder's name; raises InputError if there is none."""
    for folder in project.runs():
        if folder.name == name:
            return folder
    raise InputError(f"There is no run {name!r} in {project.name}.", "Select one from the list.", code="no_run")
