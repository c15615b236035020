"""Paths of jobs whose project has moved."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from lora_studio.errors import InputError
from lora_studio.files import write_text
from lora_studio.settings.job_specs import SweepJob, TrainJob, job_to_toml
from lora_studio.settings.subsets import Subset
from lora_studio.workspace.job_folder import JobFolder
from lora_studio.workspace.job_paths import missing_paths, move_path
from lora_studio.workspace.project import Home, Project


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    folder = tmp_path / "prior images"
    folder.mkdir()
    return folder


@pytest.fixture
def run(home: Home, outside: Path) -> JobFolder:
    """A run of a project, with regularisation images outside of it and a base that is a file."""
    project = home.create_project("ink")
    base = outside.with_name("base.safetensors")
    base.touch()
    job = TrainJob(
        dataset=project.dataset_dir,
        base=str(base),
        regularization=outside,
        subsets=[Subset(image_dir=project.images_dir)],
    )
    return JobFolder.create(project.new_run_dir("ink"), job)


def moved(run: JobFolder, target: Path) -> JobFolder:
    """Move the project of a run, and what was outside of it away."""
    project = run.path.parents[1]
    shutil.move(project, target)
    return JobFolder(target / "runs" / run.name)


def train_job(run: JobFolder) -> TrainJob:
    job = run.job()
    assert isinstance(job, TrainJob)
    return job


def test_paths_inside_the_project_are_relative_on_disk_only(run: JobFolder) -> None:
    project = Project(run.path.parents[1])
    assert str(project.path) not in run.job_file.read_text("utf-8")
    job = train_job(run)
    assert (job.dataset, job.subsets[0].image_dir) == (project.dataset_dir, project.images_dir)


def test_a_moved_project_finds_its_dataset(run: JobFolder, tmp_path: Path) -> None:
    there = moved(run, tmp_path / "elsewhere" / "stamps")
    job = train_job(there)
    assert job.dataset == tmp_path / "elsewhere" / "stamps" / "dataset"
    assert job.subsets[0].image_dir.is_dir()
    assert missing_paths(job) == {}


@pytest.mark.parametrize("old", ["/home/me/lora-studio/projects/ink", r"C:\Users\me\lora-studio\projects\ink"])
def test_absolute_paths_of_earlier_versions_are_found_in_the_project(run: JobFolder, old: str) -> None:
    separator = "\\" if "\\" in old else "/"
    dataset = Path(separator.join([old, "dataset"]))
    write_text(run.job_file, job_to_toml(TrainJob(dataset=dataset, base="SDXL 1.0")))
    assert train_job(run).dataset == run.path.parents[1] / "dataset"


def test_relative_paths_of_another_system_are_read(run: JobFolder) -> None:
    write_text(run.job_file, job_to_toml(TrainJob(dataset=Path(r"..\..\dataset"), base="SDXL 1.0")))
    assert train_job(run).dataset == run.path.parents[1] / "dataset"


def test_missing_paths_outside_of_the_project_are_recorded_once(run: JobFolder, outside: Path, tmp_path: Path) -> None:
    new = tmp_path / "there"
    new.mkdir()
    base = outside.with_name("base.safetensors")
    shutil.move(outside, new / "prior")
    shutil.move(base, new / "base.safetensors")
    assert missing_paths(train_job(run)) == {"regularization": str(outside), "base": str(base)}
    for old, found in ((outside, new / "prior"), (base, new / "base.safetensors")):
        move_path(run.path, str(old), found)
    other = JobFolder.create(Project(run.path.parents[1]).new_run_dir("ink"), TrainJob(dataset=outside, base="sdxl"))
    assert train_job(other).dataset == new / "prior"
    there = moved(run, tmp_path / "stamps")
    job = train_job(there)
    assert (job.regularization, job.base) == (new / "prior", str(new / "base.safetensors"))


def test_a_new_place_that_does_not_exist_is_refused(run: JobFolder, tmp_path: Path) -> None:
    with pytest.raises(InputError) as raised:
        move_path(run.path, "/old", tmp_path / "nowhere")
    assert raised.value.code == "moved_path"


def test_a_damaged_table_of_moved_paths_is_an_error(run: JobFolder) -> None:
    (run.path.parents[1] / "moved_paths.json").write_text("[]", "utf-8")
    with pytest.raises(InputError) as raised:
        run.job()
    assert raised.value.code == "moved_paths"


def test_sweeps_find_their_loras_in_a_moved_project(run: JobFolder, tmp_path: Path) -> None:
    project = Project(run.path.parents[1])
    lora = run.path / "ink.safetensors"
    lora.touch()
    sweep = JobFolder.create(project.new_sweep_dir(), SweepJob(loras=[lora], bases=["sdxl"], prompts=["a"]))
    shutil.move(project.path, tmp_path / "stamps")
    job = JobFolder(tmp_path / "stamps" / "sweeps" / sweep.name).job()
    assert isinstance(job, SweepJob)
    assert job.loras == [tmp_path / "stamps" / "runs" / run.name / "ink.safetensors"]


def test_jobs_outside_of_projects_keep_their_paths(tmp_path: Path) -> None:
    job = TrainJob(dataset=tmp_path / "images", base="sdxl")
    run = JobFolder.create(tmp_path / "run", job)
    assert str(tmp_path / "images") in run.job_file.read_text("utf-8")
    assert run.job() == job
