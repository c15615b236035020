"""The command `queue`, and variants that `train --vary` and `queue_variants` put into the queue."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import lora_studio
from lora_studio import worker
from lora_studio.cli.main import app
from lora_studio.errors import ConfigError, StudioError
from lora_studio.settings.job_specs import TrainJob, job_to_toml
from lora_studio.settings.recipe import Recipe
from lora_studio.workspace.gpu_queue import hold_gpu
from lora_studio.workspace.job_folder import JobFolder, JobState, JobStatus
from lora_studio.workspace.project import Home
from lora_studio.workspace.run_queue import RunQueue


@pytest.fixture
def job_file(tmp_path: Path) -> Path:
    job = TrainJob(name="ink", dataset=tmp_path, base="x", recipe=Recipe(epochs=3))
    (tmp_path / "job.toml").write_text(job_to_toml(job), "utf-8")
    return tmp_path / "job.toml"


def invoke(*words: str | Path) -> Any:
    return CliRunner().invoke(app, [str(word) for word in words], catch_exceptions=True)


def recipes(home: Home) -> list[Recipe]:
    jobs = [run.folder.job() for run in RunQueue(home).runs()]
    return [job.recipe for job in jobs if isinstance(job, TrainJob)]


def test_vary_puts_every_combination_into_the_queue(home: Home, job_file: Path, tmp_path: Path) -> None:
    with hold_gpu(home.queue, "a sweep"):
        words = ("--vary", "unet_lr=1e-4,2e-4", "--vary", "network_dim=8,16", "--out", tmp_path / "runs", "--json")
        done = invoke("train", job_file, *words, "--home", home.path)
    assert done.exit_code == 0, done.output
    folders = [Path(run["run"]) for run in json.loads(done.stdout)]
    assert [folder.name for folder in folders][:2] == ["001-ink-lr1e-4-dim8", "002-ink-lr1e-4-dim16"]
    assert [run.folder.path.resolve() for run in RunQueue(home).runs()] == [folder.resolve() for folder in folders]
    found = [(recipe.unet_lr, recipe.network_dim, recipe.epochs) for recipe in recipes(home)]
    assert found == [(1e-4, 8, 3), (1e-4, 16, 3), (2e-4, 8, 3), (2e-4, 16, 3)]
    listed = json.loads(invoke("queue", "--json", "--home", home.path).stdout)
    assert [Path(run["run"]).name for run in listed] == [folder.name for folder in folders]


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["--vary", "unet_lr"], "vary"),
        (["--vary", "unet_lr=abc"], "config"),
        (["--vary", "seed=1", "--vary", "epochs=1", "--vary", "network_dim=8"], "config"),
        (["--resume", "--vary", "seed=1"], "usage"),
    ],
)
def test_a_wrong_grid_is_refused_and_leaves_no_run(home: Home, job_file: Path, words: list[str], code: str) -> None:
    done = invoke("train", job_file, *words, "--home", home.path)
    assert isinstance(done.exception, StudioError)
    assert done.exception.code == code
    assert RunQueue(home).runs() == []
    assert not (home.path / "runs").exists()


def test_python_takes_values_as_they_are(home: Home, tmp_path: Path) -> None:
    with hold_gpu(home.queue, "a sweep"):
        vary = {"network_dim": [8, 16]}
        folders = lora_studio.queue_variants(tmp_path, base="x", vary=vary, recipe=Recipe(), name="ink", home=home)
        assert [folder.parent for folder in folders] == [home.path / "runs"] * 2
        assert [recipe.network_dim for recipe in recipes(home)] == [8, 16]
        with pytest.raises(ConfigError):
            lora_studio.queue_variants(tmp_path, base="x", vary={"colour": ["red"]}, recipe=Recipe(), home=home)


def test_the_first_run_starts_at_once_if_nothing_uses_the_gpu(
    home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[JobFolder] = []

    def start(folder: JobFolder, home: Home, *, resume: bool = False) -> None:
        started.append(folder)
        folder.set_status(JobStatus(state=JobState.QUEUED))

    monkeypatch.setattr(worker, "start", start)
    vary = {"seed": [1, 2, 3]}
    folders = lora_studio.queue_variants(tmp_path, base="x", vary=vary, recipe=Recipe(), home=home)
    assert [folder.path for folder in started] == folders[:1]
    assert [run.folder.path for run in RunQueue(home).runs()] == folders[1:]
