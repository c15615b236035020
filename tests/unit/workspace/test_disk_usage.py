"""Sizes of projects, and cleaning the caches."""

from __future__ import annotations

from pathlib import Path

import pytest

from lora_studio.errors import InputError
from lora_studio.settings.job_specs import TrainJob
from lora_studio.workspace.disk_usage import ProjectSize, cache_size, clean_cache
from lora_studio.workspace.job_folder import JobFolder, JobState
from lora_studio.workspace.project import Home


def fill(path: Path, size: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"x" * size)
    return path


def test_the_size_of_a_project_is_split_by_what_takes_it(home: Home) -> None:
    project = home.create_project("ink")
    own = ProjectSize.of(project).total
    fill(project.images_dir / "a.png", 100)
    fill(project.rejected_dir / "b.png", 10)
    fill(project.path / "runs" / "001-ink" / "ink.safetensors", 2000)
    fill(project.path / "sweeps" / "001" / "a.png", 300)
    assert ProjectSize.of(project) == ProjectSize(images=110, runs=2000, tests=300, total=own + 2410)


def test_cleaning_deletes_what_can_be_computed_again_but_thumbnails(home: Home) -> None:
    latents = fill(home.cache / "latents" / "a.safetensors", 500)
    found = fill(home.cache / "found_bases.json", 50)
    thumbnail = fill(home.thumbnails / "a.webp", 7)
    assert cache_size(home) == 550
    assert clean_cache(home) == 550
    assert not latents.exists()
    assert not found.exists()
    assert thumbnail.exists()
    assert clean_cache(home) == 0


def test_caches_are_kept_while_a_job_waits(home: Home) -> None:
    latents = fill(home.cache / "latents" / "a.safetensors", 500)
    project = home.create_project("ink")
    job = TrainJob.parse({"name": "a", "dataset": project.dataset_dir, "base": "embedded"})
    JobFolder.create(project.new_run_dir("a"), job).update_status(state=JobState.WAITING)
    with pytest.raises(InputError) as caught:
        clean_cache(home)
    assert caught.value.code == "busy"
    assert latents.exists()
