"""A run that is not started yet, compared with the run it is made from."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from safetensors.numpy import load_file, save_file

from lora_studio.demo import base_path
from lora_studio.ledger.data import read_data
from lora_studio.ledger.next_run import base_changes, changes_to_parent, data_of
from lora_studio.models.locate import PARTS, resolve_base, weights_file
from lora_studio.models.weights_hash import folder_hash, legacy_hash, quick_hashes
from lora_studio.settings.job_specs import TrainJob
from lora_studio.settings.recipe import Recipe
from lora_studio.training.data.dataset import read_dataset
from lora_studio.workspace.job_folder import DATASET_FILE, JobFolder
from lora_studio.workspace.project import Home, Project
from tests.support.jobs import LORA, make_project, make_run


@pytest.fixture
def project(home: Home) -> Project:
    return make_project(home, images=4)


def record_data(run: JobFolder, job: TrainJob) -> None:
    """Write the images of a job as a run records them."""
    dataset = read_dataset(job.dataset, job.recipe, job.trigger_word, regularization=job.regularization)
    items = [*dataset.items, *dataset.regularization, *dataset.validation_items]
    lines = [json.dumps({"sha256": item.sha256, "caption": item.caption}) for item in items]
    (run.path / DATASET_FILE).write_text("\n".join(lines) + "\n", "utf-8")


def job_of(run: JobFolder, **changes: Any) -> TrainJob:
    job = run.job()
    assert isinstance(job, TrainJob)
    return job.model_copy(update=changes)


@pytest.mark.parametrize(
    "recipe",
    [{}, {"validation_split": 0.25}, {"caption_prefix": "art,", "enable_wildcard": True, "caption_extension": ".cap"}],
    ids=["plain", "split", "captions"],
)
def test_the_data_of_a_job_are_those_that_its_run_records(project: Project, recipe: dict[str, Any]) -> None:
    prior = project.path / "prior" / "1_thing"
    prior.mkdir(parents=True)
    Image.new("RGB", (640, 640), "red").save(prior / "a.png")
    (project.images_dir / "picture 0.cap").write_text("{ink|stamp}, cat", "utf-8")
    run = make_run(project)
    job = job_of(run, recipe=Recipe(**recipe), regularization=prior.parent)
    record_data(run, job)
    assert data_of(job) == read_data(run.path)


def test_new_and_changed_images_and_captions_are_changes_to_the_parent(project: Project, home: Home) -> None:
    run = make_run(project)
    job = job_of(run)
    record_data(run, job)
    assert changes_to_parent(job, run, job, home) == []
    Image.new("RGB", (640, 640), "green").save(project.images_dir / "new.png")
    (project.images_dir / "picture 0.png").unlink()
    (project.images_dir / "picture 1.txt").write_text("something else", "utf-8")
    now = job.model_copy(update={"network_weights": LORA})
    found = {change.name: change.text for change in changes_to_parent(now, run, job, home)}
    assert found["images"] == "1 image added, 1 removed"
    assert found["captions"] == "1 caption changed"
    assert found["network_weights"].endswith(LORA.name)


def test_a_run_without_a_record_of_its_data_has_no_such_changes(project: Project, home: Home) -> None:
    run = make_run(project)
    assert changes_to_parent(job_of(run), run, job_of(run), home) == []


def save_lora_of(run: JobFolder, **metadata: str) -> None:
    save_file(load_file(LORA), run.path / "ink.safetensors", metadata=metadata)


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_other_weights_under_the_name_of_the_base_are_a_change(
    project: Project, home: Home, tmp_path: Path, kind: str
) -> None:
    run, base = make_run(project), tmp_path / "base"
    if kind == "file":
        base = base.with_suffix(".safetensors")
        shutil.copyfile(LORA, base)
        save_lora_of(run, ss_sd_model_hash=legacy_hash(base), ss_new_sd_model_hash="0" * 64)
    else:
        shutil.copytree(base_path(), base)
        hash_ = folder_hash([weights_file(base / part) for part in PARTS])
        assert quick_hashes(resolve_base(str(base), home)).new == hash_
        save_lora_of(run, ss_new_sd_model_hash=hash_)
    assert base_changes(str(base), run, job_of(run), home) == []
    changed = base if kind == "file" else weights_file(base / "unet")
    changed.write_bytes(b"0" * 0x110000)
    (change,) = base_changes(str(base), run, job_of(run), home)
    assert change.name == "base weights"
    changed.unlink()
    assert base_changes(str(base), run, job_of(run), home) == []
