"""The recommended strength and the verdict of a test."""

from __future__ import annotations

from typing import Any

import pytest

from lora_studio.sampling.picture_measures import StrengthPictures
from lora_studio.sampling.recommend import judge_lora, recommend_strength

OFF: dict[str, Any] = {"closeness": (0.5, 0.02), "contrast": (0.25, 0.01), "seed_variety": (1.0, 0.0)}
ON: dict[str, Any] = OFF | {
    "closeness": (0.9, 0.02),
    "trigger_response": (4.0, 0.3),
    "leakage": (0.1, 0.05),
    "seed_variety": (0.8, 0.05),
    "nearest": "/set/a.png",
    "nearest_ratio": 0.9,
}


def row(strength: float, **changes: Any) -> StrengthPictures:
    return StrengthPictures.model_validate({"strength": strength} | (ON if strength else OFF) | changes)


def curve(*closeness: float, error: float | None = 0.03, **changes: Any) -> list[StrengthPictures]:
    """Return rows at strengths 0, 0.6, 0.8, 1 and 1.2 with the closeness of each but the first."""
    strengths = (0.6, 0.8, 1.0, 1.2)
    return [
        row(0),
        *(row(at, closeness=(value, error), **changes) for at, value in zip(strengths, closeness, strict=True)),
    ]


def test_takes_the_lowest_strength_within_the_error_of_the_best() -> None:
    found = recommend_strength(curve(0.6, 0.88, 0.9, 0.89), "wd14")
    assert (found.strength, found.low, found.high) == (0.8, 0.8, 1.2)
    assert recommend_strength(curve(0.6, 0.7, 0.9, 0.95, error=0.001), "wd14").strength == 1.2


def test_closer_than_the_images_are_to_each_other_is_not_better() -> None:
    assert recommend_strength(curve(0.7, 1.01, 1.2, 1.5), "wd14").strength == 0.8


def test_strengths_that_copy_or_collapse_are_left_out() -> None:
    rows = curve(0.5, 0.7, 0.9, 0.95)
    rows[4] = rows[4].model_copy(update={"nearest_ratio": 0.1})
    rows[3] = rows[3].model_copy(update={"seed_variety": (0.1, 0.02)})
    assert recommend_strength(rows, "wd14").strength == 0.8
    assert recommend_strength([row(0), row(1, nearest_ratio=0.1)], "wd14").strength is None


def test_a_chance_of_one_seed_is_not_a_recommendation() -> None:
    assert recommend_strength(curve(0.6, 0.88, 0.9, 0.89, error=None), "wd14").strength is None
    assert recommend_strength([row(0)], "wd14").strength is None
    assert judge_lora([row(0), row(1, trigger_response=(4.0, None))], "wd14").code == "unclear"


def test_without_training_images_the_trigger_response_decides() -> None:
    rows = [row(at, closeness=None, trigger_response=(value, 0.2)) for at, value in ((0.5, 1.5), (0.8, 3.9), (1, 4.0))]
    assert recommend_strength(rows, "wd14").strength == 0.8


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({}, "good"),
        ({"trigger_response": (1.1, 0.1), "closeness": (0.52, 0.02)}, "undertrained"),
        ({"trigger_response": (1.1, 0.1)}, "trigger_weak"),
        ({"seed_variety": (0.1, 0.05)}, "overtrained"),
        ({"leakage": (0.95, 0.05)}, "leaks"),
        ({"nearest_ratio": 0.05}, "memorised"),
        ({"contrast": (0.05, 0.01)}, "wrong_prediction"),
        ({"trigger_response": None}, "unclear"),
        ({"seed_variety": (0.3, 0.1), "leakage": (0.8, 0.1)}, "good"),
        ({"trigger_response": (1.6, 0.5)}, "unclear"),
    ],
)
def test_verdict_by_the_measures_beyond_their_errors(changes: dict[str, Any], code: str) -> None:
    assert judge_lora([row(0), row(0.5), row(1, **changes)], "wd14").code == code


def test_copies_at_an_unusual_strength_are_no_verdict() -> None:
    assert judge_lora([row(0), row(1), row(1.4, nearest_ratio=0.05)], "wd14").code == "good"
    assert judge_lora([row(0)], "wd14").code == "unclear"
