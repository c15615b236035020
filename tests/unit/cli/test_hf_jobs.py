"""The options of `train` for Hugging Face Jobs; the local server runs no job."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from lora_studio.cli.main import app
from lora_studio.remote import follow
from lora_studio.training.train import TrainResult
from lora_studio.workspace.project import Home
from tests.support.hf_jobs_server import HfJobsServer, Job


def complete(server: HfJobsServer, job: Job) -> None:
    result = TrainResult(
        run=Path("run"), lora=Path("ink.safetensors"), steps=3, epochs=1, final_loss=0.5, seconds=1, stopped=False
    )
    server.upload_outputs(job, {"ink.safetensors": b"weights"}, result.model_dump(mode="json"))
    job.stage = "COMPLETED"


@pytest.fixture(autouse=True)
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, home: Home) -> Iterator[HfJobsServer]:
    for name in ("STAGE_SECONDS", "LOOK_SECONDS"):
        monkeypatch.setattr(follow, name, 0.02)
    with HfJobsServer(tmp_path / "service", script=complete).running() as hub:
        hub.use_here(monkeypatch)
        yield hub


@pytest.fixture
def train(image_folder: Callable[..., Path]) -> Callable[..., Result]:
    """A function that calls `train` on two images with more options."""
    images = image_folder(2)

    def call(*words: str) -> Result:
        given = ["train", "--dataset", str(images), "--base", "demo", "--name", "ink", *words]
        return CliRunner().invoke(app, given)

    return call


def test_flavor_and_timeout_reach_the_service(
    train: Callable[..., Result], server: HfJobsServer, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    words = ["--on", "hf-jobs", "--flavor", "t4-small", "--timeout", "1.5h", "--out", str(run), "--json"]
    done = train(*words)
    assert done.exit_code == 0, done.stderr
    assert json.loads(done.stdout)["lora"] == str(run / "ink.safetensors")
    (job,) = server.jobs.values()
    assert (job.spec["flavor"], job.spec["timeoutSeconds"]) == ("t4-small", 5400)
    assert "$0.60 per hour, at most $0.90" in done.stderr


@pytest.mark.parametrize(
    ("words", "texts"),
    [
        (["--flavor", "a10g-large"], ["--flavor", "--on hf-jobs"]),
        (["--timeout", "3h"], ["--timeout", "--on hf-jobs"]),
        (["--on", "mars"], ["mars", "hf-jobs"]),
        (["--on", "hf-jobs", "--timeout", "3x"], ["timeout", "'3x'", "90m"]),
        (["--on", "hf-jobs", "--timeout", "0h"], ["timeout", "'0h'", "90m"]),
        (["--on", "hf-jobs", "--flavor", "A 100"], ["flavor", "'A 100'", "a10g-large"]),
        (["--on", "hf-jobs", "--flavor", "tpu-9"], ["flavor 'tpu-9'", "t4-small"]),
        (["--on", "hf-jobs", "--vary", "unet_lr=1e-4,2e-4"], ["--vary", "--on hf-jobs"]),
        (["--on", "hf-jobs", "--resume"], ["--resume", "--on hf-jobs"]),
    ],
)
def test_wrong_options_send_nothing(
    train: Callable[..., Result], server: HfJobsServer, words: list[str], texts: list[str]
) -> None:
    done = train(*words)
    assert getattr(done.exception, "exit_status", done.exit_code) == 2
    shown = f"{done.exception} {done.stderr}"
    assert [text for text in texts if text not in shown] == []
    assert (server.repos, server.jobs) == ({}, {})
