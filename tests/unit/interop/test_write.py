"""Export for sd-scripts: it accepts every argument, and an import gives the same recipe."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import pytest
import tomlkit
from hypothesis import given, settings
from hypothesis import strategies as st

from lora_studio.errors import InputError
from lora_studio.interop.files import import_settings
from lora_studio.interop.read import Translation
from lora_studio.interop.write import export_settings, sd_scripts_arguments
from lora_studio.settings.block_dims import parse_block_dims
from lora_studio.settings.recipe import Recipe
from lora_studio.settings.sections.rates import BLOCK_WEIGHTS
from tests.support.kohya_presets import argument_errors

# Values that a file for sd-scripts can say: one for each setting that it has no word for.
FIXED = {"caption_extension": "", "mixed_precision": "bf16", "gradient_checkpointing": "on", "clip_skip": 2}
NOT_CARRIED = {"caption_variants", "repeats", "sample_negative_prompt", "cuda_graphs"}
RATE = st.floats(1e-7, 1.0, allow_subnormal=False)
SHARE = st.floats(0.0, 0.5)
NETWORKS = st.one_of(
    st.fixed_dictionaries({"network_type": st.just("LoRA"), "train_layers": st.sampled_from(["attention", "linear"])}),
    st.fixed_dictionaries(
        {"network_type": st.just("LoRA")},
        optional={
            "block_dims": st.just("in4-5=8, mid=16"),
            "down_lr_weight": st.sampled_from(["cosine+.2", "in0-3=0.25"]),
            "up_lr_weight": st.just("1,1,1,0,0,0,0.5,0.123456789,0"),
            "loraplus_lr_ratio": st.floats(1, 32),
        },
    ),
    st.fixed_dictionaries(
        {"network_type": st.just("LoCon"), "conv_dim": st.integers(1, 64), "conv_alpha": st.floats(0.5, 64)}
    ),
    st.fixed_dictionaries({"network_type": st.sampled_from(["LoHa", "DoRA"]), "rank_stabilized": st.booleans()}),
    st.fixed_dictionaries({"network_type": st.just("LoHa"), "use_tucker": st.booleans()}),
    st.fixed_dictionaries(
        {
            "network_type": st.just("LoKr"),
            "lokr_factor": st.sampled_from([-1, 4, 8]),
            "train_layers": st.just("all"),
            "conv_dim": st.integers(1, 64),
            "conv_alpha": st.floats(0.5, 64),
            "use_tucker": st.booleans(),
            "network_dim": st.sampled_from([8, 100_000]),
        }
    ),
)
OPTIMIZERS = st.one_of(
    st.fixed_dictionaries(
        {
            "optimizer": st.sampled_from(
                ["AdamW", "AdamW8bit", "Lion", "Prodigy", "CAME", "DAdaptAdam", "AdamWScheduleFree", "Adafactor"]
            ),
            "optimizer_args": st.lists(st.sampled_from(["eps=1e-9", "betas=0.9,0.95"]), unique=True),
        }
    ),
    st.just({"optimizer": "Adafactor", "lr_scheduler": "adafactor"}),
    st.just({"optimizer_type": "torch.optim.RAdam", "optimizer_args": ["eps=1e-9"]}),
)
SCHEDULES = st.one_of(
    st.fixed_dictionaries(
        {
            "lr_scheduler": st.sampled_from(["linear", "cosine", "constant_with_warmup"]),
            "lr_warmup_steps": st.one_of(st.integers(0, 500), st.floats(0.01, 0.5)),
        }
    ),
    st.fixed_dictionaries(
        {"lr_scheduler": st.just("cosine_with_restarts"), "lr_scheduler_num_cycles": st.integers(1, 9)}
    ),
    st.fixed_dictionaries({"lr_scheduler": st.just("polynomial"), "lr_scheduler_power": st.floats(0.5, 4)}),
    st.fixed_dictionaries({"lr_scheduler": st.just("cosine"), "lr_scheduler_min_lr_ratio": st.floats(0.01, 0.9)}),
    st.just({"lr_scheduler": "constant", "lr_scheduler_type": "StepLR", "lr_scheduler_args": ["step_size=10"]}),
)
OTHERS = st.fixed_dictionaries(
    {"unet_lr": RATE, "text_encoder_lr": st.one_of(st.just(0.0), RATE)},
    optional={
        "text_encoder_lr2": RATE,
        "network_dropout": SHARE,
        "module_dropout": SHARE,
        "weight_decay": SHARE,
        "max_grad_norm": st.floats(0, 10),
        "scale_weight_norms": st.floats(0, 10),
        "batch_size": st.integers(1, 16),
        "gradient_accumulation_steps": st.integers(1, 8),
        "epochs": st.integers(1, 500),
        "seed": st.integers(0, 2**32 - 1),
        "noise_offset": st.floats(0, 1),
        "ip_noise_gamma": SHARE,
        "min_snr_gamma": st.floats(0, 20),
        "debiased_estimation_loss": st.booleans(),
        "prediction_type": st.sampled_from(["auto", "v_prediction"]),
        "zero_terminal_snr": st.sampled_from(["auto", "on"]),
        "multires_noise_iterations": st.integers(0, 10),
        "min_timestep": st.integers(0, 400),
        "max_timestep": st.integers(600, 1000),
        "loss_type": st.sampled_from(["l2", "huber", "smooth_l1"]),
        "huber_c": st.floats(0.01, 1),
        "huber_schedule": st.sampled_from(["constant", "exponential", "snr"]),
        "resolution": st.sampled_from([512, 768, 1024]),
        "enable_bucket": st.booleans(),
        "min_bucket_reso": st.sampled_from([128, 256, 320]),
        "max_bucket_reso": st.sampled_from([1024, 1536, 2048]),
        "bucket_no_upscale": st.booleans(),
        "flip_aug": st.booleans(),
        "random_crop": st.booleans(),
        "masked_loss": st.sampled_from(["off", "alpha"]),
        "prior_loss_weight": st.floats(0, 2),
        "validation_split": SHARE,
        "shuffle_caption": st.booleans(),
        "keep_tokens": st.integers(0, 9),
        "keep_tokens_separator": st.sampled_from(["", "|||"]),
        "enable_wildcard": st.booleans(),
        "caption_prefix": st.sampled_from(["", "ohwx,", 'a "quoted" style']),
        "caption_suffix": st.sampled_from(["", ", best quality"]),
        "token_warmup_min": st.integers(0, 5),
        "token_warmup_step": st.one_of(st.integers(0, 100), st.floats(0.1, 0.9)),
        "caption_dropout_rate": SHARE,
        "caption_tag_dropout_rate": SHARE,
        "max_token_length": st.sampled_from([75, 150, 225]),
        "save_every_n_epochs": st.integers(1, 20),
        "save_every_n_steps": st.integers(0, 500),
        "keep_checkpoints": st.integers(0, 9),
        "save_precision": st.sampled_from(["auto", "fp16", "bf16", "fp32"]),
        "log_with": st.sampled_from(["none", "wandb"]),
    },
)


@given(NETWORKS, OPTIMIZERS, SCHEDULES, OTHERS)
@settings(max_examples=60, deadline=None)
def test_an_import_of_an_export_gives_the_same_recipe(
    network: dict[str, Any], optimizer: dict[str, Any], schedule: dict[str, Any], others: dict[str, Any]
) -> None:
    recipe = Recipe.parse({**FIXED, **others, **network, **schedule, **optimizer, **_without_conflict(optimizer)})
    arguments, left_out = sd_scripts_arguments(recipe)
    assert left_out == []
    assert argument_errors(arguments) == []
    found = Translation(tomllib.loads(tomlkit.dumps(arguments)), complete=True)
    assert not any(item.matters for item in found.left_out)
    again = Recipe.parse(found.recipe)
    assert parse_block_dims(again.block_dims).items() >= parse_block_dims(recipe.block_dims).items()
    assert again.block_factors == recipe.block_factors
    ignored = {
        "block_dims",
        *BLOCK_WEIGHTS,
        *NOT_CARRIED,
        *(name for name in Recipe.model_fields if name.startswith("sample_")),
    }
    assert again.model_dump(exclude=ignored) == recipe.model_dump(exclude=ignored) | _unused(recipe)


def _without_conflict(optimizer: dict[str, Any]) -> dict[str, Any]:
    """Return the values without which Adafactor's own schedule and others would contradict each other."""
    if "lr_scheduler" not in optimizer:
        return {}
    return {"lr_scheduler_type": "", "lr_scheduler_args": [], "lr_warmup_steps": 0, "lr_scheduler_min_lr_ratio": 0.0}


