"""Failures of a training on Hugging Face Jobs, against a local server with the real client; no job runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from huggingface_hub import file_download

from lora_studio import api
from lora_studio.errors import InputError, JobError, StudioError
from lora_studio.events import Event, FailedEvent, PhaseEvent, StepEvent
from lora_studio.remote import follow
from lora_studio.remote.outputs import DOWNLOADS
from lora_studio.remote.service import JobsService
from lora_studio.settings.hf_jobs import HfJobsSettings
from lora_studio.settings.job_specs import TrainJob
from lora_studio.training.train import TrainResult
from lora_studio.workspace.job_folder import JobFolder, JobState
from lora_studio.workspace.project import Home
from lora_studio.workspace.remote_run import RemoteRun
from tests.support.hf_jobs_server import HfJobsServer, Job

LORA = b"weights" * 1000
CHECKPOINT = b"epoch 1" * 900


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HfJobsServer]:
    for name in ("STAGE_SECONDS", "LOOK_SECONDS", "FIRST_WAIT_SECONDS", "MAX_WAIT_SECONDS"):
        monkeypatch.setattr(follow, name, 0.02)
    with HfJobsServer(tmp_path / "service", script=complete).running() as hub:
        hub.use_here(monkeypatch)
        yield hub


@pytest.fixture
def run(tmp_path: Path, image_folder: Callable[..., Path], home: Home) -> Callable[..., TrainResult]:
    """A function that trains on the service, in the folder `run`."""
    job = TrainJob(name="ink", dataset=image_folder(2), base="demo")

    def train(**options: object) -> TrainResult:
        settings = HfJobsSettings(timeout="20m")
        return api.run_job(job, out=tmp_path / "run", home=home, hf_jobs=settings, **options)  # type: ignore[arg-type,no-any-return]

    return train


def step(number: int) -> StepEvent:
    return StepEvent(step=number, total=3, epoch=1, loss=0.5, lr=1e-4, seconds=0.1)


def complete(server: HfJobsServer, job: Job) -> None:
    """Take three steps, and upload a LoRA."""
    for number in (1, 2, 3):
        job.print_event(step(number))
    result = TrainResult(
        run=Path("run"), lora=Path("ink.safetensors"), steps=3, epochs=1, final_loss=0.5, seconds=1, stopped=False
    )
    files = {"ink.safetensors": LORA, "checkpoints/ink-000001.safetensors": CHECKPOINT}
    server.upload_outputs(job, files, result.model_dump(mode="json"))
    job.stage = "COMPLETED"


def fail(stage: str, message: str | None = None, seconds: int = 7) -> Callable[[HfJobsServer, Job], None]:
    """Return a script that ends a job after a step and a checkpoint, without a result."""

    def script(server: HfJobsServer, job: Job) -> None:
        job.print_event(step(1))
        job.lines.append("Traceback: the disk is gone")
        server.upload_outputs(job, {"checkpoints/ink-000001.safetensors": CHECKPOINT})
        job.running_seconds, job.message, job.stage = seconds, message, stage

    return script


def files_in(folder: Path) -> set[str]:
    """Return the files of a run that were downloaded."""
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*.safetensors")}


def steps_of(folder: Path) -> list[int]:
    return [event.step for event in JobFolder(folder).events()[0] if isinstance(event, StepEvent)]


def failure(call: Callable[[], object], code: str, *texts: str) -> StudioError:
    """Return the error of a call, which has this code, these texts and a remedy."""
    with pytest.raises(StudioError) as raised:
        call()
    assert raised.value.code == code, raised.value
    assert [text for text in texts if text not in f"{raised.value.message} {raised.value.remedy}"] == []
    assert raised.value.remedy
    return raised.value


def test_a_refused_token_names_where_it_is_set(
    server: HfJobsServer, run: Callable[..., TrainResult], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    error = failure(run, "jobs_token", "401", "token", "HF_TOKEN", "settings/tokens")
    assert isinstance(error, InputError)
    assert "hf_wrong" not in f"{error.message} {error.remedy}"
    assert (server.repos, server.jobs) == ({}, {})


def test_a_token_that_may_only_read_is_refused_before_anything_is_sent(
    server: HfJobsServer, run: Callable[..., TrainResult]
) -> None:
    server.role = "read"
    failure(run, "jobs_refused", "read", "write access")
    assert (server.repos, server.jobs) == ({}, {})


@pytest.mark.parametrize(("status", "code", "text"), [(402, "jobs_billing", "billing"), (403, "jobs_refused", "right")])
def test_a_job_that_is_not_allowed_names_flavor_and_remedy(
    server: HfJobsServer, run: Callable[..., TrainResult], tmp_path: Path, status: int, code: str, text: str
) -> None:
    server.refuse = status
    failure(run, code, str(status), "a10g-large", text)
    folder = JobFolder(tmp_path / "run")
    assert (folder.status().state, folder.status().code) == (JobState.FAILED, code)
    server.refuse = None
    assert api.resume(folder.path).steps == 3
    assert len(server.jobs) == len(server.repos) == 1


def test_a_repository_that_cannot_be_created_is_named(server: HfJobsServer, run: Callable[..., TrainResult]) -> None:
    server.refuse_repo = 403
    failure(run, "jobs_refused", "repository ann/lora-studio-", "403", "write access")
    assert server.jobs == {}


def test_a_failed_job_keeps_its_checkpoint_and_its_output(
    server: HfJobsServer, run: Callable[..., TrainResult], tmp_path: Path
) -> None:
    server.script = fail("ERROR", "exit code 1")
    failure(run, "jobs_failed", "a10g-large", "ERROR", "exit code 1", "worker.log", "checkpoints")
    assert files_in(tmp_path / "run") == {"checkpoints/ink-000001.safetensors"}
    assert "the disk is gone" in (tmp_path / "run" / "worker.log").read_text("utf-8")


def test_a_failed_training_has_its_own_error(server: HfJobsServer, run: Callable[..., TrainResult]) -> None:
    def script(server: HfJobsServer, job: Job) -> None:
        job.print_event(FailedEvent(message="Out of memory.", remedy="Set batch_size to 1.", code="out_of_memory"))
        job.stage = "ERROR"

    server.script = script
    failure(run, "out_of_memory", "Out of memory", "batch_size")


@pytest.mark.parametrize(("message", "seconds"), [("Job timeout", 3), (None, 1200)])
def test_the_time_limit_names_the_setting(
    server: HfJobsServer, run: Callable[..., TrainResult], tmp_path: Path, message: str | None, seconds: int
) -> None:
    server.script = fail("ERROR", message, seconds)
    failure(run, "jobs_timeout", "timeout is 20m", "--timeout", "--network-weights")
    assert files_in(tmp_path / "run") == {"checkpoints/ink-000001.safetensors"}


def test_a_damaged_file_is_not_kept_and_a_resume_downloads_it_again(
    server: HfJobsServer, run: Callable[..., TrainResult], tmp_path: Path
) -> None:
    def script(server: HfJobsServer, job: Job) -> None:
        complete(server, job)
        server.repos[job.repo]["outputs/ink.safetensors"] = LORA[:-1] + b"!"

    server.script = script
    failure(run, "jobs_output", "ink.safetensors", "SHA-256", "Resume")
    folder = tmp_path / "run"
    assert "ink.safetensors" not in files_in(folder)
    assert not (folder / DOWNLOADS).exists()
    assert JobFolder(folder).status().state is JobState.FAILED
    server.repos[server.jobs["0" * 24].repo]["outputs/ink.safetensors"] = LORA
    result = api.resume(folder)
    assert result.lora.read_bytes() == LORA
    assert (len(server.jobs), steps_of(folder)) == (1, [1, 2, 3])


def test_a_download_that_breaks_once_is_repeated(server: HfJobsServer, run: Callable[..., TrainResult]) -> None:
    server.cut_downloads = 1
    result = run()
    assert result.lora is not None
    assert result.lora.read_bytes() == LORA


def test_an_incomplete_download_is_not_kept(
    server: HfJobsServer, run: Callable[..., TrainResult], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(file_download, "time", SimpleNamespace(sleep=lambda seconds: None))
    server.cut_downloads = 1000
    failure(run, "jobs_unreachable", "resume", "ink.safetensors")
    assert files_in(tmp_path / "run") == set()
    assert not (tmp_path / "run" / DOWNLOADS).exists()
    server.cut_downloads = 0
    assert api.resume(tmp_path / "run").lora.read_bytes() == LORA
    assert len(server.jobs) == 1


def test_a_lost_connection_is_tried_again(
    server: HfJobsServer, run: Callable[..., TrainResult], tmp_path: Path
) -> None:
    def script(server: HfJobsServer, job: Job) -> None:
        server.failures, server.cuts = 5, 1
        complete(server, job)

    server.script = script
    events: list[Event] = []
    assert run(on_event=events.append).steps == 3
    phases = [event.message for event in events if isinstance(event, PhaseEvent)]
    assert any("No connection" in message for message in phases)
    assert any("Following" in message for message in phases)
    assert steps_of(tmp_path / "run") == [1, 2, 3]
    assert len(server.jobs) == 1


def test_waits_between_attempts_grow_to_a_limit(monkeypatch: pytest.MonkeyPatch, home: Home, tmp_path: Path) -> None:
    folder = JobFolder.create(tmp_path / "run", TrainJob(name="ink", dataset=tmp_path, base="demo"))
    remote = RemoteRun(flavor="a10g-large", timeout="3h", key="key", job_id="job-1")

    class Away(JobsService):
        def inspect(self, job_id: str) -> object:  # type: ignore[override]
            raise JobError("The job cannot be reached.", "Resume the run.", code="jobs_unreachable")

    waits: list[float] = []
    follower = follow._Follower(Away(None, "ann", "hf"), folder, remote, lambda event: None, lambda: False)  # type: ignore[arg-type]
    monkeypatch.setattr(follow._Follower, "_pause", lambda self, seconds: waits.append(seconds))
    failure(follower.follow, "jobs_unreachable")
    assert waits[:3] == [2, 4, 8]
    assert max(waits) == 120
    assert sum(waits) > 3600


def test_a_lost_job_is_found_again_and_not_started_twice(
    server: HfJobsServer, run: Callable[..., TrainResult], tmp_path: Path
) -> None:
    """The process ended after the service had started the job, and before its number was recorded."""
    run()
    remote = RemoteRun.read(tmp_path / "run")
    remote.model_copy(update={"job_id": "", "events": 0, "log_bytes": 0}).write(tmp_path / "run")
    (tmp_path / "run" / "result.json").unlink()
    assert api.resume(tmp_path / "run").steps == 3
    assert (len(server.jobs), steps_of(tmp_path / "run")) == (1, [1, 2, 3])


def test_a_stop_without_a_connection_cancels_the_job_once_there_is_one(
    server: HfJobsServer, run: Callable[..., TrainResult], tmp_path: Path
) -> None:
    def script(server: HfJobsServer, job: Job) -> None:
        job.print_event(step(1))
        server.failures = 3
        JobFolder(tmp_path / "run").request_stop()

    server.script = script
    result = run()
    assert (result.stopped, result.steps) == (True, 1)
    assert [job.stage for job in server.jobs.values()] == ["CANCELED"]
