"""A training on Hugging Face Jobs, whose script and training run for real against a local server."""

from __future__ import annotations

import json
import os
import shutil
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from lora_studio import api, worker
from lora_studio.errors import InputError
from lora_studio.events import Event, StepEvent
from lora_studio.files import shipped_folder
from lora_studio.settings.hf_jobs import HfJobsSettings
from lora_studio.settings.job_specs import TrainJob
from lora_studio.settings.recipe import Recipe
from lora_studio.workspace.job_folder import JobFolder, JobState
from lora_studio.workspace.project import Home
from lora_studio.workspace.remote_run import RemoteRun
from tests.support.application import start_app, stop_app
from tests.support.forked import wait_for
from tests.support.hf_jobs_server import HfJobsServer, Job

pytestmark = pytest.mark.slow


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HfJobsServer]:
    with HfJobsServer(tmp_path / "service").running() as hub:
        hub.use_here(monkeypatch)
        yield hub


def demo_job(folder: Path) -> TrainJob:
    shutil.copytree(shipped_folder("examples") / "inkstamp", folder)
    recipe = Recipe(max_train_steps=4, save_every_n_steps=2, resolution=256)
    return TrainJob(name="ink", dataset=folder, base="demo", trigger_word="inkstamp_hc", recipe=recipe)


def test_trains_in_the_job_and_downloads_the_lora(server: HfJobsServer, tmp_path: Path, home: Home) -> None:
    run, events = tmp_path / "run", list[Event]()
    server.cuts = 1
    job = demo_job(tmp_path / "images")
    result = api.run_job(job, out=run, home=home, on_event=events.append, hf_jobs=HfJobsSettings(timeout="20m"))
    steps = [event.step for event in events if isinstance(event, StepEvent)]
    assert steps == [1, 2, 3, 4]
    assert (result.lora, result.steps, result.stopped) == (run / "ink.safetensors", 4, False)
    assert result.lora.read_bytes() == server.repos[server_repo(server)]["outputs/ink.safetensors"]
    assert JobFolder(run).status().state is JobState.DONE
    assert list((run / "checkpoints").glob("*.safetensors"))
    assert server.private == set(server.repos)
    (started,) = server.jobs.values()
    assert started.spec["timeoutSeconds"] == 1200
    assert started.spec["secrets"] == {"HF_TOKEN": server.token}
    assert server.token not in json.dumps({**started.spec, "secrets": {}}) + "".join(started.lines)
    for path in [item for item in run.rglob("*") if item.is_file()]:
        assert server.token.encode() not in path.read_bytes(), path
    for content in server.repos[server_repo(server)].values():
        assert server.token.encode() not in content


def server_repo(server: HfJobsServer) -> str:
    (repo,) = server.repos
    return repo


def test_a_refused_job_names_billing(server: HfJobsServer, tmp_path: Path, home: Home) -> None:
    server.refuse = 402
    job = demo_job(tmp_path / "images")
    with pytest.raises(InputError) as raised:
        api.run_job(job, out=tmp_path / "run", home=home, hf_jobs=HfJobsSettings())
    assert raised.value.code == "jobs_billing"


def test_a_killed_studio_follows_the_job_again_and_starts_no_second_one(
    server: HfJobsServer, tmp_path: Path, home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Worker and app are killed while the job trains; the next start of the app continues with its events."""
    for name, value in server.environment().items():
        monkeypatch.setenv(name, value)
    go_on = threading.Event()

    def script(server: HfJobsServer, job: Job) -> None:
        for number in range(1, 7):
            job.print_event(StepEvent(step=number, total=6, epoch=1, loss=0.5, lr=1e-4, seconds=0.1))
            if number == 3:
                go_on.wait(60)
        result = {"run": "run", "lora": "ink.safetensors", "steps": 6, "epochs": 1, "final_loss": 0.5, "seconds": 1.0}
        server.upload_outputs(job, {"ink.safetensors": b"weights"}, {**result, "stopped": False})
        job.stage = "COMPLETED"

    server.script = script
    project = home.create_project("ink")
    shutil.copytree(shipped_folder("examples") / "inkstamp", project.images_dir, dirs_exist_ok=True)
    job = TrainJob(name="ink", dataset=project.dataset_dir, base="demo", trigger_word="inkstamp_hc")
    folder = JobFolder.create(project.new_run_dir("ink"), job)
    RemoteRun(flavor="a10g-large", timeout="20m", key="a1b2c3").write(folder.path)
    app = start_app(tmp_path, home=home)
    worker.start(folder, home)
    wait_for(lambda: steps_of(folder) == [1, 2, 3])
    worker_pid = folder.status().pid
    assert worker_pid not in (None, os.getpid())
    os.kill(worker_pid, signal.SIGKILL)
    app.process.kill()
    app.process.wait()
    wait_for(folder.has_lost_worker)
    go_on.set()
    app = start_app(tmp_path, home=home)
    try:
        wait_for(lambda: folder.status().state is JobState.DONE)
    finally:
        stop_app(app.process)
    assert steps_of(folder) == [1, 2, 3, 4, 5, 6]
    assert (folder.path / "ink.safetensors").read_bytes() == b"weights"
    assert (len(server.jobs), len(server.repos)) == (1, 1)


def steps_of(folder: JobFolder) -> list[int]:
    """Return the steps in the events of a run."""
    return [event.step for event in folder.events()[0] if isinstance(event, StepEvent)]
