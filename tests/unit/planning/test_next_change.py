"""The setting that a verdict of a test asks to change."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lora_studio.planning.next_change import next_change
from lora_studio.planning.verdicts import Verdict
from lora_studio.settings.choices import Scheduler
from lora_studio.settings.recipe import Recipe


def verdict(code: str) -> Verdict:
    return Verdict.model_validate({"code": code, "title": "", "evidence": "", "next_step": "", "level": "warn"})


@pytest.mark.parametrize(
    ("code", "recipe", "changes"),
    [
        ("undertrained", {"epochs": 10}, {"epochs": 15}),
        ("undertrained", {"epochs": 1}, {"epochs": 2}),
        ("undertrained", {"epochs": 99, "max_train_steps": 300}, {"max_train_steps": 450}),
        ("overtrained", {"epochs": 15}, {"epochs": 10}),
        ("overtrained", {"epochs": 1}, {}),
        ("leaks", {"text_encoder_lr": 1e-4}, {"text_encoder_lr": 5e-5}),
        (
            "leaks",
            {"text_encoder_lr": 1e-4, "text_encoder_lr2": 2e-5},
            {"text_encoder_lr": 5e-5, "text_encoder_lr2": 1e-5},
        ),
        ("leaks", {"text_encoder_lr": 0}, {}),
        *((code, {}, {}) for code in ("good", "memorised", "trigger_weak", "wrong_prediction", "unclear")),
    ],
)
def test_a_verdict_changes_one_setting_or_none(code: str, recipe: dict[str, Any], changes: dict[str, Any]) -> None:
    assert next_change(verdict(code), Recipe.parse(recipe)) == changes


def test_rates_that_the_schedule_ignores_are_not_changed() -> None:
    recipe = Recipe.parse({"text_encoder_lr": 1e-4}).model_copy(update={"lr_scheduler": Scheduler.ADAFACTOR})
    assert next_change(verdict("leaks"), recipe) == {}


@given(epochs=st.integers(1, 5_000))
def test_a_longer_run_has_more_epochs_and_a_shorter_one_fewer(epochs: int) -> None:
    recipe = Recipe.parse({"epochs": epochs})
    assert next_change(verdict("undertrained"), recipe)["epochs"] > epochs
    assert 1 <= next_change(verdict("overtrained"), recipe).get("epochs", epochs) <= epochs
