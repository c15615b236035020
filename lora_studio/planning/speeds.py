"""Remember what a training step took on this machine, so that later plans need no estimate.

A line of speeds.jsonl in the home is a finished or stopped run: base, device, recipe, seconds per step, peak memory.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from statistics import median

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from lora_studio.errors import InputError
from lora_studio.events import Event, SampleEvent, StartEvent, StepEvent
from lora_studio.file_lock import change_file
from lora_studio.files import write_text
from lora_studio.models.catalogue import find_base
from lora_studio.settings.job_specs import TrainJob
from lora_studio.settings.recipe import Recipe
from lora_studio.workspace.job_folder import JobFolder
from lora_studio.workspace.project import Home

WARMUP_STEPS = 5  # the first steps of a run set up kernels and caches; they are left out
MIN_STEPS = 2 * WARMUP_STEPS + 1
MAX_SPEEDS = 200  # the latest that are kept
CPU = "CPU"


class MeasuredSpeed(BaseModel):
    """The speed of one run. `base` is its name in the catalogue or as it was given, `seconds` the median step.

    `device` is one of the devices that the run's `processes` used. `memory_gib` is the peak of a GPU's tensors, or of
    the process's main memory (RSS) on a CPU, in the steps before the first sample was drawn; their batches had at most
    `batch_pixels` pixels on each device.
    """

    model_config = ConfigDict(frozen=True)

    base: str
    device: str
    recipe: Recipe
    seconds: float = Field(gt=0)
    processes: int = 1
    memory_gib: float | None = None
    batch_pixels: int | None = None


def device_kind(name: str) -> str:
    """Return a device's name without what differs between runs on it: their number, and the threads of a CPU."""
    name = re.sub(r"^\d+ x ", "", name)
    return CPU if name.startswith(CPU) else name


def shortest_run(recipe: Recipe) -> Recipe:
    """Return a recipe that trains just long enough to tell its speed, and draws and saves nothing on the way."""
    changes = {
        "epochs": MIN_STEPS,
        "max_train_steps": MIN_STEPS,
        "lr_warmup_steps": 0,
        "validation_split": 0,
        "sample_prompts": [],
        "sample_at_first": False,
        "save_every_n_epochs": MIN_STEPS,
        "save_every_n_steps": 0,
        "log_with": "none",
    }
    return Recipe.parse(recipe.model_dump() | changes)


def speed_of_run(folder: JobFolder) -> MeasuredSpeed | None:
    """Return the speed of a training run; None if it is none, or too short to tell."""
    try:
        job = folder.job()
    except InputError:
        return None
    events = folder.events()[0]
    starts = [event for event in events if isinstance(event, StartEvent)]
    steps = [event for event in events if isinstance(event, StepEvent)]
    unmixed = _steps_before_samples(events)
    seconds = [event.seconds for event in steps if event.seconds is not None]
    if not isinstance(job, TrainJob) or not starts or len(seconds) < MIN_STEPS:
        return None
    base = find_base(job.base)
    return MeasuredSpeed(
        base=base.name if base else job.base,
        device=device_kind(starts[-1].device),
        recipe=job.recipe,
        seconds=median(seconds[WARMUP_STEPS:]),
        processes=job.num_processes,
        memory_gib=max((event.memory_gib for event in unmixed if event.memory_gib is not None), default=None),
        batch_pixels=max((event.batch_pixels for event in unmixed if event.batch_pixels is not None), default=None),
    )


def _steps_before_samples(events: Sequence[Event]) -> list[StepEvent]:
    """Return the steps since the last start whose peak memory is that of training: up to the first sample drawn."""
    found: list[StepEvent] = []
    is_training = False
    for event in events:
        if isinstance(event, StartEvent):
            found, is_training = [], True
        elif isinstance(event, SampleEvent) and found:
            is_training = False
        elif isinstance(event, StepEvent) and is_training:
            found.append(event)
    return found


def find_speeds(home: Home, base: str, device: str) -> list[MeasuredSpeed]:
    """Return the speeds of runs with a base, by its name in the catalogue or as given, on a device; latest last."""
    return [speed for speed in read_speeds(home) if (speed.base, speed.device) == (base, device_kind(device))]


def remember_speed(home: Home, folder: JobFolder) -> None:
    """Add the speed of a run to those of this machine, unless it was too short."""
    if (speed := speed_of_run(folder)) is None:
        return
    with change_file(home.speeds):
        lines = [known.model_dump_json() for known in (*read_speeds(home), speed)]
        write_text(home.speeds, "\n".join(lines[-MAX_SPEEDS:]) + "\n")


def read_speeds(home: Home) -> Iterator[MeasuredSpeed]:
    """Yield the speeds of this machine, the latest last; lines of another version are left out."""
    try:
        lines = home.speeds.read_text("utf-8").splitlines()
    except OSError:
        return
    for line in lines:
        try:
            yield MeasuredSpeed.model_validate_json(line)
        except ValidationError:
            continue
