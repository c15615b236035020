"""The events of a training run so far, read incrementally, and the verdict on them."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from pathlib import Path

from lora_studio.errors import InputError
from lora_studio.events import (
    BaseLossEvent,
    CaptionsEvent,
    CheckpointEvent,
    Event,
    HintEvent,
    ImageLossesEvent,
    NanEvent,
    ResumeEvent,
    SampleEvent,
    SampleMeasuresEvent,
    StartEvent,
    StepEvent,
    StoppedEvent,
    TimestepsEvent,
    ValidationEvent,
    WarningEvent,
)
from lora_studio.planning.loss_record import LossRecord
from lora_studio.planning.losses import smooth
from lora_studio.planning.verdicts import Verdict, judge, worst_verdict
from lora_studio.settings.job_specs import TrainJob
from lora_studio.workspace.job_folder import JobFolder, JobState, JobStatus
from lora_studio.workspace.project import Project


@dataclass
class RunHistory:
    """Events of one run. `steps` has the step events by step number; `losses` is None where the loss was not finite.

    `verdicts` are the titles of those that were reported, each with its step; `resumes` the steps that the run was
    resumed after. The events come from the log file with inode `inode`, up to byte `offset`.
    """

    inode: int = 0
    offset: int = 0
    start: StartEvent | None = None
    steps: dict[int, StepEvent] = field(default_factory=dict)
    losses: dict[int, float | None] = field(default_factory=dict)
    validation_losses: dict[int, float] = field(default_factory=dict)
    validation: ValidationEvent | None = None
    base_loss: BaseLossEvent | None = None
    captions: list[str] = field(default_factory=list)
    samples: dict[tuple[int, int], SampleEvent] = field(default_factory=dict)
    sample_measures: dict[int, SampleMeasuresEvent] = field(default_factory=dict)
    checkpoints: list[str] = field(default_factory=list)
    checkpoint_steps: dict[str, int] = field(default_factory=dict)
    stopped: StoppedEvent | None = None
    timesteps: dict[int, TimestepsEvent] = field(default_factory=dict)
    image_losses: ImageLossesEvent | None = None
    warnings: dict[str, WarningEvent | HintEvent] = field(default_factory=dict)
    verdicts: list[tuple[int, str]] = field(default_factory=list)
    resumes: list[int] = field(default_factory=list)

    def add(self, event: Event) -> None:
        """Add one event."""
        match event:
            case StartEvent():
                self.start = event
            case ResumeEvent():
                self._rewind(event.step)
                self.stopped = None
            case StoppedEvent():
                self.stopped = event
            case StepEvent():
                self.losses[event.step] = event.loss
                self.steps[event.step] = event
            case NanEvent():
                self.losses[event.step] = None
            case BaseLossEvent():
                self.base_loss = event
            case ValidationEvent():
                self.validation = event
                if event.loss is not None:
                    self.validation_losses[event.step] = event.loss
            case CaptionsEvent():
                self.captions = event.examples
            case SampleEvent():
                self.samples[event.step, event.index] = event
            case SampleMeasuresEvent():
                self.sample_measures[event.step] = event
            case CheckpointEvent():
                if event.path not in self.checkpoints:
                    self.checkpoints.append(event.path)
                self.checkpoint_steps[event.path] = event.step
            case TimestepsEvent():
                self.timesteps[event.epoch] = event
            case ImageLossesEvent():
                self.image_losses = event
            case WarningEvent():
                self.warnings[event.code] = event
            case HintEvent(about="recipe"):
                self.warnings[event.code] = event
            case HintEvent() if event.code != "too_short":
                self.verdicts.append((max(self.losses, default=0), event.message))

    def _rewind(self, step: int) -> None:
        """Drop the events after `step`: a resumed run repeats those steps."""
        self.resumes.append(step)
        self.verdicts = [(number, title) for number, title in self.verdicts if number <= step]
        self.steps = {number: event for number, event in self.steps.items() if number <= step}
        self.losses = {number: loss for number, loss in self.losses.items() if number <= step}
        self.validation_losses = {number: loss for number, loss in self.validation_losses.items() if number <= step}
        self.sample_measures = {number: event for number, event in self.sample_measures.items() if number <= step}

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
        """Return step numbers, losses, and smoothed losses, without what chance puts in where that is known.

        Then they are the smoothed relative losses, times the base's loss over all timesteps.
        """
        numbers = sorted(self.losses)
        raw = [self.losses[number] for number in numbers]
        relative = self.relative_losses()
        if self.base_loss is None or not relative:
            return numbers, raw, smooth(raw)
        level = self.base_loss.loss
        return numbers, raw, [None if value is None else value * level for value in smooth(relative)]

    def relative_losses(self) -> list[float | None]:
        """Return the losses by step relative to the base's; empty if that is unknown for a step with a loss."""
        found = []
        for step, loss in sorted(self.losses.items()):
            relative = None if loss is None else self.steps[step].relative_loss
            if relative is None and loss is not None:
                return []
            found.append(relative)
        return found

    def fixed_noise_curve(self) -> list[tuple[int, float]]:
        """Return steps and fixed-noise losses, scaled so that the base has the same level as in the loss curve."""
        factor = 1.0
        if self.base_loss is not None and self.validation is not None and self.validation.base_loss:
            factor = self.base_loss.loss / self.validation.base_loss
        return [(step, loss * factor) for step, loss in sorted(self.validation_losses.items())]

    def existing_checkpoints(self, folder: Path) -> dict[int, str]:
        """Return those checkpoints of the run in this folder that were not deleted, by step."""
        return {step: path for path, step in self.checkpoint_steps.items() if (folder / path).is_file()}

    def measured_samples(self) -> list[SampleMeasuresEvent]:
        """Return the measures of the samples in order of their steps."""
        return [event for _, event in sorted(self.sample_measures.items())]

    def loss_record(self, folder: Path) -> LossRecord:
        """Return the losses for the verdict on the run in this folder."""
        return LossRecord(
            losses=self.loss_curve()[1],
            relative=self.relative_losses(),
            fixed=dict(sorted(self.validation_losses.items())),
            base=self.validation.base_loss if self.validation else None,
            validates=self.validation is None or self.validation.split == "validation",
            checkpoints=self.existing_checkpoints(folder),
            total=self.total_steps,
        )


