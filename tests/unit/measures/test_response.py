"""Trigger response and leakage."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lora_studio.measures.distances import MIN_DISTANCE
from lora_studio.measures.response import change, leakage, trigger_response
from tests.support.features import at_angles, distance

ANGLES = st.lists(st.lists(st.floats(5, 90), min_size=2, max_size=2), min_size=2, max_size=4)


def test_trigger_response_is_the_ratio_of_the_distances_with_and_without_the_lora() -> None:
    base, without = at_angles([[0, 10], [20, 30]]), at_angles([[1, 11], [21, 31]])
    with_trigger, base_with = at_angles([[61, 71], [81, 91]]), at_angles([[20, 30], [40, 50]])
    found = trigger_response(with_trigger, without, base_with, base)
    assert found is not None
    assert found.value == pytest.approx(distance(60) / distance(20), rel=1e-3)
    assert found.error == pytest.approx(0, abs=1e-3)


@given(ANGLES)
def test_a_lora_that_changes_nothing_responds_as_the_base_and_leaks_nothing(angles: list[list[float]]) -> None:
    base, base_with = at_angles(np.zeros_like(angles)), at_angles(angles)
    same = trigger_response(base_with, base, base_with, base)
    assert same is not None
    assert same.value == pytest.approx(1)
    assert change(base, base) == pytest.approx((0, 0), abs=1e-6)


@given(ANGLES)
def test_leakage_is_one_if_all_prompts_change_equally_and_zero_without_change(angles: list[list[float]]) -> None:
    base = at_angles(np.zeros_like(angles))
    everywhere = leakage(at_angles(angles), at_angles(angles), base, base)
    nowhere = leakage(at_angles(angles), base, base, base)
    assert everywhere is not None
    assert nowhere is not None
    assert everywhere.value == pytest.approx(1)
    assert nowhere.value == pytest.approx(0, abs=1e-6)


def test_other_numbers_of_prompts_with_and_without_the_trigger() -> None:
    base = at_angles([[0, 0]])
    found = leakage(at_angles([[60, 60], [60, 60], [60, 60]]), at_angles([[20, 20]]), at_angles(np.zeros((3, 2))), base)
    assert found is not None
    assert found.value == pytest.approx(distance(20) / distance(60), rel=1e-3)


def test_a_base_without_any_response_does_not_divide_by_zero() -> None:
    base = at_angles([[0, 0]])
    found = trigger_response(at_angles([[60, 60]]), base, base, base)
    assert found is not None
    assert found.value == pytest.approx(distance(60) / MIN_DISTANCE, rel=1e-3)


def test_a_missing_picture_is_left_out() -> None:
    base = at_angles([[0, 0], [0, 0]])
    with_trigger = at_angles([[60, 60], [60, 60]])
    with_trigger[1, 0] = np.nan
    found = change(with_trigger, base)
    assert found is not None
    assert found.value == pytest.approx(distance(60), rel=1e-3)
