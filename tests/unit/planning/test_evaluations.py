"""The evaluations that a run can afford."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lora_studio.planning.evaluations import MAX_SHARE, MIN_BASE_POINTS, MIN_EPOCHS, MIN_POINTS, plan_evaluations


@pytest.mark.parametrize(
    ("samples", "epochs"), [(4000, 20), (2080, 13), (1248, 6), (2400, 12), (2700, 5), (50_000, 100), (2000, 1000)]
)
def test_evaluations_of_a_planned_run_are_within_their_share(samples: int, epochs: int) -> None:
    found = plan_evaluations(samples, epochs)
    assert found.share(samples, epochs) <= MAX_SHARE


@given(samples=st.integers(1, 10**6), epochs=st.integers(1, 1000))
def test_every_run_is_evaluated_before_the_first_and_after_the_last_step(samples: int, epochs: int) -> None:
    found = plan_evaluations(samples, epochs)
    assert found.base_points >= MIN_BASE_POINTS
    assert found.points >= MIN_POINTS
    assert found.due(epochs, epochs)
    due = sum(found.due(epoch, epochs) for epoch in range(1, epochs + 1))
    assert due == -(-epochs // found.every)
    assert due >= min(epochs, MIN_EPOCHS) // 2
    least = (MIN_BASE_POINTS + (1 + MIN_EPOCHS) * MIN_POINTS) / (3 * samples)
    assert found.share(samples, epochs) <= max(MAX_SHARE, least)
