"""Preflight: all errors of a job are reported at once, before a model is loaded or a file is written."""

from __future__ import annotations

import json
import shutil
from collections import namedtuple
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from lora_studio.errors import ConfigError
from lora_studio.models import compatibility
from lora_studio.models.locate import SDXL_CONFIG, SDXL_KEY, Source, read_base_config
from lora_studio.settings.job_specs import TrainJob
from lora_studio.training.preflight import PreflightResult, count_lora_parameters, preflight
from lora_studio.workspace.job_folder import JobFolder
from lora_studio.workspace.project import Home
from tests.support.training_runs import make_images, make_job, recipe_of

Usage = namedtuple("Usage", "total used free")


def check(job: TrainJob, home: Home) -> PreflightResult:
    return preflight(job, JobFolder(home.path / "run"), home, on_progress=lambda message, done, total: None)


def errors_of(job: TrainJob, home: Home) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        check(job, home)
    assert not (home.path / "cache").exists()
    return caught.value.problems


@pytest.fixture
def images(tmp_path: Path) -> Path:
    return make_images(tmp_path / "images", [(64, 64)] * 3)


def test_a_valid_job_passes(tiny_base: Path, images: Path, home: Home) -> None:
    checked = check(make_job(tiny_base, images), home)
    assert [item.path.name for item in checked.dataset.items] == ["0.png", "1.png", "2.png"]
    assert (checked.counts.steps_per_epoch, checked.counts.total_steps) == (2, 4)
    assert checked.prediction_type == "epsilon"


def test_reports_all_errors_at_once(tmp_path: Path, home: Home) -> None:
    (tmp_path / "empty").mkdir()
    wrong = {"optimizer": "Prodigy", "unet_lr": 1, "text_encoder_lr": 0.5, "sample_prompts": ["a --w wide --cn x.png"]}
    found = errors_of(make_job("no such base", tmp_path / "empty", **wrong), home)
    assert len(found) == 5
    for word in (str(tmp_path / "empty"), "no such base", "Prodigy", "--w is 'wide'", "--cn"):
        assert any(word in error for error in found)


def test_names_a_missing_dataset_folder(tiny_base: Path, tmp_path: Path, home: Home) -> None:
    (error,) = errors_of(make_job(tiny_base, tmp_path / "nowhere"), home)
    assert str(tmp_path / "nowhere") in error


def test_names_the_first_unreadable_images_and_counts_the_rest(tiny_base: Path, images: Path, home: Home) -> None:
    for number in range(8):
        (images / f"broken {number}.png").write_text("no picture", "utf-8")
    found = errors_of(make_job(tiny_base, images), home)
    assert len(found) == 6
    assert "broken 0.png" in found[0]
    assert "3 more images" in found[-1]


def test_decodes_images_only_to_report_damage_beside_another_error(tiny_base: Path, images: Path, home: Home) -> None:
    damaged = images / "1.png"
    damaged.write_bytes(damaged.read_bytes()[:-40])
    check(make_job(tiny_base, images), home)  # found when the images are encoded
    image_error, other = errors_of(make_job(tiny_base, images, clip_skip=4), home)
    assert damaged.name in image_error
    assert "clip_skip" in other


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"prediction_type": "v_prediction"}, "prediction_type is v_prediction"),
        ({"clip_skip": 4}, "clip_skip is 4"),
        ({"zero_terminal_snr": "on"}, "ero terminal SNR"),
        ({"optimizer_args": "betas=0.9,0.99 foo=1"}, "AdamW has no argument foo"),
        ({"lr_scheduler": "adafactor"}, "lr_scheduler is adafactor"),
        ({"mixed_precision": "fp16"}, "mixed_precision is fp16"),
    ],
)
def test_settings_that_base_or_device_do_not_support_are_errors(
    tiny_base: Path, images: Path, home: Home, changes: dict[str, Any], word: str
) -> None:
    (error,) = errors_of(make_job(tiny_base, images, **changes), home)
    assert word in error


def with_regularization(job: TrainJob, folder: Path) -> TrainJob:
    job.regularization = folder
    return job


def test_missing_empty_or_same_regularisation_folders_are_errors(tiny_base: Path, images: Path, home: Home) -> None:
    (images.parent / "empty").mkdir()
    for folder, words in (
        (images.parent / "nowhere", str(images.parent / "nowhere")),
        (images.parent / "empty", "empty contains no images"),
        (images.parent / "empty" / ".." / "images", "the dataset's own folder"),
    ):
        (error,) = errors_of(with_regularization(make_job(tiny_base, images), folder), home)
        assert words in error
    both = errors_of(with_regularization(make_job(tiny_base, images / "no"), images / "none"), home)
    assert len(both) == 2


def test_missing_masks_and_masks_of_another_shape_are_errors(tiny_base: Path, images: Path, home: Home) -> None:
    for kind, words in (("files", "no image has a mask"), ("alpha", "transparency")):
        (error,) = errors_of(make_job(tiny_base, images, masked_loss=kind), home)
        assert words in error
    Image.new("L", (64, 64), 255).save(images / "1-masklabel.png")
    assert check(make_job(tiny_base, images, masked_loss="files"), home)
    Image.new("L", (64, 32), 255).save(images / "1-masklabel.png")
    (error,) = errors_of(make_job(tiny_base, images, masked_loss="files"), home)
    assert "64 x 32" in error