class RunHistories:
    """Caches the history of each run, so that only new events are read."""

    def __init__(self) -> None:
        self._histories: dict[Path, RunHistory] = {}
        self._verdicts: dict[Path, tuple[int, bool, Verdict, Verdict | None]] = {}
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

    def verdicts(self, folder: JobFolder, job: TrainJob, *, running: bool) -> tuple[Verdict, Verdict | None]:
        """Return the verdict on the losses up to now, and the worst before, computed again only after new events."""
        history = self.history(folder)
        known = self._verdicts.get(folder.path)
        if known is None or known[:2] != (history.offset, running):
            record = history.loss_record(folder.path)
            verdict = judge(record, recipe=job.recipe, running=running)
            worst = worst_verdict(record, recipe=job.recipe)
            known = self._verdicts[folder.path] = (history.offset, running, verdict, worst)
        return known[2:]


@dataclass(frozen=True)
class RunView:
    """Everything about one training run that the page shows."""

    folder: JobFolder
    job: TrainJob
    status: JobStatus
    history: RunHistory
    verdict: Verdict
    worst_verdict: Verdict | None

    @classmethod
    def load(cls, folder: JobFolder, histories: RunHistories) -> RunView:
        """Read a run; raises InputError if its job file cannot be read."""
        job = folder.job()
        if not isinstance(job, TrainJob):
            raise InputError(f"{folder.name} is not a training run.", "Select another one.", code="no_run")
        status = folder.status()
        verdict, worst = histories.verdicts(folder, job, running=status.state is JobState.RUNNING)
        return cls(folder, job, status, histories.history(folder), verdict, worst)

    @property
    def is_active(self) -> bool:
        """True while the run is running, queued, or waits in the run queue."""
        return self.status.state.is_active or self.status.state is JobState.WAITING

    @property
    def lora(self) -> Path | None:
        """The final LoRA if there is one, else the result of a run that stopped by itself, else the last checkpoint."""
        result = self.history.stopped.path if self.history.stopped else None
        names = [f"{self.job.name}.safetensors", *([result] if result else []), *reversed(self.history.checkpoints)]
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
