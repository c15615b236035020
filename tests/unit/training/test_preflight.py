"""Everything that is wrong with a job, told at once and before anything is loaded; and what is only worth a word."""

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
from lora_studio.models import compatibility as trial
from lora_studio.models.locate import SDXL_CONFIG, SDXL_KEY, Source, read_base_config
from lora_studio.settings.job_specs import TrainJob
from lora_studio.training.preflight import PreflightResult, count_lora_parameters, preflight
from lora_studio.workspace.job_folder import JobFolder
from lora_studio.workspace.project import Home
from tests.support.training_runs import make_images, make_job, recipe_of

Usage = namedtuple("Usage", "total used free")


def check(job: TrainJob, home: Home) -> PreflightResult:
    return preflight(job, JobFolder(home.path / "run"), home, on_progress=lambda message, done, total: None)


def problems(job: TrainJob, home: Home) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        check(job, home)
    assert not (home.path / "cache").exists()
    return caught.value.problems


@pytest.fixture
def images(tmp_path: Path) -> Path:
    return make_images(tmp_path / "images", [(64, 64)] * 3)


def test_a_good_job_is_ready(tiny_base: Path, images: Path, home: Home) -> None:
    checked = check(make_job(tiny_base, images), home)
    assert [item.path.name for item in checked.dataset.items] == ["0.png", "1.png", "2.png"]
    assert (checked.counts.steps_per_epoch, checked.counts.total_steps) == (2, 4)
    assert checked.prediction_type == "epsilon"


def test_all_that_is_wrong_is_told_in_one_go(tmp_path: Path, home: Home) -> None:
    (tmp_path / "empty").mkdir()
    job = make_job("no such base", tmp_path / "empty", optimizer="Prodigy", unet_lr=1, text_encoder_lr=0.5)
    found = problems(job, home)
    assert len(found) == 3
    for word in ("holds no images", "no such base", "Prodigy takes one rate"):
        assert any(word in problem for problem in found)


def test_a_missing_folder_is_named(tiny_base: Path, tmp_path: Path, home: Home) -> None:
    (problem,) = problems(make_job(tiny_base, tmp_path / "nowhere"), home)
    assert str(tmp_path / "nowhere") in problem


def test_broken_images_are_named_and_many_are_counted(tiny_base: Path, images: Path, home: Home) -> None:
    for number in range(8):
        (images / f"broken {number}.png").write_text("no picture", "utf-8")
    found = problems(make_job(tiny_base, images), home)
    assert len(found) == 6
    assert "broken 0.png" in found[0]
    assert "3 more images" in found[-1]


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"prediction_type": "v_prediction"}, "predicts epsilon. Set prediction_type to auto"),
        ({"clip_skip": 4}, "clip_skip is 4, but a text encoder"),
        ({"zero_terminal_snr": "on"}, "Zero terminal SNR cannot go with a prediction of the noise"),
        ({"optimizer_args": "betas=0.9,0.99 foo=1"}, "optimizer_args: AdamW has no argument foo. It has amsgrad"),
        ({"lr_scheduler": "adafactor"}, "lr_scheduler is adafactor, which AdamW does not have"),
        ({"mixed_precision": "fp16"}, "mixed_precision is fp16, which needs a GPU"),
    ],
)
def test_what_does_not_fit_base_or_machine_is_an_error(
    tiny_base: Path, images: Path, home: Home, changes: dict[str, Any], word: str
) -> None:
    (problem,) = problems(make_job(tiny_base, images, **changes), home)
    assert word in problem


def with_prior(job: TrainJob, folder: Path) -> TrainJob:
    job.regularization = folder
    return job


def test_regularisation_folders_that_cannot_work_are_errors(tiny_base: Path, images: Path, home: Home) -> None:
    (images.parent / "empty").mkdir()
    for folder, words in (
        (images.parent / "nowhere", "regularization: there is no folder"),
        (images.parent / "empty", "empty holds no images"),
        (images.parent / "empty" / ".." / "images", "regularization is the dataset's own folder"),
    ):
        (problem,) = problems(with_prior(make_job(tiny_base, images), folder), home)
        assert words in problem
    both = problems(with_prior(make_job(tiny_base, images / "no"), images / "none"), home)
    assert len(both) == 2


def test_masks_that_are_missing_or_of_another_shape_are_errors(tiny_base: Path, images: Path, home: Home) -> None:
    for kind, words in (("files", "no image has a mask"), ("alpha", "no image is transparent")):
        (problem,) = problems(make_job(tiny_base, images, masked_loss=kind), home)
        assert words in problem
    Image.new("L", (64, 64), 255).save(images / "1-masklabel.png")
    assert check(make_job(tiny_base, images, masked_loss="files"), home)
    Image.new("L", (64, 32), 255).save(images / "1-masklabel.png")
    (problem,) = problems(make_job(tiny_base, images, masked_loss="files"), home)
    assert "another shape" in problem