def test_too_few_distinct_images_for_a_validation_split_is_an_error(tiny_base: Path, images: Path, home: Home) -> None:
    for name in ("1.png", "2.png"):
        shutil.copy(images / "0.png", images / name)
    (error,) = errors_of(make_job(tiny_base, images, validation_split=0.3), home)
    assert "validation_split is 0.3, but 3 images" in error


def with_scheduler(base: Path, folder: Path, **scheduler: Any) -> Path:
    """Copy a base and change its scheduler config."""
    shutil.copytree(base, folder)
    file = folder / "scheduler" / "scheduler_config.json"
    file.write_text(json.dumps(json.loads(file.read_text("utf-8")) | scheduler), "utf-8")
    return folder


def test_zero_terminal_snr_is_read_from_the_base_and_can_be_set(
    tiny_base: Path, tmp_path: Path, images: Path, home: Home
) -> None:
    v_pred = with_scheduler(tiny_base, tmp_path / "v", prediction_type="v_prediction", rescale_betas_zero_snr=True)
    assert not check(make_job(tiny_base, images), home).zero_terminal_snr
    assert check(make_job(v_pred, images), home).zero_terminal_snr
    assert not check(make_job(v_pred, images, zero_terminal_snr="off"), home).zero_terminal_snr
    plain = with_scheduler(tiny_base, tmp_path / "plain", prediction_type="v_prediction")
    assert check(make_job(plain, images, zero_terminal_snr="on"), home).zero_terminal_snr
    odd = with_scheduler(tiny_base, tmp_path / "odd", rescale_betas_zero_snr=True)
    (error,) = errors_of(make_job(odd, images), home)
    assert "Set zero_terminal_snr to off" in error
    assert not check(make_job(odd, images, zero_terminal_snr="off"), home).zero_terminal_snr


def test_min_timestep_beyond_the_bases_timesteps_is_an_error(
    tiny_base: Path, tmp_path: Path, images: Path, home: Home
) -> None:
    short = with_scheduler(tiny_base, tmp_path / "short", num_train_timesteps=100)
    (error,) = errors_of(make_job(short, images, min_timestep=100), home)
    assert "min_timestep is 100" in error


def test_asks_for_the_prediction_type_if_only_the_file_name_says_v_prediction(
    images: Path, tmp_path: Path, home: Home
) -> None:
    file = tmp_path / "noobaiXL_vPred10.safetensors"
    save_file({SDXL_KEY: torch.zeros(1)}, file)
    (error,) = errors_of(make_job(file, images), home)
    assert "prediction_type is auto" in error
    assert file.name in error
    assert check(make_job(file, images, prediction_type="epsilon"), home).prediction_type == "epsilon"


@pytest.mark.parametrize(("vae", "word"), [("nowhere", "vae: "), ("my.ckpt", "pickled")])
def test_reports_an_invalid_vae_with_the_other_errors(
    tiny_base: Path, tmp_path: Path, home: Home, vae: str, word: str
) -> None:
    job = make_job(tiny_base, tmp_path / "no images").model_copy(update={"vae": vae})
    found = errors_of(job, home)
    assert len(found) == 2
    assert word in found[1]


def test_incompatible_libraries_are_reported_with_their_versions(
    tiny_base: Path, images: Path, home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stale(*arguments: Any, **options: Any) -> None:
        raise ImportError("cannot import name 'HybridCache' from 'transformers'")

    monkeypatch.setattr(compatibility, "inject_adapter_in_model", stale)
    (error,) = errors_of(make_job(tiny_base, images), home)
    assert "HybridCache" in error
    assert "requirements.txt" in error
    for name in ("transformers", "peft"):
        assert f"{name} {version(name)}" in error


def test_an_incomplete_base_is_an_error(tiny_base: Path, tmp_path: Path, images: Path, home: Home) -> None:
    shutil.copytree(tiny_base, tmp_path / "incomplete")
    (tmp_path / "incomplete" / "vae" / "config.json").unlink()
    (error,) = errors_of(make_job(tmp_path / "incomplete", images), home)
    assert "vae/config.json" in error


def test_too_little_disk_space_is_an_error(
    tiny_base: Path, images: Path, home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(2**40, 2**40 - 1000, 1000))
    (error,) = errors_of(make_job(tiny_base, images), home)
    assert "0.0 GiB are free" in error
    assert "keep_checkpoints" in error


def test_parameter_count_of_an_sdxl_lora_is_that_of_kohyas_file() -> None:
    """The test data lists every tensor of a file that kohya's trainer wrote at rank 32."""
    listed = json.loads((Path(__file__).parents[2] / "data" / "kohya_sdxl_rank32.json").read_text("utf-8"))
    weights = {name: shape[0] * shape[1] for name, shape in listed.items() if name.endswith(".weight")}
    base_config = read_base_config(Source("sdxl", "folder", str(SDXL_CONFIG)))
    assert count_lora_parameters(recipe_of(network_dim=32, text_encoder_lr=1e-4), base_config) == sum(weights.values())
    unet = sum(count for name, count in weights.items() if "unet" in name)
    assert count_lora_parameters(recipe_of(network_dim=32), base_config) == unet
    assert (
        count_lora_parameters(recipe_of(network_dim=32, unet_lr=0, text_encoder_lr=1e-4), base_config)
        == sum(weights.values()) - unet
    )
