"""Learning rates of models, blocks and up matrices: which are equal, and which combinations are refused."""

from __future__ import annotations

import re
from typing import Any

import pytest

from lora_studio.errors import ConfigError
from lora_studio.settings.recipe import Recipe


@pytest.mark.parametrize(
    ("values", "rates"),
    [
        ({}, (5e-4, 1e-4, 1e-4)),
        ({"text_encoder_lr2": 1e-5}, (5e-4, 1e-4, 1e-5)),
        ({"text_encoder_lr": 0, "text_encoder_lr2": 1e-5}, (5e-4, 0, 1e-5)),
        ({"text_encoder_lr2": 0}, (5e-4, 1e-4, 0)),
        ({"text_encoder_lr": [2e-5, 1e-5]}, (5e-4, 2e-5, 1e-5)),  # as in sd-scripts
        ({"text_encoder_lr": [2e-5]}, (5e-4, 2e-5, 2e-5)),
    ],
)
def test_each_model_has_its_rate(values: dict[str, Any], rates: tuple[float, ...]) -> None:
    recipe = Recipe.parse(values)
    assert tuple(recipe.model_rates.values()) == rates
    assert recipe.trains_text_encoders == any(rates[1:])
    assert recipe.trained_rates == {rate for rate in rates if rate}


def test_blocks_and_up_matrices_have_multiples_of_it() -> None:
    recipe = Recipe.parse(
        {
            "unet_lr": 0.5,
            "text_encoder_lr": 0.25,
            "mid_lr_weight": "0,1,2",
            "loraplus_lr_ratio": 16,
            "loraplus_text_encoder_lr_ratio": 4,
        }
    )
    assert [recipe.layer_rate("unet", block) for block in ("in0", "mid0", "mid2")] == [0.5, 0, 1]
    assert recipe.layer_rate("te1") == 0.25
    assert [recipe.up_ratio(model) for model in ("unet", "te1", "te2")] == [16, 4, 4]
    assert recipe.trained_rates == {0.5, 1, 8, 16, 0.25}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"unet_lr": 0, "text_encoder_lr": [0, 0]}, "unet_lr and text_encoder_lr"),
        ({"text_encoder_lr": [1e-5, 1e-5, 1e-5]}, "text_encoder_lr has 3 rates"),
        ({"text_encoder_lr": []}, "text_encoder_lr has 0 rates"),
        ({"text_encoder_lr2": -1}, "text_encoder_lr2"),
        ({"loraplus_lr_ratio": 0}, "loraplus_lr_ratio"),
        ({"stop_text_encoder_training": 1.5}, "fraction of the run below 1"),
        ({"stop_text_encoder_training": 0.5, "unet_lr": 0}, "but unet_lr is 0"),
        ({"loraplus_unet_lr_ratio": 16, "network_type": "LoKr"}, "loraplus_unet_lr_ratio is 16, but LoKr"),
        ({"down_lr_weight": "0.5"}, "1 of the 9 blocks"),
        ({"up_lr_weight": "mid=1"}, "is not in this part"),
        (
            {"down_lr_weight": "zeros", "mid_lr_weight": "mid=0", "up_lr_weight": "out=0.1", "text_encoder_lr": 0}
            | {"block_lr_zero_threshold": 0.1},
            "leave every block at 0",
        ),
    ],
)
def test_rates_that_cannot_work_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        Recipe.parse(values)
