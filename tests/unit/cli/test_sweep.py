"""`sweep`: the options of a new grid, and --resume of a stopped one."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from lora_studio import api
from lora_studio.cli.main import app
from lora_studio.errors import InputError
from lora_studio.settings.choices import Sampler
from lora_studio.settings.job_specs import AnyJob, SweepJob, TagJob, TrainJob
from lora_studio.workspace.job_folder import JobFolder

CELL = SimpleNamespace(path=Path("out/cells/a.png"))


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The jobs that were started and the folders that were resumed; none is drawn, each stops after a cell."""
    found: list[Any] = []
    result = SimpleNamespace(stopped=True, grid=None, cells=[CELL])
    monkeypatch.setattr(api, "run_job", lambda job, **options: found.append(job) or result)
    monkeypatch.setattr(api, "resume", lambda folder, **options: found.append(Path(folder)) or result)
    return found


def call(*words: object) -> Result:
    return CliRunner().invoke(app, [str(word) for word in words])


def error_of(*words: object) -> InputError:
    error = call(*words).exception
    assert isinstance(error, InputError), error
    return error


def make_job(folder: Path, job: AnyJob) -> Path:
    return JobFolder.create(folder, job).path


def test_a_stopped_sweep_is_resumed_as_its_message_says(ran: list[Any], tmp_path: Path) -> None:
    folder = make_job(tmp_path / "grid", SweepJob.parse({"bases": ["embedded"], "prompts": ["a"]}))
    stopped = call("sweep", "--base", "embedded", "--prompt", "a", "--out", tmp_path / "new")
    assert "sweep --resume --out" in stopped.output
    assert call("sweep", "--resume", "--out", folder).exit_code == 0
    assert ran[1] == folder


def test_resume_refuses_what_it_cannot_do(ran: list[Any], tmp_path: Path) -> None:
    folder = make_job(tmp_path / "grid", SweepJob.parse({"bases": ["embedded"], "prompts": ["a"]}))
    run = make_job(tmp_path / "run", TrainJob.parse({"dataset": tmp_path, "base": "embedded"}))
    tags = make_job(tmp_path / "tags", TagJob.parse({"dataset": tmp_path, "tagger": "demo"}))
    assert error_of("sweep", "--resume").code == "usage"
    assert error_of("sweep", "--resume", "--out", folder, "--steps", "3").code == "usage"
    assert error_of("sweep", "--resume", "--out", tmp_path / "gone").code == "no_job"
    for command, other, remedy in (
        ("train", folder, f"sweep --resume --out {folder}"),
        ("sweep", run, f"train --resume --out {run}"),
        ("sweep", tags, "tag"),
    ):
        error = error_of(command, "--resume", "--out", other)
        assert error.code == "job_kind"
        assert remedy in error.remedy
    assert not ran


def test_a_new_sweep_needs_bases_and_prompts(ran: list[Any]) -> None:
    error = error_of("sweep", "a.safetensors")
    assert [problem.split()[0] for problem in getattr(error, "problems", [])] == ["--base", "--prompt"]


def test_every_setting_of_the_images_has_an_option(ran: list[Any]) -> None:
    words = ["--width", "832", "--height", "1216", "--clip-skip", "1", "--seeds", "1:3", "--sampler", "euler_a"]
    words += ["--quality-tags", "--rows", "seed", "--columns", "lora", "--strengths", "0:1:0.5"]
    assert call("sweep", "a.safetensors", "--base", "sdxl", "--prompt", "p", *words).exit_code == 0
    [job] = ran
    assert (job.width, job.height, job.clip_skip, job.seeds) == (832, 1216, 1, [1, 2, 3])
    assert (job.sampler, job.quality_tags, job.rows, job.columns) == (Sampler.EULER_A, True, "seed", "lora")
    assert call("sweep", "a.safetensors", "--base", "sdxl", "--prompt", "p", "--seed", "5").exit_code == 0
    assert ran[1].seeds == [5]
