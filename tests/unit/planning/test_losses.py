from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lora_studio.planning.losses import fit_trend, has_diverged, smooth, total_change


def test_smooth_starts_at_the_first_loss_and_keeps_a_constant() -> None:
    assert smooth([0.25] * 50) == pytest.approx([0.25] * 50)
    assert smooth([3.0, 1.0])[0] == pytest.approx(3.0)
    assert smooth([None, 2.0, None, float("nan")]) == [None, 2.0, 2.0, 2.0]
    assert smooth([]) == []


def test_smooth_weights_halve_per_half_life() -> None:
    # After n half-lives of zeros, the share of the ones before is 2**-n of all weights.
    smoothed = smooth([1.0] * 2000 + [0.0] * 30, half_life=10)
    assert smoothed[-1] == pytest.approx(2**-3, rel=1e-6)


@given(st.lists(st.floats(0, 10) | st.none(), max_size=60))
def test_smooth_stays_within_the_range_of_earlier_losses(losses: list[float | None]) -> None:
    smoothed = smooth(losses)
    assert len(smoothed) == len(losses)
    seen: list[float] = []
    for loss, value in zip(losses, smoothed, strict=True):
        if loss is not None:
            seen.append(loss)
        assert (value is None) == (not seen)
        if value is not None:
            assert min(seen) - 1e-9 <= value <= max(seen) + 1e-9


def test_fit_trend_finds_the_slope_and_its_standard_error() -> None:
    steps = 2000
    change = fit_trend([0.2 - 0.1 * step / steps for step in range(steps)])
    assert change.start == pytest.approx(0.2, abs=2e-3)
    assert change.end == pytest.approx(0.1, abs=2e-3)
    assert change.error < 1e-3
    errors = []
    shifts = []
    for seed in range(200):
        noise = np.random.default_rng(seed).gamma(1 / 0.4**2, 0.4**2, 400)  # skewed, as diffusion losses are
        noisy = fit_trend([float(value) for value in 0.12 * noise])
        errors.append(noisy.error)
        shifts.append(noisy.end - noisy.start)
    assert np.mean(errors) == pytest.approx(np.std(shifts), rel=0.15)


def test_total_change_compares_the_start_with_the_end() -> None:
    change = total_change([1.0] * 50 + [0.5] * 450)
    assert change.steps == 500
    assert change.relative == pytest.approx(-0.5)
    assert change.falls
    assert not change.rises


@pytest.mark.parametrize(
    ("recent", "diverged"),
    [
        ([None] * 5, True),
        ([None] * 4, False),
        ([0.1] + [None] * 4 + [0.1], False),
        ([0.1, float("nan")] * 10, True),
        ([None, 0.1] * 10, True),
        ([0.1, float("inf")] * 9, False),
        ([None, 0.1, 0.1] * 10, False),
        ([None, 0.1] * 20 + [0.1] * 3, False),
    ],
)
def test_a_run_has_diverged_if_steps_keep_having_no_finite_loss(recent: list[float | None], diverged: bool) -> None:
    assert has_diverged(recent) is diverged