def _unused(recipe: Recipe) -> dict[str, Any]:
    """Return sd-scripts' defaults of settings that this recipe does not use."""
    found: dict[str, Any] = {}
    if recipe.lr_scheduler != "cosine_with_restarts":
        found["lr_scheduler_num_cycles"] = 1
    if recipe.optimizer_type:
        found["optimizer"] = Recipe().optimizer
    if recipe.text_encoder_lr2 == recipe.text_encoder_lr:
        found["text_encoder_lr2"] = None  # which means the same
    if recipe.lr_scheduler != "polynomial":
        found["lr_scheduler_power"] = 1.0
    return found


def test_export_writes_a_file_that_can_be_imported(tmp_path: Path) -> None:
    recipe = Recipe.parse({"network_dim": 24, "sample_prompts": ["{trigger}, smiling --s 30"]})
    done = export_settings(
        recipe, tmp_path / "x.toml", base="SDXL 1.0", dataset=tmp_path, name="cat", trigger_word="miu", total_steps=10
    )
    values = tomllib.loads((tmp_path / "x.toml").read_text())
    assert argument_errors(values) == []
    assert values["pretrained_model_name_or_path"] == "stabilityai/stable-diffusion-xl-base-1.0"
    assert done.prompts is not None
    assert done.prompts.read_text().startswith("miu, smiling --s 30 --n ")
    found = import_settings(done.file)
    assert found.recipe["network_dim"] == 24
    assert (found.job["name"], found.job["trigger_word"], found.job["dataset"]) == ("cat", "miu", str(tmp_path))
    assert not any(item.matters for item in found.left_out)


