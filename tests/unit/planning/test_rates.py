"""The learning rates that suit a recipe, and those to try after a run that diverged."""

from __future__ import annotations

from typing import Any

import pytest

from lora_studio.planning.rates import lower_rates, lower_rates_advice, usual_rate
from lora_studio.settings.recipe import Recipe

LOHA = {"network_type": "LoHa", "network_dim": 32, "network_alpha": 16}


@pytest.mark.parametrize(
    ("recipe", "unet_lr"),
    [
        ({}, 5e-4),
        ({"optimizer": "Lion"}, 1e-4),
        ({"network_type": "LoHa", "network_dim": 8, "network_alpha": 4}, 2e-4),  # as in LyCORIS' example
        (LOHA, 5e-5),
        ({"loraplus_lr_ratio": 16}, 1.25e-4),
        (LOHA | {"optimizer": "Lion"}, 1e-5),
        ({"network_type": "LoHa", "network_dim": 16, "network_alpha": 4, "rank_stabilized": True}, 5e-5),
    ],
)
def test_the_usual_rate_suits_optimizer_and_network(recipe: dict[str, Any], unet_lr: float) -> None:
    parsed = Recipe.parse(recipe)
    assert usual_rate("unet_lr", parsed) == pytest.approx(unet_lr)
    for setting in ("text_encoder_lr", "text_encoder_lr2"):
        assert usual_rate(setting, parsed) == pytest.approx(unet_lr / 5)


@pytest.mark.parametrize(
    ("recipe", "expected"),
    [
        ({}, {"unet_lr": 2.5e-4, "text_encoder_lr": 5e-5}),
        ({"unet_lr": 4e-3, "text_encoder_lr": 0}, {"unet_lr": 2e-3}),
        ({"unet_lr": 0.1, "text_encoder_lr": 0.02}, {"unet_lr": 5e-4, "text_encoder_lr": 1e-4}),
        ({"unet_lr": 0, "text_encoder_lr": 0.02}, {"text_encoder_lr": 1e-4}),
        ({"unet_lr": 0, "text_encoder_lr": [1e-4, 0.02]}, {"text_encoder_lr": 5e-5, "text_encoder_lr2": 1e-4}),
        ({"optimizer": "Lion8bit", "unet_lr": 0.1, "text_encoder_lr": 0}, {"unet_lr": 1e-4}),
        (LOHA | {"unet_lr": 0.1, "text_encoder_lr": 1e-5}, {"unet_lr": 5e-5, "text_encoder_lr": 5e-6}),
        ({"optimizer": "Prodigy", "unet_lr": 1, "text_encoder_lr": 1}, {"unet_lr": 0.5, "text_encoder_lr": 0.5}),
        ({"optimizer": "Adafactor", "lr_scheduler": "adafactor"}, {}),
    ],
)
def test_rates_are_halved_or_become_the_guides_if_they_are_far_above_it(
    recipe: dict[str, Any], expected: dict[str, float]
) -> None:
    parsed = Recipe.parse(recipe)
    assert lower_rates(parsed) == expected
    advice = lower_rates_advice(parsed)
    assert all(f"{name} to {rate:g}" in advice for name, rate in expected.items())
    assert expected or "lr_scheduler" in advice
