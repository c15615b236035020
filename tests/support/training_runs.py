"""Small training runs for the tests of the trainer."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from lora_studio.settings.job_specs import TrainJob
from lora_studio.settings.recipe import Recipe
from lora_studio.training.build import build_trainer
from lora_studio.training.data.dataset import Batch
from lora_studio.training.preflight import preflight
from lora_studio.training.reporting.startup import PhaseReporter
from lora_studio.training.resume_state import load_state
from lora_studio.training.train import TrainResult, train
from lora_studio.training.trainer import Trainer
from lora_studio.workspace.job_folder import JobFolder
from lora_studio.workspace.project import Home
from tests.support.events import Events, append_to, ignore, of

Sizes = list[tuple[int, int]]

RECIPE = {
    "network_dim": 4,
    "network_alpha": 2,
    "optimizer": "AdamW",
    "unet_lr": 1e-3,
    "text_encoder_lr": 0.0,
    "epochs": 2,
    "batch_size": 2,
    "resolution": 64,
    "bucket_reso_steps": 32,
    "mixed_precision": "fp32",
    "gradient_checkpointing": False,
    "sample_every_n_epochs": 0,
}


def make_images(folder: Path, sizes: Sizes) -> Path:
    """Write images of noise, with a caption each, and return their folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for index, (width, height) in enumerate(sizes):
        source = torch.Generator().manual_seed(index)
        pixels = torch.randint(256, (height, width, 3), generator=source, dtype=torch.uint8)
        Image.fromarray(pixels.numpy()).save(folder / f"{index}.png")
        (folder / f"{index}.txt").write_text(f"inkstamp, thing {index}", "utf-8")
    return folder


def make_job(base: Path | str, dataset: Path, **recipe: Any) -> TrainJob:
    """Return a job of a few steps in fp32."""
    return TrainJob.parse(
        {
            "name": "ink",
            "dataset": dataset,
            "base": str(base),
            "trigger_word": "inkstamp",
            "recipe": RECIPE | recipe,
        }
    )


def recipe_of(**changes: Any) -> Recipe:
    """Return the recipe of `make_job` with changes."""
    return Recipe.parse(RECIPE | changes)


def start(job: TrainJob, folder: Path, home: Home) -> Trainer:
    """Check a job and return its trainer."""
    job_folder = JobFolder(folder)
    checked = preflight(job, job_folder, home, on_progress=lambda message, done, total: None)
    return build_trainer(
        job, job_folder, checked, home=home, report=ignore, phases=PhaseReporter(ignore), should_stop=lambda: False
    )


def losses_of(trainer: Trainer, batch: Batch, *, step: int = 0, first: int = 0) -> torch.Tensor:
    """Return the losses [B] of a batch in a step, its first sample having this number."""
    return trainer.batch_loss(trainer.collator.collate(step, batch, first, len(batch)).to(trainer.device))


def train_into(
    job: TrainJob,
    folder: Path,
    home: Home,
    *,
    stop_after: int | None = None,
    stop_when: Callable[[int], bool] | None = None,
    resume: bool = False,
) -> tuple[TrainResult, Events]:
    """Train, and request a stop after step `stop_after`, or when `stop_when(steps so far)`; events must be JSON."""
    events: Events = []

    def should_stop() -> bool:
        if stop_when is not None:
            return stop_when(len(of(events, "step")))
        return stop_after is not None and any(values["step"] >= stop_after for values in of(events, "step"))

    result = train(job, JobFolder(folder), home=home, report=append_to(events), should_stop=should_stop, resume=resume)
    return result, events


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    """Return the fp32 weights of a run's latest training state."""
    state = load_state(folder / "checkpoints" / "state", on_damage=_never)
    assert state is not None
    return state.weights


def same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    """Return whether two sets of tensors are equal bit for bit."""
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def _never(message: str) -> None:
    raise AssertionError(message)
