from __future__ import annotations

from typing import Any

import pytest

from lora_studio.models.catalogue import BASES
from lora_studio.planning.advice import CheckContext, check_recipe, recipe_errors
from lora_studio.planning.memory import estimate_vram_parts, fit_vram
from lora_studio.settings.choices import Optimizer
from lora_studio.settings.recipe import Recipe

PRODIGY: dict[str, Any] = {"optimizer": "Prodigy", "unet_lr": 1, "text_encoder_lr": 0}
V_PRED = "NoobAI XL v-pred"


@pytest.mark.parametrize(
    ("recipe", "code"),
    [
        ({"optimizer": "Lion8bit", "unet_lr": 5e-4, "text_encoder_lr": 0}, "lion_rate"),
        ({"optimizer": "AdamWScheduleFree"}, "schedule_free"),
        ({"optimizer": "AdamWScheduleFree", "lr_scheduler": "constant", "ema_decay": 0.99}, "averaged_twice"),
        (
            {
                "optimizer": "ProdigyPlusScheduleFree",
                "unet_lr": 1,
                "text_encoder_lr": 0,
                "lr_scheduler": "constant",
            },
            "prodigy_clipping",
        ),
        ({"lr_scheduler": "adafactor"}, "adafactor_rates"),
        ({"lr_scheduler": "constant", "lr_warmup_steps": 10}, "warmup_ignored"),
        ({"loraplus_unet_lr_ratio": 16}, "loraplus_rate"),
        ({"loraplus_text_encoder_lr_ratio": 16}, "loraplus_rate"),
        ({"text_encoder_lr": [1e-4, 4e-4], "unet_lr": 3e-4}, "text_encoder_rate"),
        ({"debiased_estimation_loss": True}, "weighted_twice"),
        ({"multires_noise_iterations": 6}, "offset_twice"),
    ],
)
def test_each_warning_is_given_alone(recipe: dict[str, Any], code: str) -> None:
    found = check_recipe(Recipe.parse(recipe), CheckContext())
    assert [warning.code for warning in found] == [code]
    assert found[0].message
    assert found[0].why


@pytest.mark.parametrize(
    "recipe",
    [
        {"optimizer": "Lion8bit", "unet_lr": 1e-4, "text_encoder_lr": 2e-5},
        {"optimizer": "AdamWScheduleFree", "lr_scheduler": "constant_with_warmup", "lr_warmup_steps": 10},
        {"loraplus_lr_ratio": 16, "unet_lr": 1e-4, "text_encoder_lr": 2e-5},
        {"debiased_estimation_loss": True, "min_snr_gamma": 0},
        {"multires_noise_iterations": 6, "noise_offset": 0},
        {"ema_decay": 0.99, "loss_type": "huber", "timestep_sampling": "logit_normal"},
        *({"optimizer": name} for name in ("CAME", "PagedAdamW8bit", "AdamW8bit", "Adafactor")),
    ],
)
def test_suitable_settings_give_no_warning(recipe: dict[str, Any]) -> None:
    assert check_recipe(Recipe.parse(recipe), CheckContext()) == []


@pytest.mark.parametrize(
    ("recipe", "base", "remedy"),
    [
        ({"zero_terminal_snr": "on"}, "SDXL 1.0", "Set zero_terminal_snr to auto, or choose a base"),
        ({"zero_terminal_snr": "on", "prediction_type": "epsilon"}, None, "Set zero_terminal_snr to auto"),
        ({"lr_scheduler": "adafactor", "optimizer": "AdamW"}, None, "lr_scheduler to cosine"),
        ({"lr_scheduler": "adafactor", "optimizer": "AdamWScheduleFree"}, None, "lr_scheduler to constant"),
        ({"optimizer": "ProdigyPlusScheduleFree", "text_encoder_lr": 0}, None, "Set unet_lr to 1"),
        (PRODIGY | {"loraplus_lr_ratio": 16}, None, "loraplus_lr_ratio is 16, but Prodigy takes one rate only"),
        (PRODIGY | {"up_lr_weight": "sine+.2"}, None, "up_lr_weight is sine+.2, but Prodigy takes one rate only"),
        (PRODIGY | {"text_encoder_lr": [1, 0.5]}, None, "text_encoder_lr2 0.5 differ, and Prodigy takes one rate"),
        (
            {"lr_scheduler": "adafactor", "mid_lr_weight": "mid=2"},
            None,
            "mid_lr_weight is mid=2, but with",
        ),
    ],
)
def test_incompatible_settings_give_an_error_with_a_remedy(
    recipe: dict[str, Any], base: str | None, remedy: str
) -> None:
    (problem,) = recipe_errors(Recipe.parse(recipe), BASES[base] if base else None)
    assert remedy in problem


