"""The training metadata in a LoRA file, with kohya's and the model specification's keys."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from lora_studio.interop.metadata import metadata_arguments
from lora_studio.interop.read import Translation
from lora_studio.planning.steps import count_steps
from lora_studio.settings.recipe import Recipe
from lora_studio.training.lora_file import save_lora_file
from lora_studio.training.optim.optimizers import optimizer_arguments
from lora_studio.training.progress import Progress
from lora_studio.training.reporting.lora_metadata import build_lora_metadata
from lora_studio.training.trainer import Trainer
from tests.support.networks import metadata_of, run_with_random_lora
from tests.support.tiny_sdxl import save_tiny_sdxl


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_sdxl(tmp_path_factory.mktemp("base"), layers=1)


@pytest.fixture(scope="module")
def trainer(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Trainer:
    return run_with_random_lora(base, tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def file(trainer: Trainer) -> Path:
    path = trainer.folder / "ink.safetensors"
    save_lora_file(trainer, Progress(step=2), path, 2)
    return path


def test_metadata_of_a_run(trainer: Trainer, file: Path) -> None:
    found = metadata_of(file)
    expected = {
        "ss_base_model_version": "sdxl_base_v1-0",
        "ss_network_module": "networks.lora",
        "ss_network_dim": "4",
        "ss_network_alpha": "2.0",
        "ss_unet_lr": "0.001",
        "ss_text_encoder_lr": "0.0001",
        "ss_optimizer": "torch.optim.adamw.AdamW(weight_decay=0.01,fused=True)",
        "ss_output_name": "ink",
        "ss_resolution": "(64, 64)",
        "ss_num_train_images": "4",
        "ss_num_batches_per_epoch": "2",
        "ss_max_train_steps": "4",
        "ss_epoch": "2",
        "ss_steps": "2",
        "ss_seed": "42",
        "ss_lr_scheduler": "cosine",
        "ss_loss_type": "l2",
        "ss_huber_c": "None",
        "ss_min_snr_gamma": "5.0",
        "ss_debiased_estimation": "False",
        "ss_multires_noise_iterations": "None",
        "ss_zero_terminal_snr": "False",
        "ss_clip_skip": "2",
        "ss_mixed_precision": "no",
        "ss_v2": "False",
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.architecture": "stable-diffusion-xl-v1-base/lora",
        "modelspec.title": "ink",
        "modelspec.resolution": "64x64",
        "modelspec.prediction_type": "epsilon",
        "modelspec.trigger_phrase": "inkstamp",
    }
    assert {name: found.get(name) for name in expected} == expected
    assert json.loads(found["ss_tag_frequency"]) == {"2_ink stamp": {"inkstamp": 2, "thing 0": 1, "thing 1": 1}}
    assert json.loads(found["ss_dataset_dirs"]) == {"2_ink stamp": {"n_repeats": 2, "img_count": 2}}
    assert json.loads(found["ss_bucket_info"]) == {"buckets": {"0": {"resolution": [64, 64], "count": 4}}}
    assert found["ss_new_sd_model_hash"] == trainer.base.hash
    assert not any(str(trainer.folder) in value for value in found.values())


@pytest.mark.parametrize("spelling", ["absolute", "relative", "home", "here", "hub"])
def test_no_folder_of_the_user_is_in_a_file_that_people_share(
    spelling: str, trainer: Trainer, base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(base.parent))
    monkeypatch.setenv("USERPROFILE", str(base.parent))
    monkeypatch.chdir(base if spelling == "here" else base.parent)
    names = {"absolute": str(base), "relative": f"./{base.name}/", "home": f"~/{base.name}", "here": "."}
    hub = "stabilityai/stable-diffusion-xl-base-1.0"
    named = dataclasses.replace(trainer.base, name=names.get(spelling, hub))
    parts = trainer.dataset, trainer.counts, named
    found = build_lora_metadata(trainer.job, *parts, precision="fp32", started=1.0, epoch=1, step=2)
    assert found["ss_sd_model_name"] == (hub if spelling == "hub" else base.name)


def test_epochs_are_those_that_max_train_steps_leaves(trainer: Trainer) -> None:
    counts = count_steps({(64, 64): 4}, batch_size=2, epochs=1000, max_train_steps=3)
    parts = trainer.dataset, counts, trainer.base
    found = build_lora_metadata(trainer.job, *parts, precision="fp32", started=1.0, epoch=1, step=2)
    assert (found["ss_num_epochs"], found["ss_max_train_steps"]) == ("2", "3")


def test_both_rates_of_the_text_encoders_are_in_the_metadata(trainer: Trainer) -> None:
    job = trainer.job.model_copy(update={"recipe": Recipe.parse({"text_encoder_lr": [1e-4, 0]})})
    parts = trainer.dataset, trainer.counts, trainer.base
    found = build_lora_metadata(job, *parts, precision="fp32", started=1.0, epoch=1, step=2)
    assert json.loads(found["ss_text_encoder_lr"]) == [1e-4, 0]


def test_metadata_of_objective_and_optimizer(trainer: Trainer) -> None:
    recipe = {
        "optimizer": "Prodigy",
        "optimizer_args": "d_coef=2 betas=0.9,0.99",
        "lr_scheduler": "rex",
        "lr_warmup_steps": 0.25,
        "loss_type": "smooth_l1",
        "huber_c": 0.2,
        "huber_schedule": "exponential",
        "debiased_estimation_loss": True,
        "multires_noise_iterations": 6,
        "noise_offset": 0.05,
        "adaptive_noise_scale": 0.005,
        "ip_noise_gamma": 0.1,
        "ema_decay": 0.9,
        "max_timestep": 800,
    }
    job = trainer.job.model_copy(update={"recipe": Recipe.parse(recipe)})
    found = build_lora_metadata(
        job, trainer.dataset, trainer.counts, trainer.base, precision="fp32", started=1.0, epoch=1, step=2
    )
    expected = {
        "ss_optimizer": "prodigyopt.prodigy.Prodigy(weight_decay=0.01,decouple=True,use_bias_correction=True,"
        "safeguard_warmup=True,d_coef=2,betas=(0.9, 0.99))",
        "ss_optimizer_args": "d_coef=2 betas=0.9,0.99",
        "ss_lr_scheduler": "rex",
        "ss_lr_warmup_steps": "1",  # a quarter of four
        "ss_loss_type": "smooth_l1",
        "ss_huber_c": "0.2",
        "ss_huber_schedule": "exponential",
        "ss_debiased_estimation": "True",
        "ss_multires_noise_iterations": "6",
        "ss_multires_noise_discount": "0.3",
        "ss_noise_offset": "0.05",
        "ss_noise_offset_random_strength": "False",
        "ss_adaptive_noise_scale": "0.005",
        "ss_ip_noise_gamma": "0.1",
        "ss_ema_decay": "0.9",
        "modelspec.timestep_range": "0,800",
    }
    assert {name: found.get(name) for name in expected} == expected


@pytest.mark.slow
def test_metadata_of_datasets_and_augmentation(augmented_run: Trainer) -> None:
    found = build_lora_metadata(
        augmented_run.job,
        augmented_run.dataset,
        augmented_run.counts,
        augmented_run.base,
        precision="fp32",
        started=1.0,
        epoch=1,
        step=1,
    )
    assert {name: found[name] for name in found if name in EXPECTED_METADATA} == EXPECTED_METADATA
    assert json.loads(found["ss_reg_dataset_dirs"]) == {"1_thing": {"n_repeats": 2, "img_count": 2}}
    assert json.loads(found["ss_dataset_dirs"]) == {"images": {"n_repeats": 1, "img_count": 3}}
    buckets = json.loads(found["ss_bucket_info"])["buckets"]
    assert sum(bucket["count"] for bucket in buckets.values()) == augmented_run.counts.samples_per_epoch == 6


EXPECTED_METADATA = {
    "ss_num_train_images": "3",
    "ss_num_reg_images": "3",
    "ss_prior_loss_weight": "0.5",
    "ss_shuffle_caption": "True",
    "ss_keep_tokens": "0",
    "ss_caption_dropout_rate": "0.2",
    "ss_caption_tag_dropout_rate": "0.2",
    "ss_max_token_length": "150",
    "ss_flip_aug": "True",
    "ss_random_crop": "True",
    "ss_masked_loss": "True",
    "ss_validation_split": "0.25",
}


@pytest.mark.parametrize(
    "values",
    [
        {"network_type": "LoCon", "conv_dim": 6, "conv_alpha": 3, "rank_dropout": 0.1, "scale_weight_norms": 2.5},
        {"network_type": "LoKr", "train_layers": "all", "lokr_factor": 8, "use_tucker": True, "ema_decay": 0.99},
        {"optimizer": "Prodigy", "unet_lr": 1, "text_encoder_lr": 1, "optimizer_args": ["d_coef=0.5"]},
        {"optimizer": "Adafactor", "lr_scheduler": "adafactor", "max_token_length": 225},
        {"optimizer": "DAdaptAdam", "unet_lr": 1, "text_encoder_lr": 1, "lr_scheduler": "constant"},
        {"optimizer_type": "torch.optim.RAdam", "optimizer_args": ["eps=1e-9"], "lr_scheduler_type": "StepLR"},
        {"caption_prefix": "by ohwx,", "enable_wildcard": True, "keep_tokens_separator": "|||", "token_warmup_step": 9},
        {"loss_type": "huber", "huber_c": 0.2, "noise_offset": 0.0357, "adaptive_noise_scale": 0.00357},
        {"min_timestep": 100, "max_timestep": 900, "noise_offset_random_strength": True},
        {"text_encoder_lr": 1e-5, "text_encoder_lr2": 2e-5, "loraplus_lr_ratio": 4.5},
    ],
)
def test_an_import_of_the_metadata_gives_the_recipe(trainer: Trainer, values: dict[str, Any]) -> None:
    recipe = Recipe.parse({**trainer.job.recipe.non_defaults(), "lr_scheduler_args": [], **values})
    if recipe.lr_scheduler_type:
        recipe.lr_scheduler_args = ["step_size=10"]
    job = trainer.job.model_copy(update={"recipe": recipe})
    metadata = build_lora_metadata(
        job, trainer.dataset, trainer.counts, trainer.base, precision="fp32", started=0.0, epoch=1, step=1
    )
    arguments, left_out = metadata_arguments(metadata)
    found = Translation(arguments, complete=False)
    assert {item.name for item in [*left_out, *found.left_out] if item.matters} == {"ss_sd_model_name"}
    imported = Recipe.parse(recipe.non_defaults() | found.recipe)
    for name in values.keys() - {"optimizer_args"}:
        assert getattr(imported, name) == getattr(recipe, name), name
    assert optimizer_arguments(imported).items() >= optimizer_arguments(recipe).items()
