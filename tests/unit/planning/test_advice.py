from __future__ import annotations

from typing import Any

import pytest

from lora_studio.errors import ConfigError
from lora_studio.models.catalogue import BASES
from lora_studio.planning.advice import CheckContext, check_recipe, recipe_errors, require_valid
from lora_studio.planning.steps import count_steps
from lora_studio.planning.timing import SecondsRange
from lora_studio.settings.recipe import Recipe


def codes(recipe: dict[str, Any], **context: Any) -> list[str]:
    found = check_recipe(Recipe.parse(recipe), CheckContext(**context))
    assert all(warning.message and warning.why for warning in found)
    return [warning.code for warning in found]


def test_guide_defaults_give_no_warning() -> None:
    assert codes({}, images=24, vram_gib=12, trigger_word="saria_zelda", sizes=[(1024, 1024)] * 24) == []


@pytest.mark.parametrize(
    ("recipe", "context", "code"),
    [
        ({"unet_lr": 0.01}, {}, "unet_lr_range"),
        ({"unet_lr": 1e-6, "text_encoder_lr": 0}, {}, "unet_lr_range"),
        ({"text_encoder_lr": 1e-3}, {}, "text_encoder_lr_range"),
        ({"network_dim": 128}, {}, "network_dim_range"),
        ({"network_dim": 4, "network_alpha": 2}, {}, "network_dim_range"),
        ({"noise_offset": 0.3}, {}, "noise_offset_range"),
        ({"noise_offset": 0}, {}, "noise_offset_range"),
        ({"clip_skip": 4}, {}, "clip_skip_range"),
        ({"text_encoder_lr": 4e-4, "unet_lr": 2e-4}, {}, "text_encoder_rate"),
        ({"network_dim": 8, "network_alpha": 16}, {}, "alpha_above_dim"),
        ({"network_type": "LoHa", "unet_lr": 5e-4}, {}, "loha_rate"),
        ({"epochs": 40}, {"images": 24}, "epochs_tier"),
        ({"epochs": 2}, {"images": 24}, "epochs_tier"),
        ({"batch_size": 8}, {"images": 24}, "batch_size_tier"),
        ({}, {"images": 9}, "few_images"),
        ({"optimizer": "AdamW"}, {"images": 301}, "optimizer_large"),
        ({}, {"sizes": [(1024, 1024), (500, 900)]}, "small_images"),
        ({}, {"sizes": [(2048, 2048), (800, 800)]}, "mixed_resolution"),
        ({}, {"images": 2, "count": count_steps({0: 200}, batch_size=1, epochs=4)}, "shown_often"),
        ({"prediction_type": "v_prediction"}, {"base": None}, "prediction_type_set"),
        ({}, {"trigger_word": "anime"}, "trigger_style"),
        ({}, {"trigger_word": ""}, "trigger_missing"),
        ({"batch_size": 4}, {"vram_gib": 8}, "memory"),
        (
            {"gradient_checkpointing": False, "batch_size": 1, "resolution": 512, "text_encoder_lr": 0},
            {"vram_gib": 11},
            "checkpointing",
        ),
        ({"optimizer": "Prodigy", "unet_lr": 0.5, "text_encoder_lr": 0}, {}, "prodigy_rate"),
        ({}, {"base": BASES["NoobAI XL v-pred"]}, "noise_offset_zero_snr"),
        ({}, {"base": BASES["NoobAI XL v-pred"]}, "min_snr_zero_snr"),
        ({"zero_terminal_snr": "on", "prediction_type": "v_prediction"}, {"base": None}, "min_snr_zero_snr"),
        ({}, {"seconds": SecondsRange(4 * 3600, 9 * 3600)}, "time"),
    ],
)
def test_each_warning_is_given(recipe: dict[str, Any], context: dict[str, Any], code: str) -> None:
    assert code in codes(recipe, **context)


@pytest.mark.parametrize(
    ("recipe", "context"),
    [
        ({"text_encoder_lr": 0}, {}),
        ({"unet_lr": 0}, {}),
        ({"optimizer": "Prodigy", "unet_lr": 1, "text_encoder_lr": 1}, {}),
        ({"noise_offset": 0, "min_snr_gamma": 0}, {"base": BASES["NoobAI XL v-pred"]}),
        ({"optimizer": "AdamW"}, {"images": 100, "sizes": None}),
        ({}, {"sizes": [(128, 128)] * 3, "base": BASES["embedded"]}),
        ({}, {"sizes": [(4000, 4000), (1100, 1100)]}),
        ({}, {"seconds": SecondsRange(600, 9 * 3600)}),
        ({"prediction_type": "epsilon"}, {"base": BASES["SDXL 1.0"]}),
        ({}, {"images": 60, "count": count_steps({0: 120}, batch_size=1, epochs=15)}),
    ],
)
def test_sensible_recipes_give_no_warning(recipe: dict[str, Any], context: dict[str, Any]) -> None:
    found = codes({"epochs": 6, **recipe}, **context)
    assert found == []


def test_warns_about_empty_batch_slots_with_their_share() -> None:
    count = count_steps(dict.fromkeys(range(5), 2), batch_size=4, epochs=1)
    [warning] = check_recipe(Recipe(batch_size=4), CheckContext(count=count))
    assert warning.code == "bucket_waste"
    assert "50%" in warning.message
    assert codes({"batch_size": 4}, count=count_steps({0: 39}, batch_size=4, epochs=1)) == []


def test_warns_about_a_warmup_longer_than_the_run() -> None:
    count = count_steps({0: 10}, batch_size=1, epochs=2)
    assert "warmup_long" in codes({"lr_warmup_steps": 20}, count=count)
    assert "warmup_long" not in codes({"lr_warmup_steps": 19}, count=count)


def test_all_errors_are_reported_together() -> None:
    recipe = Recipe.parse({"optimizer": "Prodigy", "prediction_type": "v_prediction"})
    found = recipe_errors(recipe, BASES["SDXL 1.0"])
    assert len(found) == 4
    assert any("text_encoder_lr to 0" in problem for problem in found)
    assert sum("Set unet_lr to 1" in problem or "Set text_encoder_lr to 1" in problem for problem in found) == 2
    assert any("SDXL 1.0 predicts epsilon" in problem for problem in found)
    with pytest.raises(ConfigError) as caught:
        require_valid(recipe, BASES["SDXL 1.0"])
    assert caught.value.problems == found


@pytest.mark.parametrize(
    ("recipe", "base"),
    [
        ({}, "SDXL 1.0"),
        ({"optimizer": "Prodigy", "unet_lr": 1, "text_encoder_lr": 0}, "SDXL 1.0"),
        ({"optimizer": "Prodigy", "unet_lr": 1, "text_encoder_lr": 1}, "SDXL 1.0"),
        ({"optimizer": "Prodigy", "unet_lr": 0, "text_encoder_lr": 1}, "SDXL 1.0"),
        ({"prediction_type": "v_prediction"}, "NoobAI XL v-pred"),
        ({"prediction_type": "auto"}, "NoobAI XL v-pred"),
        ({"prediction_type": "v_prediction"}, None),
    ],
)
def test_workable_recipes_give_no_error(recipe: dict[str, Any], base: str | None) -> None:
    found = Recipe.parse(recipe)
    assert recipe_errors(found, BASES[base] if base else None) == []
    require_valid(found, BASES[base] if base else None)
