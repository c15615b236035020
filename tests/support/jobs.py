"""Creates projects with images, runs and tests as their workers leave them, without training or drawing."""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil
from PIL import Image

from lora_studio.events import CheckpointEvent, StepEvent
from lora_studio.files import write_json
from lora_studio.lora.header import read_lora_header
from lora_studio.models.png_info import save_png
from lora_studio.sampling.cells import SweepPlan
from lora_studio.settings.choices import LoraKind
from lora_studio.settings.job_specs import SweepJob, TrainJob
from lora_studio.settings.recipe import Recipe
from lora_studio.workspace.job_folder import JobFolder, JobState, JobStatus
from lora_studio.workspace.project import Home, Project, ProjectInfo
from tests.support.events import start_event

LORA = Path(__file__).parents[1] / "data" / "kohya_tiny_sdxl_lora.safetensors"
BASE = "SDXL 1.0"
PROMPTS = ["{trigger}, face", "clock"]


def make_project(home: Home, name: str = "ink", images: int = 3, **changes: Any) -> Project:
    """Create a project with captioned images; `changes` are those of the user to the planned recipe."""
    info = ProjectInfo(kind=LoraKind.STYLE, trigger_word="inkstamp_hc", base=BASE, recipe=changes)
    project = home.create_project(name, info)
    for index in range(images):
        path = project.images_dir / f"picture {index}.png"
        Image.new("RGB", (640, 640), (50 * index, 90, 200)).save(path)
        path.with_suffix(".txt").write_text(f"inkstamp_hc, thing {index}", "utf-8")
    return project


def make_run(project: Project, *, steps: int = 8, epochs: int = 2, final: bool = True, **status: Any) -> JobFolder:
    """Create a run with its events, a checkpoint per epoch and, if `final`, its LoRA; `status` overrides its status."""
    recipe = Recipe(sample_prompts=PROMPTS, epochs=epochs)
    job = TrainJob(name="ink", dataset=project.dataset_dir, base=BASE, trigger_word="inkstamp_hc", recipe=recipe)
    folder = JobFolder.create(project.new_run_dir("ink"), job)
    folder.emit(start_event(total=steps, epochs=epochs, steps_per_epoch=steps // epochs))
    (folder.path / "checkpoints").mkdir()
    for step in range(1, steps + 1):
        epoch = math.ceil(step * epochs / steps)
        rates = {"lr": 5e-4, "text_encoder_lr": 1e-4}
        folder.emit(StepEvent(step=step, total=steps, epoch=epoch, loss=1 / step, seconds=0.5, **rates))
        if step * epochs % steps == 0:
            path = folder.path / "checkpoints" / f"ink-{epoch:06d}.safetensors"
            shutil.copyfile(LORA, path)
            folder.emit(CheckpointEvent(step=step, epoch=epoch, path=f"checkpoints/{path.name}"))
    if final:
        shutil.copyfile(LORA, folder.path / "ink.safetensors")
    _set_status(folder, done=steps, total=steps, **status)
    return folder


def make_sweep(
    project: Project, loras: Sequence[Path], *, drawn: int | None = None, seeds: Sequence[int] = (42,), **status: Any
) -> JobFolder:
    """Create a test with `drawn` finished cells (default: all); a finished one has its grid and measures."""
    job = SweepJob(
        loras=list(loras),
        bases=[BASE],
        prompts=PROMPTS,
        trigger_word="inkstamp_hc",
        strengths=[0, 0.7, 1],
        seeds=list(seeds),
    )
    folder = JobFolder.create(project.new_sweep_dir(), job)
    plan = SweepPlan(job, [read_lora_header(path) for path in loras])
    for number, key in enumerate(plan.cells[:drawn]):
        picture = Image.new("RGB", (64, 64), (20 * number, 80, 120))
        save_png(picture, folder.path / plan.path(key), f"{key.prompt}\nSteps: 25, Seed: {key.seed}")
    if drawn is None:
        Image.new("RGB", (300, 200)).save(folder.path / "grid.png")
        rows = [
            {"strength": strength, "change": strength / 10, "variety": 0.2, "saturation": 0.3, "contrast": 0.1}
            for strength in job.strengths
        ]
        write_json(folder.path / "measures.json", {"meaning": {}, "rows": rows})
    _set_status(folder, done=len(plan.cells[:drawn]), total=len(plan.cells), **status)
    return folder


def running_status() -> dict[str, Any]:
    """Return the status of a job whose worker, here this process, is running."""
    own = psutil.Process()
    return {"state": JobState.RUNNING, "pid": own.pid, "pid_started": own.create_time(), "seconds_left": 9.0}


def _set_status(folder: JobFolder, **status: Any) -> None:
    folder.set_status(JobStatus(**{"state": JobState.DONE, "started_at": time.time() - 60, **status}))
