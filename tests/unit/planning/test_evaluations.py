"""The evaluations that a run can afford."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lora_studio.planning.evaluations import MAX_SHARE, MIN_BASE_POINTS, MIN_POINTS, MIN_TIMES, plan_evaluations


@pytest.mark.parametrize(
    ("samples", "epochs", "times"),
    [(4000, 20, 20), (2080, 13, 13), (1248, 6, 12), (2400, 12, 12), (2700, 5, 10), (50_000, 100, 100), (4000, 1, 10)],
)
def test_evaluations_of_a_planned_run_are_frequent_and_within_their_share(
    samples: int, epochs: int, times: int
) -> None:
    found = plan_evaluations(samples, epochs)
    assert found.share(samples, epochs) <= MAX_SHARE
    per_epoch = 40
    steps = range(1, per_epoch * epochs + 1)
    assert sum(found.due_within_epoch(step, per_epoch) or step % per_epoch == 0 for step in steps) == times


@given(samples=st.integers(1, 10**6), epochs=st.integers(1, 1000))
def test_every_run_is_evaluated_before_the_first_and_after_the_last_step(samples: int, epochs: int) -> None:
    found = plan_evaluations(samples, epochs)
    assert found.base_points >= MIN_BASE_POINTS
    assert found.points >= MIN_POINTS
    assert found.due_after_epoch(epochs, epochs)
    due = sum(found.due_after_epoch(epoch, epochs) for epoch in range(1, epochs + 1))
    assert due == -(-epochs // found.every)
    assert due * found.parts >= min(epochs, MIN_TIMES) // 2
    least = (MIN_BASE_POINTS + (1 + MIN_TIMES) * MIN_POINTS) / (3 * samples)
    assert found.share(samples, epochs) <= max(MAX_SHARE, least)


def test_an_epoch_of_one_step_has_no_step_within() -> None:
    assert not any(plan_evaluations(8000, 2).due_within_epoch(step, 1) for step in range(1, 9))
