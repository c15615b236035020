"""Following a job of Hugging Face Jobs that is cancelled, here or on the service, and access without a token."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest

from lora_studio.errors import InputError, JobError
from lora_studio.event_recorder import stopped_event
from lora_studio.events import Event
from lora_studio.remote import follow
from lora_studio.remote.service import JobsService
from lora_studio.settings.job_specs import TrainJob
from lora_studio.workspace.job_folder import JobFolder
from lora_studio.workspace.project import Home
from lora_studio.workspace.remote_run import RemoteRun


class CancelledService:
    """A service whose job runs until it is cancelled, and then has no files."""

    def __init__(self, stage: str) -> None:
        self.stage = stage
        self.cancelled: list[str] = []

    def inspect(self, job_id: str) -> Any:
        return SimpleNamespace(status=SimpleNamespace(stage=self.stage, message=None), durations=None)

    def logs(self, job_id: str) -> Iterator[str]:
        yield "Installing packages"

    def without_token(self, line: str) -> str:
        return line

    def cancel(self, job_id: str) -> None:
        self.cancelled.append(job_id)
        self.stage = "CANCELED"


@pytest.fixture
def folder(tmp_path: Path) -> JobFolder:
    job = TrainJob(name="ink", dataset=tmp_path / "images", base="demo")
    found = JobFolder.create(tmp_path / "run", job)
    RemoteRun(flavor="a10g-large", timeout="3h", key="key", job_id="job-1", url="https://jobs/1").write(found.path)
    return found


@pytest.fixture
def service(monkeypatch: pytest.MonkeyPatch) -> CancelledService:
    found = CancelledService("RUNNING")
    monkeypatch.setattr(JobsService, "connect", lambda: found)
    monkeypatch.setattr(follow, "download_outputs", lambda *_: None)
    return found


def train(folder: JobFolder, home: Home, *, stop: bool) -> Any:
    events: list[Event] = []
    job = folder.job()
    assert isinstance(job, TrainJob)
    return follow.train_on_hf_jobs(job, folder, home=home, report=events.append, should_stop=lambda: stop)


def test_a_stop_cancels_the_job_and_offers_no_resume(folder: JobFolder, service: CancelledService, home: Home) -> None:
    result = train(folder, home, stop=True)
    assert (service.cancelled, result.stopped, result.lora) == (["job-1"], True, None)
    remedy = stopped_event(result, folder).remedy
    assert "start a new run" in remedy
    assert "Resume" not in remedy


def test_a_job_cancelled_on_the_service_fails_with_its_address(
    folder: JobFolder, service: CancelledService, home: Home
) -> None:
    service.stage = "CANCELED"
    with pytest.raises(JobError, match="https://jobs/1") as raised:
        train(folder, home, stop=False)
    assert raised.value.code == "jobs_cancelled"


def test_without_a_token_nothing_is_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: None)
    with pytest.raises(InputError, match="no token") as raised:
        JobsService.connect()
    assert "hf auth login" in raised.value.remedy
