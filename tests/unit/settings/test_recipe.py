"""Recipes: combinations of settings, and overrides as text."""

from __future__ import annotations

from typing import Any

import pytest

from lora_studio import guide
from lora_studio.errors import ConfigError, InputError
from lora_studio.settings.choices import Optimizer
from lora_studio.settings.recipe import Recipe, apply_overrides


def test_defaults_are_the_guides() -> None:
    recipe = Recipe()
    assert (recipe.unet_lr, recipe.text_encoder_lr) == (5e-4, 1e-4)
    assert (recipe.network_dim, recipe.network_alpha) == (32, 16)
    assert recipe.optimizer is Optimizer.ADAFACTOR
    assert recipe.resolution == 1024
    for name, advice in guide.RECIPE.items():
        if name in Recipe.model_fields:
            assert getattr(recipe, name) == advice.value, name


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"unet_lr": 0, "text_encoder_lr": 0}, "unet_lr and text_encoder_lr"),
        ({"min_bucket_reso": 2048, "max_bucket_reso": 1024}, "min_bucket_reso 2048 is above max_bucket_reso 1024"),
        ({"resolution": 1000, "bucket_no_upscale": False}, "Use 1024"),
        ({"resolution": 64, "bucket_reso_steps": 512, "bucket_no_upscale": False}, "Use 512"),
        ({"learning_rate": 1e-4}, "learning_rate"),
        ({"lr_scheduler": "adafactor", "lr_scheduler_type": "StepLR"}, "lr_scheduler_type is StepLR"),
        ({"lr_scheduler_args": ["T_max=5"]}, "lr_scheduler_args is T_max=5"),
        ({"lr_scheduler_type": "a b"}, "lr_scheduler_type"),
        ({"noise_offset": 0, "adaptive_noise_scale": 0.1}, "adaptive_noise_scale is 0.1"),
        ({"unmasked_weight": 0.1}, "unmasked_weight is 0.1, but masked_loss is off"),
        ({"min_timestep": 500, "max_timestep": 500}, "min_timestep 500"),
    ],
)
def test_unknown_and_contradictory_settings_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Recipe.parse(values)


def test_overrides_parse_values_as_toml() -> None:
    values = apply_overrides(
        {"epochs": 3, "repeats": 5},
        [
            "network_dim=64",
            "unet_lr = 1e-4",
            "enable_bucket=false",
            "optimizer=AdamW",
            "repeats=",
            "sample_prompts=['a']",
        ],
    )
    assert values == {
        "epochs": 3, "repeats": None, "network_dim": 64, "unet_lr": 1e-4, "enable_bucket": False,
        "optimizer": "AdamW", "sample_prompts": ["a"],
    }  # fmt: skip
    assert Recipe.parse(values).optimizer is Optimizer.ADAMW


def test_overrides_do_not_change_the_given_dict() -> None:
    before = {"epochs": 3}
    apply_overrides(before, ["epochs=5"])
    assert before == {"epochs": 3}


@pytest.mark.parametrize("text", ["epochs", "learning_rate=1", "=1", ""])
def test_unknown_override_lists_the_known_settings(text: str) -> None:
    with pytest.raises(InputError) as caught:
        apply_overrides({}, [text])
    assert caught.value.code == "set"
    assert "unet_lr" in caught.value.remedy


def test_override_with_an_invalid_value_names_setting_and_value() -> None:
    with pytest.raises(ConfigError, match=r"unet_lr.*'abc'"):
        Recipe.parse(apply_overrides({}, ["unet_lr=abc"]))
