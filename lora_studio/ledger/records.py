"""One training run as a row of the ledger."""

from __future__ import annotations

import glob
import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from lora_studio.errors import InputError
from lora_studio.events import Event, ResumeEvent, StartEvent, StepEvent, ValidationEvent
from lora_studio.files import cached_by_stamp
from lora_studio.ledger.data import RunData, caption_changes, image_changes, read_data
from lora_studio.lora.header import read_lora_header
from lora_studio.planning.loss_record import LossRecord
from lora_studio.planning.verdicts import Verdict, judge, worst_verdict
from lora_studio.settings.changes import SettingChange, setting_changes
from lora_studio.settings.job_specs import TrainJob
from lora_studio.workspace.job_folder import JobFolder, JobState, JobStatus, job_folders
from lora_studio.workspace.project import Home, Project
from lora_studio.workspace.run_notes import RunNotes, read_notes

MAX_CACHED = 1024
# Inputs of a run besides its recipe and data, by the name of the setting.
INPUTS = {
    "base": "Base",
    "vae": "VAE",
    "dataset": "Dataset folder",
    "trigger_word": "Trigger word",
    "regularization": "Regularisation images",
    "network_weights": "Start from a LoRA",
    "num_processes": "GPUs",
}


@dataclass(frozen=True)
class RunFigures:
    """What the events of a run say.

    `validation` has the fixed-noise losses by step, in order: those of the images that `split` names, where the base
    alone has `base_loss`. `worst_verdict` is a serious one that the run had before its last.
    """

    started: float | None
    steps: int
    total: int
    seconds: float
    validation: dict[int, float]
    split: str | None
    base_loss: float | None
    verdict: Verdict | None
    worst_verdict: Verdict | None = None


@dataclass(frozen=True)
class DataChange:
    """An input or the data of a run that differs from its parent's."""

    name: str
    text: str


@dataclass(frozen=True, eq=False)
class RunRecord:
    """A training run with all that the ledger shows. `parent` is the run it was made from, if that still exists.

    `base_hash` is that of the base in a LoRA of the run, None before it has saved one; `data` is None before the run
    has read its images.
    """

    folder: JobFolder
    project: str
    job: TrainJob
    status: JobStatus
    figures: RunFigures
    data: RunData | None
    base_hash: str | None
    notes: RunNotes
    parent: RunRecord | None = None

    @property
    def name(self) -> str:
        """The name of the run's folder."""
        return self.folder.name

    @property
    def stopped_by(self) -> str | None:
        """The sign at which the run stopped by itself: plateau, rise or break; None if it did not."""
        return self.status.code or None if self.status.state is JobState.STOPPED else None

    @property
    def recipe_changes(self) -> list[SettingChange]:
        """The settings that differ from the parent's; none without a parent."""
        return setting_changes(self.job.recipe, self.parent.job.recipe) if self.parent else []

    @property
    def data_changes(self) -> list[DataChange]:
        """The inputs, images, captions and base weights that differ from the parent's; none without a parent."""
        if self.parent is None:
            return []
        found, hashes = input_changes(self.job, self.parent.job), (self.parent.base_hash, self.base_hash)
        if self.job.base == self.parent.job.base and all(hashes) and hashes[0] != hashes[1]:
            found.append(DataChange("base weights", f"{hashes[0]} → {hashes[1]}"))
        return found + data_changes(self.data, self.parent.data)

    @property
    def differences(self) -> list[str]:
        """All differences to the parent as texts, like "unet_lr: 5e-4 → 1e-4"."""
        return [
            *(f"{change.name}: {change.text}" for change in self.data_changes),
            *(f"{change.name}: {change.before_text} → {change.value_text}" for change in self.recipe_changes),
        ]

    @property
    def validation_loss(self) -> float | None:
        """The last fixed-noise loss; None if the run has none."""
        return list(self.figures.validation.values())[-1] if self.figures.validation else None

    @property
    def validation_change(self) -> float | None:
        """The last fixed-noise loss relative to the base's: -0.2 is a fifth below it. The figure to compare runs by.

        How many noises are averaged depends on the length of a run, so that the losses themselves differ a little.
        """
        base = self.figures.base_loss
        return None if not base or self.validation_loss is None else self.validation_loss / base - 1

    @property
    def best_step(self) -> int | None:
        """The step with the lowest fixed-noise loss; None if the run has none."""
        losses = self.figures.validation
        return min(losses, key=losses.__getitem__) if losses else None


def input_changes(job: TrainJob, before: TrainJob) -> list[DataChange]:
    """Return the inputs of a job that differ: base, dataset folder, trigger word, subsets and so on."""
    found = []
    for name in INPUTS:
        values = [getattr(each, name) for each in (before, job)]
        if values[0] != values[1]:
            found.append(DataChange(name, " → ".join(str(value or "none") for value in values)))
    if job.subsets != before.subsets:
        found.append(DataChange("subsets", f"{len(before.subsets) or 'none'} → {len(job.subsets) or 'none'}"))
    return found


def data_changes(data: RunData | None, before: RunData | None) -> list[DataChange]:
    """Return how images and captions differ; [] if those of one run are unknown."""
    if data is None or before is None:
        return []
    texts = {"images": image_changes(data, before), "captions": caption_changes(data, before)}
    return [DataChange(name, text) for name, text in texts.items() if text]


