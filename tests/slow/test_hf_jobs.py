"""A training on Hugging Face Jobs, whose script and training run for real against a local server."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import constants

from lora_studio import api
from lora_studio.errors import InputError
from lora_studio.events import Event, StepEvent
from lora_studio.files import shipped_folder
from lora_studio.settings.hf_jobs import HfJobsSettings
from lora_studio.settings.job_specs import TrainJob
from lora_studio.settings.recipe import Recipe
from lora_studio.workspace.job_folder import JobFolder, JobState
from lora_studio.workspace.project import Home
from tests.support.hf_jobs_server import HfJobsServer

pytestmark = pytest.mark.slow


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HfJobsServer]:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    with HfJobsServer(tmp_path / "service").running() as hub:
        monkeypatch.setattr(constants, "ENDPOINT", hub.url)
        template = f"{hub.url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setenv("HF_TOKEN", hub.token)
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
