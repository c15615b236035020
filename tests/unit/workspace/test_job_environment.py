"""A worker gets the tokens that its job needs, and no other secret of the environment."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lora_studio import worker
from lora_studio.settings.job_specs import AnyJob, DownloadJob, SweepJob, TrainJob
from lora_studio.workspace.job_environment import (
    UNTRUSTED,
    WITHHELD_VARIABLE,
    can_start,
    secrets_of,
    worker_environment,
)
from lora_studio.workspace.job_folder import JobFolder
from lora_studio.workspace.project import Home
from lora_studio.workspace.run_queue import RunQueue

SECRETS = {
    "HF_TOKEN": "canary",
    "WANDB_API_KEY": "canary",
    "LORA_STUDIO_AUTH": "ann:canary",
    "LORA_STUDIO_VISITOR_AUTH": "bob:canary",
    "OAUTH_CLIENT_SECRET": "canary",
    "AWS_SECRET_ACCESS_KEY": "canary",
    "DB_PASSWORD": "canary",
}
HARMLESS = {"PATH": "/bin", "HOME": "/home/x", "SSH_AUTH_SOCK": "/s", "TOKENIZERS_PARALLELISM": "0", "HF_HOME": "/h"}


def train(base: str = "embedded", **recipe: Any) -> TrainJob:
    return TrainJob.parse({"dataset": "d", "base": base, "recipe": recipe})


@pytest.mark.parametrize(
    ("job", "kept"),
    [
        (train(), set()),
        (train("SDXL 1.0"), {"HF_TOKEN"}),
        (train("some/finetune"), {"HF_TOKEN"}),
        (train("/models/base.safetensors"), set()),
        (train(log_with="wandb"), {"WANDB_API_KEY"}),
        (SweepJob(bases=["embedded"], prompts=["x"]), set()),
        (SweepJob(bases=["embedded", "some/finetune"], prompts=["x"]), {"HF_TOKEN"}),
        (DownloadJob(base="SDXL 1.0"), {"HF_TOKEN"}),
    ],
)
def test_a_worker_gets_only_the_secrets_of_its_job(job: AnyJob, kept: set[str]) -> None:
    given = worker_environment(secrets_of(job), environment=SECRETS | HARMLESS)
    assert given.keys() - {WITHHELD_VARIABLE} == kept | HARMLESS.keys()
    assert {given[name] for name in HARMLESS} == set(HARMLESS.values())


def test_the_job_of_a_visitor_gets_no_secret_and_no_hub() -> None:
    given = worker_environment({"HF_TOKEN"}, trusted=False, environment=SECRETS | HARMLESS)
    assert "canary" not in " ".join(given.values())
    assert given == HARMLESS | UNTRUSTED
    assert given["HF_HUB_DISABLE_IMPLICIT_TOKEN"] == "1"


def test_the_process_of_a_worker_is_started_with_that_environment(
    tmp_path: Path, home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    environments: list[dict[str, str]] = []

    class Process:
        pid = 1

        def __init__(self, command: list[str], **options: Any) -> None:
            environments.append(options["env"])

        def wait(self) -> int:
            return 0

    monkeypatch.setattr("subprocess.Popen", Process)
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    worker.start(JobFolder.create(tmp_path / "1", train()), home)
    worker.start(JobFolder.create(tmp_path / "2", train("some/finetune")), home)
    worker.start(JobFolder.create(tmp_path / "3", train("some/finetune")), home, trusted=False)
    kept = [{name for name in SECRETS if name in environment} for environment in environments]
    assert kept == [set(), {"HF_TOKEN"}, set()]
    assert all("PATH" in environment for environment in environments)


def test_a_worker_leaves_a_run_that_needs_more_secrets_to_the_app(
    tmp_path: Path, home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[bool] = []
    monkeypatch.setattr(worker, "start_next", lambda home, *, wait: started.append(wait))
    monkeypatch.setattr(worker, "execute", lambda *given, **options: None)
    RunQueue(home).add(JobFolder.create(home.path / "projects" / "ink" / "runs" / "001", train("some/finetune")))
    for environment in (
        worker_environment((), environment={"HF_TOKEN": "x"}),
        worker_environment((), trusted=False, environment={}),
        worker_environment((), environment={"LORA_STUDIO_AUTH": "x"}),
    ):
        monkeypatch.setenv(WITHHELD_VARIABLE, environment[WITHHELD_VARIABLE])
        worker.run_detached(tmp_path, home)
    assert started == [True]


def test_what_was_withheld_from_a_worker_stays_known_to_those_that_it_starts() -> None:
    first = worker_environment((), environment={"HF_TOKEN": "x"})
    second = worker_environment((), environment=first)
    assert not can_start(train("some/finetune"), second)
    assert can_start(train(), second)