def find_records(folder: Path | None = None, *, everything: bool = False, home: Home | None = None) -> list[RunRecord]:
    """Return the runs of the project that `folder` is or is in, or those in a folder of runs.

    Without a folder: of the project that the working directory is in, else of the whole home, as with `everything`.
    Raises InputError if the folder has none.
    """
    home = home or Home.locate()
    if everything:
        return home_records(home)
    place = (folder or Path.cwd()).expanduser().resolve()
    for path in (place, *place.parents):
        if (path / "project.json").is_file():
            return project_records(Project(path))
    if folder is None:
        return home_records(home)
    folders = [JobFolder(place)] if JobFolder(place).exists else list(job_folders(place))
    if not folders:
        raise InputError(
            f"There are no runs in {folder}.", "Give a project, a folder of runs, or --all.", code="no_runs"
        )
    return read_records(folders, "")


def project_records(project: Project) -> list[RunRecord]:
    """Return the runs of a project, oldest first."""
    return read_records(project.runs(), project.name)


def home_records(home: Home) -> list[RunRecord]:
    """Return the runs of all projects, then those in the home's own runs folder, which commands fill."""
    found = [record for project in home.projects() for record in project_records(project)]
    return found + read_records(list(job_folders(home.path / "runs")), "")


def read_records(folders: Sequence[JobFolder], project: str) -> list[RunRecord]:
    """Return the runs in job folders that can be read, each with its parent, whether that is in the list or not."""
    known: dict[Path, RunRecord | None] = {}
    records = [_read(folder, project, known) for folder in folders]
    return [record for record in records if record is not None]


def _read(folder: JobFolder, project: str, known: dict[Path, RunRecord | None]) -> RunRecord | None:
    """Return a run; None if it cannot be read, or is already being read as the parent of its own parent."""
    path = folder.path.resolve()
    if path in known:
        return known[path]
    known[path] = None
    with suppress(InputError, OSError):
        job = folder.job()
        if not isinstance(job, TrainJob):
            return None
        status = folder.status()
        parent = parent_folder(folder, job)
        known[path] = RunRecord(
            folder,
            project,
            job,
            status,
            read_figures(folder, running=status.state.is_active),
            read_data(path),
            _base_hash(folder, job),
            _notes(path),
            _read(parent, project, known) if parent else None,
        )
    return known[path]


def parent_folder(folder: JobFolder, job: TrainJob) -> JobFolder | None:
    """Return the run that a run was made from, also if both folders have moved; None if it does not exist."""
    if job.parent is None:
        return None
    candidates = (JobFolder(job.parent), JobFolder(folder.path.parent / job.parent.name))
    return next((candidate for candidate in candidates if candidate.exists and candidate.path != folder.path), None)


def read_figures(folder: JobFolder, *, running: bool = False) -> RunFigures:
    """Return the figures in the events of a run; empty ones before the first event."""
    try:
        return _figures(folder.events_file, running)
    except OSError:
        return RunFigures(None, 0, 0, 0.0, {}, None, None, None)


@cached_by_stamp(MAX_CACHED)
def _figures(events_file: Path, running: bool) -> RunFigures:
    folder = JobFolder(events_file.parent)
    job, (events, _) = folder.job(), folder.events()
    steps: dict[int, StepEvent] = {}
    validation: dict[int, float] = {}
    total, split, base_loss = 0, None, None
    for event in _as_trained(events, steps, validation):
        match event:
            case StepEvent():
                steps[event.step] = event
                total = event.total
            case ValidationEvent() if event.loss is not None:
                validation[event.step] = event.loss
                split, base_loss = event.split, event.base_loss
            case StartEvent():
                total = event.total
    verdict = worst = None
    if steps and isinstance(job, TrainJob):
        losses = LossRecord.from_events(events)
        verdict = judge(losses, recipe=job.recipe, running=running and len(losses.losses) < total)
        worst = worst_verdict(losses, recipe=job.recipe)
    return RunFigures(
        started=events[0].time if events else None,
        steps=max(steps, default=0),
        total=total,
        seconds=round(sum(event.seconds or 0.0 for event in steps.values()), 1),
        validation=dict(sorted(validation.items())),
        split=split,
        base_loss=base_loss if base_loss is not None else validation.get(0),
        verdict=verdict,
        worst_verdict=worst,
    )


def _as_trained(events: Sequence[Event], *by_step: dict[int, StepEvent] | dict[int, float]) -> Iterator[Event]:
    """Yield the events; a resume first removes from `by_step` what came after its step, since that is repeated."""
    for event in events:
        if isinstance(event, ResumeEvent):
            for values in by_step:
                for step in [step for step in values if step > event.step]:
                    del values[step]
        yield event


def base_metadata(folder: JobFolder, job: TrainJob) -> dict[str, str]:
    """Return the metadata that the trainer wrote into a run's LoRA or a checkpoint; {} before it has saved one."""
    checkpoints = sorted((folder.path / "checkpoints").glob(f"{glob.escape(job.name)}-*.safetensors"))
    for path in (folder.path / f"{job.name}.safetensors", *checkpoints[:1]):
        with suppress(InputError, OSError):
            return _metadata(path)
    return {}


def _base_hash(folder: JobFolder, job: TrainJob) -> str | None:
    """Return the hash of the base's weights that the trainer wrote into the LoRA or a checkpoint, shortened."""
    found = re.match(r"[0-9a-f]{12}", base_metadata(folder, job).get("ss_new_sd_model_hash", ""))
    return found[0] if found else None


@cached_by_stamp(MAX_CACHED)
def _metadata(path: Path) -> dict[str, str]:
    return read_lora_header(path).metadata


def _notes(run: Path) -> RunNotes:
    """Return the notes on a run; empty ones if they are damaged, which the page says when they are changed."""
    try:
        return read_notes(run)
    except InputError:
        return RunNotes()
