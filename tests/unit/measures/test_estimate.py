"""Standard errors by the jackknife."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lora_studio.measures.distances import mean
from lora_studio.measures.estimate import jackknife

VALUES = st.lists(st.floats(-100, 100), min_size=2, max_size=12)


@given(VALUES)
def test_error_of_a_mean_is_its_standard_error(values: list[float]) -> None:
    found = jackknife(lambda chosen: mean(np.array(values)[chosen]), [len(values)])
    assert found is not None
    assert found.value == pytest.approx(np.mean(values), abs=1e-9)
    assert found.error == pytest.approx(np.std(values, ddof=1) / len(values) ** 0.5, abs=1e-6)


def test_axes_add_up_and_one_with_a_single_value_does_not_count() -> None:
    rows = np.array([[1.0, 3.0], [5.0, 7.0]])

    def of(values: np.ndarray) -> float:
        found = jackknife(lambda prompts, seeds: mean(values[prompts][:, seeds]), values.shape)
        assert found is not None
        assert found.error is not None
        return found.error

    over_prompts, over_seeds = of(rows.mean(axis=1, keepdims=True)), of(rows.mean(axis=0, keepdims=True))
    assert of(rows) == pytest.approx(np.hypot(over_prompts, over_seeds))


def test_no_error_of_a_single_value_and_no_value_of_nothing() -> None:
    found = jackknife(lambda chosen: mean(np.array([4.0])[chosen]), [1])
    assert found is not None
    assert found == (4.0, None)
    assert jackknife(lambda chosen: mean(np.array([np.nan])[chosen]), [1]) is None