def test_an_image_that_cannot_be_spared_is_not_held_out(tiny_base: Path, images: Path, home: Home) -> None:
    for name in ("1.png", "2.png"):
        shutil.copy(images / "0.png", images / name)
    (problem,) = problems(make_job(tiny_base, images, validation_split=0.3), home)
    assert "leave none to hold out. Set it to 0" in problem


def made_for(base: Path, folder: Path, **scheduler: Any) -> Path:
    """A copy of a base whose noise schedule says something else."""
    shutil.copytree(base, folder)
    file = folder / "scheduler" / "scheduler_config.json"
    file.write_text(json.dumps(json.loads(file.read_text("utf-8")) | scheduler), "utf-8")
    return folder


def test_zero_terminal_snr_is_read_from_the_base_and_can_be_set(
    tiny_base: Path, tmp_path: Path, images: Path, home: Home
) -> None:
    v_pred = made_for(tiny_base, tmp_path / "v", prediction_type="v_prediction", rescale_betas_zero_snr=True)
    assert not check(make_job(tiny_base, images), home).zero_terminal_snr
    assert check(make_job(v_pred, images), home).zero_terminal_snr
    assert not check(make_job(v_pred, images, zero_terminal_snr="off"), home).zero_terminal_snr
    plain = made_for(tiny_base, tmp_path / "plain", prediction_type="v_prediction")
    assert check(make_job(plain, images, zero_terminal_snr="on"), home).zero_terminal_snr
    odd = made_for(tiny_base, tmp_path / "odd", rescale_betas_zero_snr=True)
    (problem,) = problems(make_job(odd, images), home)
    assert "Set zero_terminal_snr to off" in problem
    assert not check(make_job(odd, images, zero_terminal_snr="off"), home).zero_terminal_snr


def test_timesteps_that_a_base_does_not_have_are_an_error(
    tiny_base: Path, tmp_path: Path, images: Path, home: Home
) -> None:
    short = made_for(tiny_base, tmp_path / "short", num_train_timesteps=100)
    (problem,) = problems(make_job(short, images, min_timestep=100), home)
    assert "has 100 timesteps. Set it to 0" in problem


def test_a_name_that_says_v_prediction_where_the_file_does_not_is_a_question(
    images: Path, tmp_path: Path, home: Home
) -> None:
    file = tmp_path / "noobaiXL_vPred10.safetensors"
    save_file({SDXL_KEY: torch.zeros(1)}, file)
    (problem,) = problems(make_job(file, images), home)
    assert "nothing in noobaiXL_vPred10.safetensors says what it predicts" in problem
    assert "Set prediction_type to v_prediction" in problem
    assert check(make_job(file, images, prediction_type="epsilon"), home).prediction_type == "epsilon"


@pytest.mark.parametrize(("vae", "word"), [("nowhere", "no VAE 'nowhere'"), ("my.ckpt", "pickled")])
def test_a_wrong_vae_is_told_with_the_rest(tiny_base: Path, tmp_path: Path, home: Home, vae: str, word: str) -> None:
    job = make_job(tiny_base, tmp_path / "no images").model_copy(update={"vae": vae})
    found = problems(job, home)
    assert len(found) == 2
    assert word in found[1]


def test_libraries_that_do_not_fit_together_are_named_with_their_versions(
    tiny_base: Path, images: Path, home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stale(*arguments: Any, **options: Any) -> None:
        raise ImportError("cannot import name 'HybridCache' from 'transformers'")

    monkeypatch.setattr(trial, "inject_adapter_in_model", stale)
    (problem,) = problems(make_job(tiny_base, images), home)
    assert "do not work together" in problem
    assert "HybridCache" in problem
    assert "pip install --upgrade -r requirements.txt" in problem
    for name in ("transformers", "peft"):
        assert f"{name} {version(name)}" in problem


def test_a_base_that_is_not_whole_is_an_error(tiny_base: Path, tmp_path: Path, images: Path, home: Home) -> None:
    shutil.copytree(tiny_base, tmp_path / "half")
    (tmp_path / "half" / "vae" / "config.json").unlink()
    (problem,) = problems(make_job(tmp_path / "half", images), home)
    assert "vae/config.json of the base model cannot be read" in problem


def test_a_full_disk_is_told_before_the_first_step(
    tiny_base: Path, images: Path, home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda place: Usage(2**40, 2**40 - 1000, 1000))
    (problem,) = problems(make_job(tiny_base, images), home)
    assert "but only 0.0 GiB are free" in problem
    assert "keep_checkpoints" in problem


def test_the_weights_of_sdxls_lora_are_counted_right() -> None:
    """Kohya's file at rank 32 lists every tensor."""
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