@pytest.mark.parametrize(
    ("values", "names"),
    [
        ({"ema_decay": 0.99}, {"ema_decay"}),
        ({"lr_scheduler": "rex"}, {"lr_scheduler"}),
        ({"masked_loss": "files"}, {"masked_loss"}),
        ({"stop_text_encoder_training": 0.5}, {"stop_text_encoder_training"}),
        ({"masked_loss": "alpha", "unmasked_weight": 0.1}, {"unmasked_weight"}),
        ({"log_with": "trackio"}, {"log_with"}),
        ({"base_precision": "int8", "clip_skip": 1}, {"base_precision", "clip_skip"}),
        ({"timestep_sampling": "logit_normal"}, {"timestep_sampling"}),
        ({}, set()),
    ],
)
def test_settings_that_sd_scripts_does_not_have_are_listed(values: dict[str, Any], names: set[str]) -> None:
    arguments, left_out = sd_scripts_arguments(Recipe.parse(values))
    assert {item.name for item in left_out} == names
    assert argument_errors(arguments) == []


def test_steps_are_written_only_where_they_end_the_run() -> None:
    recipe = Recipe.parse({"epochs": 5, "max_train_steps": 1000})
    assert "max_train_steps" in sd_scripts_arguments(recipe, total_steps=1000)[0]
    assert sd_scripts_arguments(recipe, total_steps=300)[0]["max_train_epochs"] == 5


def test_a_v_prediction_base_is_written() -> None:
    assert sd_scripts_arguments(Recipe(), "v_prediction")[0]["v_parameterization"] is True
    assert "v_parameterization" not in sd_scripts_arguments(Recipe(), "epsilon")[0]


@pytest.mark.parametrize(("name", "code"), [("x.toml", "exists"), ("x.json", "export_type")])
def test_export_overwrites_nothing(tmp_path: Path, name: str, code: str) -> None:
    (tmp_path / "x.toml").write_text("mine")
    with pytest.raises(InputError) as caught:
        export_settings(Recipe(), tmp_path / name)
    assert caught.value.code == code
    assert (tmp_path / "x.toml").read_text() == "mine"


def test_prompts_have_the_samples_settings_and_none_is_empty(tmp_path: Path) -> None:
    recipe = Recipe.parse({"sample_prompts": ["{trigger}", "a cat --s 9", "# note"], "sample_negative_prompt": ""})
    done = export_settings(recipe, tmp_path / "x.toml")
    assert done.prompts is not None
    assert done.prompts.read_text() == "a cat --s 9 --l 6\n# note\n"
