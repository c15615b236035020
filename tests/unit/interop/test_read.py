"""Arguments of sd-scripts become settings, and nothing is dropped without a word."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lora_studio.errors import ConfigError
from lora_studio.interop.read import Translation
from lora_studio.settings.recipe import Recipe
from lora_studio.training.optim.optimizers import optimizer_arguments
from tests.support.kohya_presets import ARGUMENT_TYPES


def translate(complete: bool = True, **arguments: Any) -> Translation:
    return Translation(arguments, complete=complete)


def recipe(**arguments: Any) -> Recipe:
    return Recipe.parse(translate(**arguments).recipe)


def left_out(**arguments: Any) -> set[str]:
    return {item.name for item in translate(**arguments).left_out if item.matters}


def test_missing_arguments_mean_the_scripts_own_defaults() -> None:
    found = recipe(unet_lr=1e-4)
    assert (found.network_dim, found.network_alpha, found.optimizer, found.lr_scheduler) == (4, 1, "AdamW", "constant")
    assert (found.noise_offset, found.min_snr_gamma, found.caption_extension) == (0, 0, ".caption")
    assert (found.mixed_precision, found.gradient_checkpointing, found.enable_bucket) == ("fp32", "off", False)
    assert (found.max_train_steps, found.batch_size) == (1600, 1)


def test_an_incomplete_file_sets_what_it_has_alone() -> None:
    assert translate(complete=False, keep_tokens=2, noise_offset=None).recipe == {"keep_tokens": 2, "noise_offset": 0.0}


@pytest.mark.parametrize(
    ("given", "unet_lr", "text_encoder_lr"),
    [
        ({"learning_rate": 3e-5}, 3e-5, 3e-5),
        ({"learning_rate": 3e-5, "unet_lr": 1.23456789e-4}, 1.23456789e-4, 3e-5),
        ({"unet_lr": 1e-4, "text_encoder_lr": [5e-5, 5e-5]}, 1e-4, 5e-5),
        ({"unet_lr": 1e-4, "text_encoder_lr": 5e-5, "network_train_unet_only": True}, 1e-4, 0),
        ({"unet_lr": 1e-4, "text_encoder_lr": 5e-5, "network_train_text_encoder_only": True}, 0, 5e-5),
    ],
)
def test_learning_rates_are_exact(given: dict[str, Any], unet_lr: float, text_encoder_lr: float) -> None:
    found = recipe(**given)
    assert (found.unet_lr, found.text_encoder_lr) == (unet_lr, text_encoder_lr)


@pytest.mark.parametrize(
    ("optimizer", "given", "expected"),
    [
        ("Prodigy", [], {"weight_decay": 0, "use_bias_correction": False, "safeguard_warmup": False}),
        ("prodigy", ["use_bias_correction=True", "weight_decay=0.01"], {"use_bias_correction": True, "decouple": True}),
        ("AdamW8bit", ['"weight_decay=0.1"', 'betas="0.9,0.99"'], {"weight_decay": 0.1, "betas": (0.9, 0.99)}),
        ("DAdaptAdam", [], {"weight_decouple": False}),
        ("Adafactor", [], {"relative_step": True, "scale_parameter": True, "warmup_init": False}),
        ("Adafactor", ["relative_step=False"], {"relative_step": False, "scale_parameter": True}),
        ("Adafactor", ["relative_step=False", "scale_parameter=False"], {"scale_parameter": False}),
        ("SGDNesterov", [], {"nesterov": True, "momentum": 0.9, "weight_decay": 0}),
    ],
)
def test_an_optimizer_works_as_in_sd_scripts(optimizer: str, given: list[str], expected: dict[str, Any]) -> None:
    found = recipe(unet_lr=1.0, text_encoder_lr=1.0, optimizer_type=optimizer, optimizer_args=given)
    used = optimizer_arguments(found)
    assert {name: used[name] for name in expected} == expected


def test_any_class_is_an_optimizer() -> None:
    found = recipe(unet_lr=1e-4, optimizer_type="torch.optim.RAdam", optimizer_args=["eps=1e-7"])
    assert (found.optimizer_type, found.optimizer_args, found.weight_decay) == ("torch.optim.RAdam", ["eps=1e-7"], 0)
    assert isinstance(torch.optim.RAdam, type)


@pytest.mark.parametrize(
    ("arguments", "network"),
    [
        ({"network_module": "networks.lora"}, ("LoRA", "attention_ff", None, None)),
        (
            {"network_module": "networks.lora", "network_args": ['conv_dim="4"', "conv_alpha=2"]},
            ("LoCon", "attention_ff", 4, 2),
        ),
        ({"network_module": "networks.lora", "network_args": ["conv_dim=4"]}, ("LoCon", "attention_ff", 4, 1)),
        ({"network_module": "lycoris.kohya", "network_args": ["algo=loha"]}, ("LoHa", "all", None, None)),
        (
            {"network_module": "lycoris.kohya", "network_args": ["algo=loha", "conv_dim=8"], "network_alpha": 16},
            ("LoHa", "all", 8, 16),
        ),
        (
            {"network_module": "lycoris.kohya", "network_args": ["algo=locon", "preset=attn-mlp", "dora_wd=True"]},
            ("DoRA", "attention_ff", None, None),
        ),
        (
            {"network_module": "lycoris.kohya", "network_args": ["algo=lora", "preset=attn-only"]},
            ("LoRA", "attention", None, None),
        ),
        ({"network_module": "networks.lokr"}, ("LoKr", "attention_ff", None, None)),
    ],
)
def test_networks(arguments: dict[str, Any], network: tuple[Any, ...]) -> None:
    found = recipe(unet_lr=1e-4, **arguments)
    assert (found.network_type, found.train_layers, found.conv_dim, found.conv_alpha) == network


def test_rates_of_single_text_encoders_and_blocks_and_lora_plus() -> None:
    arguments = ["down_lr_weight=sine+.1", '"mid_lr_weight=1,0.5,0"', "loraplus_lr_ratio=16"]
    found = recipe(unet_lr=1e-4, text_encoder_lr=[1e-5, 2e-5], network_args=arguments)
    assert (found.model_rates, found.loraplus_lr_ratio) == ({"unet": 1e-4, "te1": 1e-5, "te2": 2e-5}, 16)
    assert (found.down_lr_weight, found.mid_lr_weight) == ("sine+.1", "1,0.5,0")


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        (
            {"network_module": "lycoris.kohya", "network_args": ["algo=lokr", "loraplus_lr_ratio=16"]},
            "loraplus_lr_ratio",
        ),
        ({"network_train_text_encoder_only": True, "stop_text_encoder_training": 100}, "stop_text_encoder_training"),
    ],
)
def test_what_has_no_effect_in_sd_scripts_is_left_out(arguments: dict[str, Any], name: str) -> None:
    found = translate(unet_lr=1e-4, **arguments)
    assert name in {item.name for item in found.left_out if not item.matters}
    assert not getattr(Recipe.parse(found.recipe), name)


def test_text_encoders_stop_at_the_step_of_the_file() -> None:
    assert recipe(unet_lr=1e-4, text_encoder_lr=1e-5, stop_text_encoder_training=100).stop_text_encoder_training == 100


def test_full_matrix_is_a_rank_that_keeps_lokr_whole() -> None:
    arguments = ["algo=lokr", "full_matrix=True", "factor=8"]
    found = recipe(unet_lr=1e-4, network_module="lycoris.kohya", network_args=arguments, network_dim=16)
    assert (found.is_full_matrix, found.lokr_factor) == (True, 8)


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        ({"weighted_captions": True}, "weighted_captions"),
        ({"an_argument_of_tomorrow": 3}, "an_argument_of_tomorrow"),
        ({"network_args": ["down_lr_weight=0,1"]}, "down_lr_weight"),
        ({"network_args": ["block_alphas=1,1"]}, "block_alphas"),
        ({"network_module": "lycoris.kohya", "network_args": ["mid_lr_weight=1,1,0"]}, "mid_lr_weight"),
        ({"network_args": ["what=1"]}, "what"),
        ({"network_module": "lycoris.kohya", "network_args": ["algo=ia3"]}, "algo"),
        ({"network_module": "networks.oft"}, "network_module"),
        ({"optimizer_type": "AdEMAMix8bit"}, "optimizer_type"),
        ({"lr_scheduler": "inverse_sqrt"}, "lr_scheduler"),
        ({"loss_type": "l1"}, "loss_type"),
        ({"network_dim": "many"}, "network_dim"),
        ({"caption_dropout_every_n_epochs": 2}, "caption_dropout_every_n_epochs"),
        ({"output_name": "a/b"}, "name"),
    ],
)
def test_what_is_not_carried_over_is_listed(arguments: dict[str, Any], name: str) -> None:
    found = translate(unet_lr=1e-4, **arguments)
    assert name in {item.name for item in found.left_out if item.matters and item.why}
    Recipe.parse(found.recipe)


@pytest.mark.parametrize(
    "arguments", [{"caption_separator": ","}, {"huber_scale": 1.0}, {"color_aug": False}, {"v_pred_like_loss": 0}]
)
def test_values_without_an_effect_are_not_listed(arguments: dict[str, Any]) -> None:
    assert left_out(unet_lr=1e-4, **arguments) == set()


def test_steps_without_epochs_end_the_run() -> None:
    found = recipe(unet_lr=1e-4, max_train_steps=2500, save_every_n_epochs=2)
    assert (found.max_train_steps, found.epochs >= 2500, found.save_every_n_epochs) == (2500, True, 2)


def test_epochs_come_before_steps() -> None:
    found = recipe(unet_lr=1e-4, max_train_steps=160, max_train_epochs=10)
    assert (found.max_train_steps, found.epochs) == (None, 10)


def test_fields_of_the_job() -> None:
    found = translate(pretrained_model_name_or_path="x/y", output_name="cat", training_comment="trigger: miu")
    assert found.job == {"base": "x/y", "name": "cat", "trigger_word": "miu"}


VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-10, 10**12),
    st.floats(),
    st.text(max_size=8),
    st.lists(st.one_of(st.text(max_size=8), st.floats(), st.none()), max_size=3),
    st.dictionaries(st.text(max_size=3), st.text(max_size=3), max_size=2),
)
NAMES = sorted([*ARGUMENT_TYPES, "unknown", "stop_text_encoder_training", "v_pred_like_loss"])


@given(st.dictionaries(st.sampled_from(NAMES), VALUES, max_size=12), st.booleans())
@settings(max_examples=60, deadline=None)
def test_wrong_values_are_listed_and_never_break_an_import(arguments: dict[str, Any], complete: bool) -> None:
    found = Translation(arguments, complete=complete)
    assert found.recipe.keys() <= Recipe.model_fields.keys()
    assert [problem for problem in problems_of(found.recipe) if not problem.startswith("settings: ")] == []


def problems_of(values: dict[str, Any]) -> list[str]:
    """Return what is wrong with a recipe; lines that begin with `settings` are about values that contradict others."""
    try:
        Recipe.parse(values)
    except ConfigError as error:
        return error.problems
    return []
