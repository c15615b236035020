from __future__ import annotations

import re
from typing import Any

import pytest

from lora_studio import guide
from lora_studio.errors import ConfigError, InputError
from lora_studio.settings.choices import Optimizer
from lora_studio.settings.declare import Group
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


def test_every_setting_has_label_group_and_reason() -> None:
    groups = {group.value for group in Group}
    for name, field in Recipe.model_fields.items():
        extra: Any = field.json_schema_extra
        assert extra["label"], name
        assert extra["group"] in groups, name
        assert field.description, name
        assert field.description.endswith("."), name
    simple = [name for name, field in Recipe.model_fields.items() if field.json_schema_extra["simple"]]  # type: ignore[call-overload,index]
    assert 3 <= len(simple) <= 8


def test_non_defaults_are_only_the_differences() -> None:
    assert Recipe().non_defaults() == {}
    changed = Recipe.parse({"epochs": 3, "optimizer": "Prodigy", "network_dim": 32}).non_defaults()
    assert changed == {"epochs": 3, "optimizer": "Prodigy"}
    assert Recipe.parse(changed).non_defaults() == changed


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"unet_lr": 0, "text_encoder_lr": 0}, "unet_lr and text_encoder_lr"),
        ({"min_bucket_reso": 2048, "max_bucket_reso": 1024}, "min_bucket_reso 2048 is above max_bucket_reso 1024"),
        ({"resolution": 1000, "bucket_no_upscale": False}, "Use 1024"),
        ({"resolution": 64, "bucket_reso_steps": 512, "bucket_no_upscale": False}, "Use 512"),
        ({"resolution": 1001}, "multiple of 8"),
        ({"unet_lr": float("nan")}, "finite"),
        ({"max_grad_norm": float("inf")}, "finite"),
        ({"network_dim": 0}, "greater than or equal to 1"),
        ({"learning_rate": 1e-4}, "learning_rate"),
        ({"optimizer": "Adam"}, "'Adafactor', 'AdamW8bit', 'Prodigy', 'AdamW', 'CAME'"),
        ({"min_timestep": 500, "max_timestep": 500}, "min_timestep 500"),
        ({"lr_warmup_steps": 10.5}, "lr_warmup_steps"),
        ({"optimizer_args": "betas"}, "KEY=VALUE"),
        ({"optimizer_args": ["d coef=2"]}, "KEY=VALUE"),
        ({"ema_decay": 1}, "less than 1"),
    ],
)
def test_invalid_settings_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Recipe.parse(values)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"block_dims": "in9=8"}, "in0 to in8"),
        ({"block_dims": "in5-4=8"}, "in0 to in8"),
        ({"block_dims": "down=8"}, "'down=8' is not a block"),
        ({"block_dims": "8,8,8"}, "there are 3 numbers"),
        ({"block_dims": "mid=513"}, "above 512"),
        ({"conv_dim": 8}, "conv_dim is 8, but no convolution is trained"),
        ({"conv_alpha": 8}, "conv_alpha is 8, but no convolution"),
        ({"network_type": "LoCon", "train_layers": "attention"}, "Set train_layers to all"),
        ({"lokr_factor": 8}, "lokr_factor is 8, but network_type is LoRA"),
        ({"lokr_factor": 0, "network_type": "LoKr"}, "lokr_factor is 0"),
        ({"save_format": "diffusers", "network_type": "LoHa"}, "Set save_format to kohya"),
        ({"network_dropout": 1}, "less than or equal to 0.9"),
    ],
)
def test_invalid_networks_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        Recipe.parse(values)


def test_resolution_need_not_be_a_multiple_of_the_bucket_steps_without_upscaling() -> None:
    assert Recipe.parse({"resolution": 1000}).resolution == 1000


def test_prompts_are_split_into_lines() -> None:
    assert Recipe.parse({"sample_prompts": " a cat \n\n b, c\n"}).sample_prompts == ["a cat", "b, c"]


@pytest.mark.parametrize(
    "given",
    [
        "weight_decay=0.1 betas=0.9,0.99 decouple=True",
        "weight_decay=0.1, betas=0.9,0.99, decouple=True",
        " weight_decay=0.1\nbetas = 0.9,0.99\n\ndecouple=True\n",
        ["weight_decay=0.1", "betas=0.9,0.99", "decouple = True"],
    ],
)
def test_optimizer_arguments_are_parsed_in_every_spelling(given: Any) -> None:
    recipe = Recipe.parse({"optimizer_args": given})
    assert recipe.optimizer_args == ["weight_decay=0.1", "betas=0.9,0.99", "decouple=True"]
    assert Recipe.parse(recipe.non_defaults()) == recipe
    assert Recipe.parse({"optimizer_args": "betas=[0.9, 0.99]"}).optimizer_args == ["betas=[0.9, 0.99]"]
    assert Recipe.parse({"optimizer_args": ""}).optimizer_args == []


def test_assignment_is_validated() -> None:
    recipe = Recipe()
    with pytest.raises(ValueError, match="greater than or equal to 1"):
        recipe.epochs = 0
    assert recipe.epochs == 10


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
