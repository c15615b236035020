"""Experiment trackers: log a run's events to TensorBoard, wandb or trackio, through accelerate.

Names are those of sd-scripts where it has them, so that its runs and these can be compared in one chart.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import tracking
from accelerate.state import PartialState
from accelerate.tracking import GeneralTracker
from PIL import Image

from lora_studio.events import EpochEvent, Event, Report, SampleEvent, StepEvent, ValidationEvent, WarningEvent
from lora_studio.settings.choices import Tracker
from lora_studio.settings.recipe import Recipe

PROJECT = "lora-studio"
LOG_FOLDER = "logs"  # TensorBoard's, in the run's folder
STEP_VALUES = {
    "loss": "loss/current",
    "lr": "lr/unet",
    "text_encoder_lr": "lr/textencoder",
    "text_encoder_lr2": "lr/textencoder2",
    "gradient_norm": "norm/gradient",
    "scaled_layers": "max_norm/keys_scaled",
    "mean_weight_norm": "max_norm/average_key_norm",
    "max_weight_norm": "max_norm/max_key_norm",
    "seconds": "speed/seconds_per_step",
    "memory_gib": "memory/gib",
}
EPOCH_VALUES = {
    "epoch": "epoch",
    "loss": "loss/epoch_average",
    "unet_norm": "norm/unet",
    "te1_norm": "norm/textencoder1",
    "te2_norm": "norm/textencoder2",
}
VALIDATION_VALUES = {"loss": "loss/validation/epoch_average"}


def tracker_errors(recipe: Recipe) -> list[str]:
    """Return an error if the package of the recipe's tracker is not installed."""
    name = recipe.log_with.value
    if recipe.log_with is Tracker.NONE or name in map(str, tracking.get_available_trackers()):
        return []
    return [f"log_with is {name}, but {name} is not installed. Run pip install {name}, or set log_with to none."]


@contextmanager
def tracked(recipe: Recipe, folder: Path, report: Report, *, enabled: bool) -> Iterator[Report]:
    """Return a report function that also logs events to the recipe's tracker; finish the tracker after the block.

    The run has the name of its folder. Without a tracker, or if not `enabled`, `report` itself is returned. A tracker
    that fails is reported as a warning, once; the run continues.
    """
    if recipe.log_with is Tracker.NONE or not enabled:
        yield report
        return
    log = _TrackerLog(report, recipe.log_with, folder)
    log.attempt(lambda: log.start(recipe))
    try:
        yield log
    finally:
        log.attempt(log.finish)


@dataclass
class _TrackerLog:
    """Reports events, and logs the values and images of some to a tracker; `tracker` is None before it has started."""

    report: Report
    kind: Tracker
    folder: Path
    tracker: GeneralTracker | None = None
    step: int = 0
    failed: bool = False

    def __call__(self, event: Event) -> None:
        self.report(event)
        if isinstance(event, StepEvent | ValidationEvent):
            self.step = event.step
        if isinstance(event, SampleEvent):
            self.attempt(lambda: self.log_sample(event))
        elif values := tracked_values(event):
            self.attempt(lambda: self.log(values))

    def start(self, recipe: Recipe) -> None:
        """Start the tracker and store the recipe in it."""
        PartialState()  # accelerate's trackers need it for their own messages
        project = recipe.log_tracker_name or PROJECT
        kind = tracking.LOGGER_TYPE_TO_CLASS[self.kind.value]
        match self.kind:
            case Tracker.WANDB:
                tracker = kind(project, name=self.folder.name, dir=str(self.folder))
            case Tracker.TRACKIO:
                tracker = kind(project, name=self.folder.name)
            case _:
                tracker = kind(project, self.folder / LOG_FOLDER)
        tracker.start()
        self.tracker = tracker
        tracker.store_init_configuration(tracked_settings(recipe))

    def log(self, values: dict[str, float]) -> None:
        """Log values at the last step."""
        if self.tracker is not None:
            self.tracker.log(values, step=self.step)

    def log_sample(self, event: SampleEvent) -> None:
        """Log a sample image with its prompt as the caption; in TensorBoard, which has none, as a text of that name."""
        if self.tracker is None:
            return
        name, path = f"samples/{event.index:02d}", self.folder / event.path
        if self.kind is Tracker.TENSORBOARD:
            with Image.open(path) as image:
                pixels = np.asarray(image.convert("RGB"))[None]
            self.tracker.log_images({name: pixels}, step=event.step, dataformats="NHWC")
            self.tracker.log({name: event.prompt}, step=event.step)
        else:
            library = importlib.import_module(self.kind.value)  # wandb and trackio have the same class
            self.tracker.log({name: library.Image(str(path), caption=event.prompt)}, step=event.step)

    def finish(self) -> None:
        """Finish the tracker, if it has started."""
        if self.tracker is None:
            return
        self.tracker.finish()
        if self.kind is Tracker.TRACKIO and (trackio := sys.modules.get("trackio")) is not None:
            trackio.finish()  # else it finishes the run again when Python exits, and prints that to stdout

    def attempt(self, action: Callable[[], None]) -> None:
        """Run an action of the tracker; report its first failure as a warning. Its output goes to stderr."""
        try:
            with redirect_stdout(sys.stderr):
                action()
        except Exception as error:
            if self.failed:
                return
            self.failed = True
            detail = (str(error).strip().splitlines() or [type(error).__name__])[0]
            self.report(
                WarningEvent(
                    code="tracker",
                    message=f"{self.kind.value} failed: {detail}. The run continues; its folder has all values.",
                    why="Its charts may lack values of this run.",
                )
            )


def tracked_values(event: Event) -> dict[str, float]:
    """Return what a tracker logs of an event: the numbers that are set, by sd-scripts' names."""
    match event:
        case StepEvent():
            names = STEP_VALUES
        case EpochEvent():
            names = EPOCH_VALUES
        case ValidationEvent():
            names = VALIDATION_VALUES
        case _:
            return {}
    fields = event.model_dump(include=set(names), exclude_none=True)
    return {names[field]: value for field, value in fields.items()}


def tracked_settings(recipe: Recipe) -> dict[str, Any]:
    """Return a recipe as numbers, truth values and text, all that every tracker stores."""
    values = recipe.model_dump(mode="json", exclude_none=True)
    return {name: value if isinstance(value, int | float | str) else str(value) for name, value in values.items()}
