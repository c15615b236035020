"""Variety over seeds and prompts."""

from __future__ import annotations

import numpy as np
import pytest

from lora_studio.measures.variety import prompt_variety, seed_variety
from tests.support.features import at_angles, distance


def test_variety_over_seeds_is_within_prompts_and_over_prompts_within_seeds() -> None:
    pictures = at_angles([[0, 0, 0], [90, 90, 90]])
    assert seed_variety(pictures) == pytest.approx((0, 0), abs=1e-6)
    over_prompts = prompt_variety(pictures)
    assert over_prompts is not None
    assert over_prompts.value == pytest.approx(1)


def test_relative_to_the_base_and_zero_if_all_pictures_are_the_same() -> None:
    base = at_angles([[0, 60, 120], [10, 70, 130]])
    assert seed_variety(base, base) == pytest.approx((1, 0), abs=1e-6)
    assert seed_variety(at_angles(np.full((2, 3), 45)), base) == pytest.approx((0, 0), abs=1e-6)
    halved = seed_variety(at_angles([[0, 30, 60], [10, 40, 70]]), base)
    assert halved is not None
    expected = (2 * distance(30) + distance(60)) / (2 * distance(60) + distance(120))
    assert halved.value == pytest.approx(expected, rel=1e-3)


def test_one_seed_has_no_variety_over_seeds() -> None:
    assert seed_variety(at_angles([[0], [90]])) is None
    assert prompt_variety(at_angles([[0, 90]])) is None


def test_a_chance_of_one_seed_is_in_the_error() -> None:
    found = seed_variety(at_angles([[0, 0, 0, 90]]))
    assert found is not None
    assert found.error is not None
    assert found.value - 2 * found.error < 0
