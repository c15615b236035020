"""App, worker or both killed while a job runs: the next start shows the truth, and the result is that of no kill."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
from safetensors.torch import load_file

from lora_studio.dataset.captions.edit_history import CaptionHistory
from lora_studio.dataset.captions.text import read_caption
from lora_studio.dataset.images.decode import find_images
from lora_studio.dataset.tagging import stage as tagging
from lora_studio.sampling.pipeline import load_sampling_pipeline
from lora_studio.settings.choices import ExistingCaptions, Precision
from lora_studio.settings.job_specs import AnyJob, SweepJob, TagJob
from lora_studio.training import outputs
from lora_studio.ui.state.jobs import Jobs
from lora_studio.workspace.job_folder import JobFolder, JobState
from lora_studio.workspace.project import Home, Project, ProjectInfo
from tests.support.forked import CONTEXT, events_of, wait_for
from tests.support.kills import kill_at, moments, start_app
from tests.support.kohya_lora import make_lora, save_lora
from tests.support.tagging_jobs import RedTagger
from tests.support.tiny_sdxl import save_tiny_sdxl
from tests.support.training_runs import make_images, make_job

pytestmark = pytest.mark.slow
CONTEXT.set_forkserver_preload(["lora_studio.training.train", "lora_studio.sampling.sweep", __name__])

SEED = 19
KILLS = 6
SIZES = [(64, 64), (32, 64), (64, 64)]

Results = dict[str, Any]


class SlowTagger(RedTagger):
    """A tagger whose batches take as long as those of a small model."""

    def __init__(self) -> None:
        super().__init__(max_batch=2)
        self.before_batch = lambda: time.sleep(0.01)


def prepare_worker() -> None:
    """Let a worker, a process of its own, find the tagger, and save a training's state at every step."""
    patch.object(tagging, "find_tagger", lambda *args, **options: SlowTagger()).start()
    outputs.STATE_INTERVAL = outputs.EPOCH_STATE_INTERVAL = 0.0


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_sdxl(tmp_path_factory.mktemp("base"), layers=1)


@pytest.fixture(scope="module")
def lora(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("lora")
    pipeline = load_sampling_pipeline(str(base), home=Home(folder), precision=Precision.AUTO)
    return save_lora(make_lora(pipeline.pipe)[0], folder / "ink.safetensors")


def new_project(folder: Path, images: int = len(SIZES)) -> Project:
    project = Home(folder).create_project("ink", ProjectInfo(trigger_word="inkstamp"))
    make_images(project.images_dir, SIZES * (images // len(SIZES)))
    return project


def finish(folder: JobFolder) -> None:
    """Wait for the end of a job whose worker runs."""
    wait_for(lambda: not folder.status().state.is_active)
    assert folder.status().state is JobState.DONE, folder.log_tail()


def run_killed(project: Project, path: Path, job: AnyJob, victim: str, *, lines: int, delay: float) -> JobFolder | None:
    """Run a job with a kill, resume it if its worker died, and return its folder; None if it ended before the kill."""
    folder = JobFolder(path)
    app = start_app(project.home, path, job, prepare_worker)
    try:
        if not kill_at(path, app, victim, lines=lines, delay=delay):
            return None
        status = folder.status()
        active = [found.folder.path for found in Jobs(project.home).active()]
        if victim == "app":
            if folder.status().state.is_active:  # it has not ended meanwhile
                assert active == [path]
            finish(folder)
        elif status.state is not JobState.DONE:
            assert status.state is JobState.FAILED
            assert status.remedy
            assert active == []
            again = start_app(project.home, path, None, prepare_worker)
            try:
                finish(folder)
            finally:
                again.kill()
                again.join()
    finally:
        app.kill()
        app.join()
    assert Jobs(project.home).active() == []
    return folder


def check_kills(
    tmp_path: Path,
    kind: str,
    job_for: Callable[[Project], tuple[Path, AnyJob]],
    result_of: Callable[[Project, JobFolder], Results],
    *,
    images: int = len(SIZES),
) -> None:
    """Compare the result of a job that is killed, again and again, with that of a job that is not."""
    project = new_project(tmp_path / "whole", images)
    path, job = job_for(project)
    app = start_app(project.home, path, job, prepare_worker)
    finish(JobFolder(path))
    app.kill()
    events, _ = JobFolder(path).events()
    expected = result_of(project, JobFolder(path))
    pause = (events[-1].time - events[0].time) / len(events)
    for number, victim, moment, part in moments(f"{SEED} {kind}", KILLS):
        where = f"kill {number} of {victim} (seed {SEED}) at {moment:.3f}"
        lines, folder = int(moment * len(events)), None
        while folder is None:
            shutil.rmtree(tmp_path / "killed", ignore_errors=True)
            project = new_project(tmp_path / "killed", images)
            path, job = job_for(project)
            folder = run_killed(project, path, job, victim, lines=lines, delay=part * pause)
            lines = lines * 2 // 3
        found = result_of(project, folder)
        for name, value in expected.items():
            assert found[name] == value, f"{where}: {name}"


def test_tagging(tmp_path: Path) -> None:
    def job_for(project: Project) -> tuple[Path, AnyJob]:
        job = TagJob(
            dataset=project.dataset_dir, tagger="red", trigger_word="ohwx", existing=ExistingCaptions.OVERWRITE
        )
        return project.new_tag_dir(), job

    def result_of(project: Project, folder: JobFolder) -> Results:
        images = find_images(project.dataset_dir)
        tagged = [read_caption(image) for image in images]
        history = CaptionHistory.of(project.dataset_dir)
        assert history.can_undo
        history.undo()
        return {"captions": tagged, "before": [read_caption(image) for image in images]}

    check_kills(tmp_path, "tagging", job_for, result_of, images=24)


def test_training(tmp_path: Path, base: Path) -> None:
    def job_for(project: Project) -> tuple[Path, AnyJob]:
        recipe = {"batch_size": 1, "max_train_steps": 6}
        return project.new_run_dir("ink"), make_job(base, project.dataset_dir, **recipe)

    def result_of(project: Project, folder: JobFolder) -> Results:
        loras = {
            path.relative_to(folder.path).as_posix(): [(key, value.tolist()) for key, value in load_file(path).items()]
            for path in sorted(folder.path.rglob("*.safetensors"))
            if "state" not in path.parts
        }
        steps = [(event["step"], event["loss"]) for event in events_of(folder, "step")]
        litter = [path.name for path in folder.path.rglob("*") if ".tmp" in path.name or path.suffix == ".partial"]
        return {"loras": loras, "steps": steps, "litter": litter}

    check_kills(tmp_path, "training", job_for, result_of)


def test_sweep(tmp_path: Path, base: Path, lora: Path) -> None:
    def job_for(project: Project) -> tuple[Path, AnyJob]:
        job = SweepJob(
            loras=[lora],
            bases=[str(base)],
            prompts=["inkstamp, face", "clock"],
            strengths=[0, 0.7, 1],
            seeds=[9, 10],
            steps=2,
            trigger_word="inkstamp",
        )
        return project.new_sweep_dir(), job

    def result_of(project: Project, folder: JobFolder) -> Results:
        cells = {path.name: path.read_bytes() for path in sorted(folder.path.rglob("*.png")) if path.name[0] != "."}
        assert len(cells) == 13
        return {"cells": cells, "rows": json.loads((folder.path / "measures.json").read_bytes())["rows"]}

    check_kills(tmp_path, "sweep", job_for, result_of)
