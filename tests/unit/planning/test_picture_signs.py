"""Signs in the measures of samples."""

from __future__ import annotations

from typing import Any

import pytest

from lora_studio.planning.picture_signs import find_picture_signs
from tests.support.sample_measures import measures

BEFORE = measures(0)


def codes(before: Any = BEFORE, **changes: Any) -> list[str]:
    return [sign.code for sign in find_picture_signs(measures(**changes), before)]


@pytest.mark.parametrize("before", [BEFORE, None], ids=["samples before training", "none before training"])
@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({}, []),
        ({"nearest_ratio": [1.0, 0.1, 1.2, 0.02]}, ["copies"]),
        ({"variety": (0.02, 0.005)}, ["collapsed"]),
        ({"contrast": (0.05, 0.01)}, ["washed_out"]),
        ({"saturation": (0.04, 0.01)}, ["washed_out"]),
        ({"clipped": (0.6, 0.05)}, ["burnt"]),
        ({"saturation": (0.7, 0.03)}, ["burnt"]),
        (
            {"nearest_ratio": [0.0] * 4, "variety": (0.0, 0.0), "contrast": (0.0, 0.0)},
            ["copies", "collapsed", "washed_out"],
        ),
    ],
)
def test_names_what_differs_from_before_training_and_from_the_training_images(
    before: Any, changes: dict[str, Any], code: list[str]
) -> None:
    if before is None:  # the base's own colours are not known
        code = [name for name in code if name not in ("washed_out", "burnt")]
    assert codes(before, **changes) == code


@pytest.mark.parametrize(
    "changes",
    [
        {"variety": (0.06, 0.02)},
        {"contrast": (0.1, 0.03)},
        {"clipped": (0.4, 0.05)},
        {"variety": None},
    ],
)
def test_a_difference_within_the_noise_of_the_samples_says_nothing(changes: dict[str, Any]) -> None:
    assert codes(**changes) == []


def test_a_pale_style_and_a_subject_that_is_always_the_same_are_no_faults() -> None:
    pale = {"training_contrast": 0.06, "training_saturation": 0.0, "training_variety": 0.02}
    assert codes(contrast=(0.06, 0.01), saturation=(0.0, 0.0), variety=(0.02, 0.005), **pale) == []


def test_a_sample_that_was_as_near_before_training_is_not_a_copy() -> None:
    before = measures(0, indices=[1, 2], nearest=["/set/b.png"] * 2, nearest_ratio=[0.1, 1.0])
    found = find_picture_signs(measures(nearest_ratio=[1.0, 0.1, 0.1, 1.0]), before)
    assert [sign.copied for sign in found] == [[2]]
