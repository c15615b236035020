"""Settings of the optimizer: values out of range, and its arguments as text."""

from __future__ import annotations

from typing import Any

import pytest

from lora_studio.errors import ConfigError
from lora_studio.settings.recipe import Recipe


@pytest.mark.parametrize(
    "given",
    [
        "weight_decay=0.1 betas=0.9,0.99 decouple=True",
        "weight_decay=0.1, betas=0.9,0.99, decouple=True",
        " weight_decay=0.1\nbetas = 0.9,0.99\n\ndecouple=True\n",
        ["weight_decay=0.1", "betas=0.9,0.99", "decouple = True"],
        '"weight_decay=0.1" "betas=0.9,0.99" "decouple=True"',
        "'weight_decay=0.1', 'betas=0.9,0.99', 'decouple=True'",
        '"weight_decay=0.1 betas=0.9,0.99 decouple=True"',
        ['"weight_decay=0.1"', "'betas=0.9,0.99'", "decouple=True"],
    ],
)
def test_optimizer_arguments_are_parsed_in_every_spelling(given: Any) -> None:
    recipe = Recipe.parse({"optimizer_args": given})
    assert recipe.optimizer_args == ["weight_decay=0.1", "betas=0.9,0.99", "decouple=True"]
    assert Recipe.parse(recipe.non_defaults()) == recipe
    assert Recipe.parse({"optimizer_args": "betas=[0.9, 0.99]"}).optimizer_args == ["betas=[0.9, 0.99]"]
    assert Recipe.parse({"optimizer_args": 'name="adam"'}).optimizer_args == ['name="adam"']
    assert Recipe.parse({"optimizer_args": ""}).optimizer_args == []


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"unet_lr": float("nan")}, "finite"),
        ({"max_grad_norm": float("inf")}, "finite"),
        ({"optimizer": "Adam"}, "'Adafactor', 'AdamW8bit', 'Prodigy', 'AdamW', 'CAME'"),
        ({"lr_warmup_steps": 10.5}, "lr_warmup_steps"),
        ({"optimizer_args": "betas"}, "KEY=VALUE"),
        ({"optimizer_args": ["d coef=2"]}, "KEY=VALUE"),
        ({"ema_decay": 1}, "less than 1"),
    ],
)
def test_invalid_settings_of_the_optimizer_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Recipe.parse(values)