@pytest.mark.parametrize(
    ("recipe", "base"),
    [
        ({"zero_terminal_snr": "on"}, V_PRED),
        ({"zero_terminal_snr": "off"}, V_PRED),
        ({"zero_terminal_snr": "off"}, "SDXL 1.0"),
        ({"zero_terminal_snr": "on"}, None),
        ({"lr_scheduler": "adafactor"}, None),
        (PRODIGY | {"up_lr_weight": "out3-8=0", "loraplus_text_encoder_lr_ratio": 16}, None),
        (PRODIGY | {"text_encoder_lr": [1, 0]}, None),
        ({"loraplus_lr_ratio": 16, "down_lr_weight": "cosine", "text_encoder_lr": [1e-5, 1e-6]}, None),
        ({"optimizer": "ProdigyPlusScheduleFree", "unet_lr": 1, "text_encoder_lr": 0.2}, None),
    ],
)
def test_compatible_settings_give_no_error(recipe: dict[str, Any], base: str | None) -> None:
    assert recipe_errors(Recipe.parse(recipe), BASES[base] if base else None) == []


def test_warns_about_a_noise_schedule_other_than_the_bases() -> None:
    found = check_recipe(Recipe.parse({"zero_terminal_snr": "off"}), CheckContext(base=BASES[V_PRED]))
    assert [warning.code for warning in found] == ["zero_snr_off"]


@pytest.mark.parametrize(
    ("recipe", "mib"),
    [
        # 85.1 million weights of 4 bytes, and twice a row and a column for each of 1,444 matrices
        ({"optimizer": "CAME"}, 324.7 + 2 * 4 * (2_659_840 + 2 * 32 * 986) / 2**20),
        ({"optimizer": "Lion8bit"}, 85.2),
        ({"optimizer": "Prodigy", "optimizer_args": "slice_p=11"}, 649.4 * 12 / 11),
        ({"optimizer": "PagedAdamW8bit"}, 170.5),
        ({"optimizer": "AdamWScheduleFree"}, 649.4),
        ({"optimizer": "AdamWScheduleFree", "ema_decay": 0.99}, 649.4 + 324.7),
        ({"optimizer": "ProdigyPlusScheduleFree", "unet_lr": 1}, 354.2 + 4 * (2_659_840 + 2 * 32 * 986) / 2**20),
    ],
)
def test_optimizer_state_sizes(recipe: dict[str, Any], mib: float) -> None:
    parts = estimate_vram_parts(Recipe.parse({"text_encoder_lr": 0, **recipe}))
    assert parts["Optimizer state"] * 1024 == pytest.approx(mib, abs=2)


def test_replacing_the_optimizer_drops_its_arguments() -> None:
    start = Recipe.parse(
        {"optimizer": "Prodigy", "optimizer_args": "d_coef=2", "unet_lr": 1, "text_encoder_lr": 0, "network_dim": 128,
         "batch_size": 1}
    )  # fmt: skip
    fitted, _ = fit_vram(start, None, 12)
    assert (fitted.optimizer, fitted.optimizer_args) == (Optimizer.ADAMW8BIT, [])


def test_the_advice_on_an_optimizer_is_not_given_for_a_class_by_its_name() -> None:
    values = {"optimizer_type": "torch.optim.RAdam", "optimizer": "Prodigy", "unet_lr": 1e-4, "text_encoder_lr": 1e-5}
    assert recipe_errors(Recipe.parse(values)) == []
    assert recipe_errors(Recipe.parse(values | {"optimizer_type": ""}))
    (problem,) = recipe_errors(Recipe.parse(values | {"lr_scheduler": "adafactor"}))
    assert "lr_scheduler" in problem
    fitted = fit_vram(Recipe.parse(values | {"optimizer": "Adafactor", "unet_lr": 1}), None, 6)[0]
    assert (fitted.optimizer, fitted.optimizer_type, fitted.unet_lr) == (Optimizer.ADAMW8BIT, "", 5e-4)
