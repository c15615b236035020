"""Finished runs of a project with noisy losses, validation losses, samples and records of their data."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from lora_studio.events import CheckpointEvent, SampleEvent, StepEvent, ValidationEvent
from lora_studio.settings.job_specs import TrainJob
from lora_studio.settings.recipe import Recipe
from lora_studio.workspace.job_folder import DATASET_FILE, JobFolder, JobState, JobStatus
from lora_studio.workspace.project import Project
from tests.support.events import start_event
from tests.support.jobs import BASE, LORA, PROMPTS

STARTED = 1_790_000_000.0
SAMPLE_SEED = 42
BASE_LOSS = 0.15


def make_ledger_run(
    project: Project,
    parent: JobFolder | None = None,
    *,
    images: Mapping[str, str] | None = None,
    final: float = 0.1,
    rise: float = 0.0,
    steps: int = 60,
    samples: int = 0,
    until: int | None = None,
    job: Mapping[str, Any] | None = None,
    **recipe: Any,
) -> JobFolder:
    """Create a finished run of 4 epochs, made from `parent`, whose loss falls from 0.15 to `final`, then by `rise` up.

    `images` maps each image's hash to its caption; `samples` is the size in px of the pictures, none by default. A run
    `until` a step has no LoRA and was stopped after that step. `job` and `recipe` override settings.
    """
    folder = project.new_run_dir("ink")
    given = {
        "name": "ink",
        "dataset": project.dataset_dir,
        "base": BASE,
        "trigger_word": "inkstamp_hc",
        "parent": parent.path if parent else None,
        **(job or {}),
        "recipe": Recipe(**{"sample_prompts": PROMPTS, "epochs": 4, "sample_seed": SAMPLE_SEED} | recipe),
    }
    run = JobFolder.create(folder, TrainJob.parse(given))
    _write_data(run.path, images or {f"{number:064x}": f"inkstamp_hc, thing {number}" for number in range(3)})
    number = int(run.name[:3])
    done = steps if until is None else until
    _write_events(run, steps, done, np.random.default_rng(number), final, rise, samples, SAMPLE_SEED)
    if until is None:
        shutil.copyfile(LORA, run.path / "ink.safetensors")
    state = JobState.DONE if until is None else JobState.STOPPED
    run.set_status(JobStatus(state=state, done=done, total=steps, started_at=STARTED + 3600 * number))
    return run


def _write_data(run: Path, images: Mapping[str, str]) -> None:
    records = [
        {"set": "train", "path": f"/images/{sha[-4:]}.png", "sha256": sha, "caption": caption, "repeats": 1}
        for sha, caption in images.items()
    ]
    (run / DATASET_FILE).write_text("".join(f"{json.dumps(record)}\n" for record in records), "utf-8")


def _write_events(
    run: JobFolder, steps: int, done: int, rng: np.random.Generator, final: float, rise: float, samples: int, seed: int
) -> None:
    """Write the events of the first `done` of a run's steps as lines, all at once: `emit` flushes each to disk."""
    events: list[Any] = [
        start_event(total=steps, epochs=4, steps_per_epoch=steps // 4),
        ValidationEvent(step=0, epoch=0, loss=BASE_LOSS, split="training", base_loss=BASE_LOSS),
    ]
    for step in range(1, done + 1):
        progress = step / steps
        mean = BASE_LOSS + (final - BASE_LOSS) * (1 - 0.01**progress) + rise * max(0.0, progress - 0.6)
        loss = float(mean * rng.gamma(1 / 0.27**2, 0.27**2))
        epoch = -(-step * 4 // steps)
        fields = {"loss": loss, "relative_loss": loss / BASE_LOSS, "seconds": 0.5, "lr": 5e-4}
        events.append(StepEvent(step=step, total=steps, epoch=epoch, **fields))
        if step * 4 % steps == 0:
            loss = round(mean, 5)
            events.append(ValidationEvent(step=step, epoch=epoch, loss=loss, split="training", base_loss=BASE_LOSS))
            events.append(CheckpointEvent(step=step, epoch=epoch, path=f"checkpoints/ink-{epoch:06d}.safetensors"))
            pictures = range(len(PROMPTS) if samples else 0)
            events += [_sample(run, step, epoch, index, samples, seed) for index in pictures]
    lines = [{**event.record(), "time": STARTED + place} for place, event in enumerate(events)]
    run.events_file.write_text("".join(f"{json.dumps(line)}\n" for line in lines), "utf-8")


def _sample(run: JobFolder, step: int, epoch: int, index: int, size: int, seed: int) -> SampleEvent:
    """Draw a picture whose colour says run, epoch and prompt."""
    path = f"samples/{epoch}-{index}.png"
    (run.path / "samples").mkdir(exist_ok=True)
    colour = (37 * int(run.name[:3]) % 256, 60 * epoch, 120 + 100 * index)
    picture = Image.new("RGB", (size, size), "white")
    picture.paste(colour, (size // 8 * epoch // 2, size // 4, size - size // 8, size - size // 8))
    picture.save(run.path / path)
    prompt = PROMPTS[index].replace("{trigger}", "inkstamp_hc")
    settings = {"width": size, "height": size, "steps": 20, "guidance": 6.0, "sampler": "euler"}
    return SampleEvent(step=step, epoch=epoch, index=index, prompt=prompt, seed=seed, path=path, **settings)
