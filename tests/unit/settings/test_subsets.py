"""Subsets of a dataset, in a job and in its file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lora_studio.errors import ConfigError
from lora_studio.settings.job_specs import TrainJob, job_from_toml, job_to_toml
from lora_studio.settings.recipe import Recipe
from lora_studio.settings.subsets import Subset, common_folder


def job_of(*subsets: dict[str, Any]) -> TrainJob:
    return TrainJob.parse({"dataset": "data", "base": "sdxl", "subsets": list(subsets)})


def test_a_job_file_has_its_subsets(tmp_path: Path) -> None:
    settings = {"shuffle_caption": True, "caption_dropout_rate": 0.1}
    job = job_of(
        {"image_dir": tmp_path / "a", "num_repeats": 3, "settings": settings},
        {"image_dir": tmp_path / "b", "is_reg": True, "class_tokens": "a cat"},
    )
    assert job_from_toml(job_to_toml(job)) == job
    assert job_of({"image_dir": "a"}).with_absolute_paths().subsets[0].image_dir == Path("a").absolute()


@pytest.mark.parametrize(
    ("subset", "name"),
    [
        ({"settings": {"resolution": 512}}, "resolution"),
        ({"settings": {"keep_tokens": -1}}, "keep_tokens"),
        ({"num_repeats": 0}, "num_repeats"),
        ({"is_reg": True}, "subsets"),
    ],
)
def test_subsets_that_cannot_work_are_refused(subset: dict[str, Any], name: str) -> None:
    with pytest.raises(ConfigError, match=name):
        job_of({"image_dir": "a", **subset})


def test_settings_of_a_subset_replace_those_of_the_recipe() -> None:
    recipe = Recipe.parse({"shuffle_caption": True, "keep_tokens": 1})
    found = Subset.parse({"image_dir": "a", "settings": {"keep_tokens": "3"}}).applied_to(recipe)
    assert (found.shuffle_caption, found.keep_tokens) == (True, 3)
    assert Subset.parse({"image_dir": "a"}).applied_to(recipe) is recipe


@pytest.mark.parametrize(
    ("folders", "common"),
    [(["/x/a"], "/x/a"), (["/x/a", "/x/b"], "/x"), (["/x/a/c", "/x/b"], "/x"), (["/x", "/y"], "/")],
)
def test_the_folder_that_contains_all_subsets(folders: list[str], common: str) -> None:
    assert common_folder([Subset(image_dir=Path(folder)) for folder in folders]) == Path(common)
