"""The Python functions against the job models: their defaults, and the jobs that they run."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import lora_studio
from lora_studio import api
from lora_studio.errors import InputError
from lora_studio.settings.declare import Settings
from lora_studio.settings.job_specs import AnyJob, SweepJob, TagJob, TrainJob
from lora_studio.settings.recipe import Recipe
from lora_studio.workspace.job_folder import JobFolder, JobStatus
from lora_studio.workspace.project import Home, ProjectInfo
from tests.support.jobs import running_status


@pytest.fixture
def folders(home: Home, monkeypatch: pytest.MonkeyPatch) -> list[JobFolder]:
    """The folders of the jobs that functions start, which do not run."""
    started: list[JobFolder] = []
    monkeypatch.setattr(api.jobs, "execute", lambda folder, **options: started.append(folder))
    return started


@pytest.mark.parametrize(
    ("function", "model"), [(lora_studio.tag, TagJob), (lora_studio.train, TrainJob), (lora_studio.sweep, SweepJob)]
)
def test_arguments_have_the_models_defaults(function: Callable[..., Any], model: type[Settings]) -> None:
    parameters = inspect.signature(function).parameters
    own = {"out", "home", "on_event"} | ({"kind"} if model is TrainJob else set())
    own |= {"seed"} if model is SweepJob else set()  # one of `seeds`
    assert {name for name in parameters if name == "kind" or name not in model.model_fields} == own
    assert model.model_fields.keys() - parameters.keys() <= {
        "also",  # further taggers
        "continues",  # by continue_training
    }
    for name, field in model.model_fields.items():
        if name in parameters and field.default_factory is None:
            default = inspect.Parameter.empty if field.is_required() else field.default
            given = parameters[name].default
            assert given == default or (given, default) == ((), []), name


def test_plan_has_the_defaults_of_a_new_project() -> None:
    parameters = inspect.signature(lora_studio.plan).parameters
    for name in ("kind", "base", "vram_gib"):
        assert parameters[name].default == ProjectInfo.model_fields[name].default


def test_functions_run_the_job_that_their_arguments_describe(folders: list[JobFolder], home: Home) -> None:
    lora_studio.tag("images", tagger=["wd14", "blip"], threshold=0.5, exclude_tags=("a", "b"))
    lora_studio.train("images", base="sdxl", name="saria", recipe=Recipe(), network_weights="start.safetensors")
    lora_studio.sweep(["a.safetensors"], bases=["sdxl"], prompts=["p"], strengths="0,1", width=512)
    here = Path.cwd()
    jobs: list[AnyJob] = [
        TagJob.parse(
            {
                "dataset": here / "images",
                "tagger": "wd14",
                "also": ["blip"],
                "threshold": 0.5,
                "exclude_tags": ["a", "b"],
            }
        ),
        TrainJob.parse(
            {
                "dataset": here / "images",
                "base": "sdxl",
                "name": "saria",
                "network_weights": here / "start.safetensors",
            }
        ),
        SweepJob.parse(
            {"loras": [here / "a.safetensors"], "bases": ["sdxl"], "prompts": ["p"], "strengths": [0, 1], "width": 512}
        ),
    ]
    assert [folder.job() for folder in folders] == jobs
    assert [folder.path.relative_to(home.path) for folder in folders] == [
        Path("tags/001"),
        Path("runs/001-saria"),
        Path("sweeps/001"),
    ]


def test_none_leaves_the_models_default(folders: list[JobFolder], tmp_path: Path) -> None:
    untyped: Any = lora_studio.tag
    untyped("~/images", tagger="wd14", threshold=None, out=tmp_path / "job")
    assert folders[0].path == tmp_path / "job"
    assert folders[0].job() == TagJob(dataset=Path.home() / "images", tagger="wd14")


def test_samples_can_be_requested_of_a_running_training_alone(tmp_path: Path) -> None:
    def code_of(folder: JobFolder) -> str:
        with pytest.raises(InputError) as caught:
            lora_studio.request_samples(folder.path)
        assert not folder.samples_requested()
        return caught.value.code

    job = {"dataset": tmp_path, "base": "sdxl"}
    folder = JobFolder.create(tmp_path / "run", TrainJob.parse(job))
    assert code_of(folder) == "not_running"
    folder.set_status(JobStatus.model_validate(running_status()))
    lora_studio.request_samples(folder.path)
    lora_studio.request_save(folder.path)
    assert folder.samples_requested()
    assert folder.save_requested()
    silent = JobFolder.create(tmp_path / "silent", TrainJob.parse(job | {"recipe": {"sample_prompts": ["# none"]}}))
    silent.set_status(JobStatus.model_validate(running_status()))
    assert code_of(silent) == "no_sample_prompts"
    tagging = JobFolder.create(tmp_path / "tagging", TagJob.parse({"dataset": tmp_path, "tagger": "demo"}))
    tagging.set_status(JobStatus.model_validate(running_status()))
    assert code_of(tagging) == "not_running"
    assert code_of(JobFolder(tmp_path)) == "no_job"


def test_a_resume_asks_for_missing_folders_and_remembers_them(folders: list[JobFolder], tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    run = JobFolder.create(tmp_path / "run", TrainJob(dataset=tmp_path / "images", base="sdxl"))
    (tmp_path / "images").rename(tmp_path / "moved")
    with pytest.raises(InputError) as raised:
        lora_studio.resume(run.path)
    assert raised.value.code == "moved"
    with pytest.raises(InputError) as raised:
        lora_studio.resume(run.path, moved={"dataset": tmp_path / "nowhere"})
    assert raised.value.code == "moved_path"
    lora_studio.resume(run.path, moved={"dataset": tmp_path / "moved", "base": "other"})
    lora_studio.resume(run.path)
    assert folders == [run, run]
    job = run.job()
    assert isinstance(job, TrainJob)
    assert (job.dataset, job.base) == (tmp_path / "moved", "sdxl")
