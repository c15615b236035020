"""Runs with several learning rates, on the small SDXL: with every kind of optimizer they resume bit-exact."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lora_studio.workspace.project import Home
from tests.support.events import of
from tests.support.tiny_sdxl import save_tiny_sdxl
from tests.support.training_runs import make_images, make_job, same, train_into, weights_of

pytestmark = pytest.mark.slow

FREE = {"optimizer": "ProdigyPlusScheduleFree", "unet_lr": 1, "text_encoder_lr": [1, 0.5]}
RATES: dict[str, Any] = {
    "text_encoder_lr": [5e-4, 1e-4],
    "loraplus_lr_ratio": 4,
    "down_lr_weight": "cosine+.2",
    "mid_lr_weight": "0.5,2,1",
    "up_lr_weight": "out0=0",
}


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shared")
    make_images(folder / "images", [(64, 64), (32, 64), (64, 64)])
    save_tiny_sdxl(folder / "base", layers=1)
    return folder


@pytest.mark.parametrize(
    "recipe",
    [
        {"optimizer": "AdamW", "mixed_precision": "bf16", "gradient_checkpointing": "on"},
        {"optimizer": "AdamW8bit", "network_dim": 64},
        {"optimizer": "Adafactor", "ema_decay": 0.5},
        {"optimizer": "CAME", "network_type": "DoRA"},
        {"optimizer": "AdamWScheduleFree", "scale_weight_norms": 0.01},
        FREE,
        {"optimizer_type": "torch.optim.RAdam", "network_type": "LoCon"},
    ],
    ids=lambda recipe: next(iter(recipe.values())),
)
def test_a_run_with_several_rates_resumes_bit_exact(shared: Path, tmp_path: Path, recipe: dict[str, Any]) -> None:
    job = make_job(shared / "base", shared / "images", **(RATES | recipe))
    home = Home(shared / "home")
    _, events = train_into(job, tmp_path / "whole", home)
    train_into(job, tmp_path / "parts", home, stop_after=1)
    train_into(job, tmp_path / "parts", home, stop_after=3, resume=True)
    train_into(job, tmp_path / "parts", home, resume=True)
    whole = weights_of(tmp_path / "whole")
    assert same(weights_of(tmp_path / "parts"), whole)
    trained = {name.split("/")[0] for name, weight in whole.items() if name.endswith("/B") and weight.any()}
    assert trained == {"unet", "te1", "te2"}
    step = of(events, "step")[0]
    if "unet_lr" not in recipe:  # an optimizer that finds the rate itself
        assert (step["lr"], step["text_encoder_lr"], step["text_encoder_lr2"]) == pytest.approx((1e-3, 5e-4, 1e-4))


@pytest.mark.parametrize(
    "recipe",
    [
        {"optimizer": "AdamW", "mixed_precision": "bf16", "gradient_checkpointing": "on", "network_dropout": 0.1},
        {"optimizer": "Prodigy", "unet_lr": 1, "text_encoder_lr": 1, "scale_weight_norms": 0.01},
        {"optimizer": "Adafactor", "ema_decay": 0.5},
        {"optimizer": "AdamW8bit", "network_dim": 64, "network_type": "LoKr"},
        {"optimizer": "AdamWScheduleFree", "lr_scheduler": "constant"},
        FREE,
    ],
    ids=lambda recipe: recipe["optimizer"],
)
def test_a_run_resumes_bit_exact_before_and_after_its_text_encoders_stop(
    shared: Path, tmp_path: Path, recipe: dict[str, Any]
) -> None:
    recipe = {"text_encoder_lr": 5e-4, "stop_text_encoder_training": 2} | recipe
    job = make_job(shared / "base", shared / "images", **recipe)
    home = Home(shared / "home")
    train_into(job, tmp_path / "whole", home)
    for stop_after, resume in ((1, False), (2, True), (3, True), (None, True)):
        train_into(job, tmp_path / "parts", home, stop_after=stop_after, resume=resume)
    assert same(weights_of(tmp_path / "parts"), weights_of(tmp_path / "whole"))
