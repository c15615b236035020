"""Import and export of sd-scripts' dataset_config."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from lora_studio.errors import InputError
from lora_studio.interop.dataset_config import write_subsets
from lora_studio.interop.files import import_settings
from lora_studio.interop.write import export_settings
from lora_studio.settings.job_specs import TrainJob
from lora_studio.settings.recipe import Recipe
from lora_studio.settings.subsets import Subset
from tests.support.training_runs import make_images

CONFIG = """
[general]
shuffle_caption = true
caption_extension = ".txt"
keep_tokens = 1
color_aug = true

[[datasets]]
resolution = [768, 768]
batch_size = 4
keep_tokens = 2

  [[datasets.subsets]]
  image_dir = "cats"
  num_repeats = 3
  class_tokens = "ohwx cat"
  flip_aug = true

  [[datasets.subsets]]
  image_dir = "dogs"
  caption_extension = ".caption2"
  caption_dropout_rate = 0.1
  keep_tokens = 5

[[datasets]]
resolution = 1024
batch_size = 4

  [[datasets.subsets]]
  image_dir = "prior"
  is_reg = true
  class_tokens = "cat"

  [[datasets.subsets]]
  image_dir = "elsewhere"
"""


def write(tmp_path: Path, text: str = CONFIG) -> Path:
    for name in ("cats", "dogs", "prior"):
        (tmp_path / name).mkdir()
    file = tmp_path / "dataset.toml"
    file.write_text(text)
    return file


def test_subsets_are_read_with_what_they_share(tmp_path: Path) -> None:
    found = import_settings(write(tmp_path))
    assert found.recipe == {"shuffle_caption": True, "batch_size": 4, "resolution": 768}
    job = TrainJob.parse({"base": "sdxl", "recipe": found.recipe, **found.job})
    cats, dogs, prior = job.subsets
    assert job.dataset == tmp_path
    assert (cats.image_dir, cats.num_repeats, cats.class_tokens) == (tmp_path / "cats", 3, "ohwx cat")
    assert cats.settings == {"caption_extension": "", "keep_tokens": 2, "flip_aug": True}
    assert dogs.settings == {"caption_extension": ".caption2", "keep_tokens": 5, "caption_dropout_rate": 0.1}
    assert (prior.is_reg, prior.class_tokens, prior.settings["keep_tokens"]) == (True, "cat", 1)
    assert {item.name for item in found.left_out if item.matters} == {"color_aug", "resolution", "image_dir"}


def test_a_config_names_its_dataset_config(tmp_path: Path) -> None:
    write(tmp_path)
    config = tmp_path / "config.toml"
    config.write_text("unet_lr = 1e-4\nkeep_tokens = 7\ntrain_data_dir = 'nowhere'\ndataset_config = 'dataset.toml'")
    found = import_settings(config)
    assert (found.recipe["unet_lr"], found.recipe["batch_size"], found.recipe["keep_tokens"]) == (1e-4, 4, 7)
    assert len(found.job["subsets"]) == 3
    assert "dataset" not in {item.name for item in found.left_out}


def test_a_missing_dataset_config_is_listed(tmp_path: Path) -> None:
    config = tmp_path / "config.toml"
    config.write_text("unet_lr = 1e-4\ndataset_config = 'dataset.toml'")
    assert "dataset_config" in {item.name for item in import_settings(config).left_out}


@pytest.mark.parametrize("text", ["datasets = []", "datasets = [1]", "[[datasets]]\nresolution = 512"])
def test_a_config_without_subsets_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(InputError) as caught:
        import_settings(write(tmp_path, text))
    assert caught.value.code == "no_subsets"


def test_written_subsets_are_read_again(tmp_path: Path) -> None:
    first = import_settings(write(tmp_path))
    subsets = [Subset.parse(subset) for subset in first.job["subsets"]]
    (tmp_path / "again.toml").write_text(write_subsets(subsets, Recipe()))
    found = import_settings(tmp_path / "again.toml")
    assert [Subset.parse(subset) for subset in found.job["subsets"]] == subsets


def test_export_writes_subsets_where_folder_names_do_not_say_the_repeats(tmp_path: Path) -> None:
    images = make_images(tmp_path / "data" / "5_cat", [(64, 64)]).parent
    plain = export_settings(Recipe(), tmp_path / "a.toml", dataset=images)
    assert plain.dataset_config is None
    assert tomllib.loads(plain.file.read_text())["train_data_dir"] == str(images)
    done = export_settings(Recipe(repeats=2), tmp_path / "b.toml", dataset=images, trigger_word="ohwx")
    assert done.dataset_config is not None
    assert "train_data_dir" not in tomllib.loads(done.file.read_text())
    found = import_settings(done.file)
    (subset,) = found.job["subsets"]
    assert (subset["image_dir"], subset["num_repeats"]) == (str(images / "5_cat"), 2)
    assert subset["class_tokens"] == "ohwx"
