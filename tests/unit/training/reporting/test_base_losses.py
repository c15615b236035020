"""The base's loss by timestep: a smooth curve through noisy evaluations, and losses relative to it."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from lora_studio.training.reporting.base_losses import BaseLosses


def curve(t: float) -> float:
    return 0.15 * math.exp(-t / 250)


def noisy(count: int, seed: int = 0) -> tuple[list[int], list[float]]:
    """Losses at evenly spaced timesteps, with the spread that images have."""
    timesteps = [int((number + 0.5) / count * 1000) for number in range(count)]
    factors = np.random.default_rng(seed).gamma(1 / 0.3**2, 0.3**2, count)
    return timesteps, [curve(t) * float(factor) for t, factor in zip(timesteps, factors, strict=True)]


def fitted(count: int = 48, weight: float = 1.0) -> BaseLosses:
    timesteps, losses = noisy(count)
    found = BaseLosses.fit(timesteps, [loss * weight for loss in losses], lambda t: weight)
    assert found is not None
    return found


def test_the_curve_is_that_of_the_losses_without_their_noise() -> None:
    found = fitted(96).expected(range(1000)) / [curve(t) for t in range(1000)]
    assert found.mean() == pytest.approx(1, abs=0.08)
    assert np.abs(found - 1).max() < 0.35
    assert np.abs(np.diff(found)).max() < 0.01


def test_a_kink_of_the_weights_is_kept() -> None:
    """Weights of 0 are left out: those samples do not train."""
    timesteps, losses = noisy(96)

    def weight(t: int) -> float:
        return 0.0 if t < 200 else 0.1 if t < 600 else 1.0

    found = BaseLosses.fit(timesteps, [loss * weight(t) for t, loss in zip(timesteps, losses, strict=True)], weight)
    assert found is not None
    below, above = found.expected([550, 650])
    assert above / below == pytest.approx(10 * curve(650) / curve(550), rel=0.3)
    assert found.evaluations == sum(t >= 200 for t in timesteps)


def test_a_step_is_relative_to_what_its_timesteps_lead_one_to_expect() -> None:
    base = fitted()
    timesteps = [10, 500, 990]
    expected = base.expected(timesteps)
    assert base.relative(timesteps, list(expected), [1, 1, 1]) == pytest.approx(1)
    assert base.relative(timesteps, list(expected * [0.5, 1, 1.5]), [1, 1, 1]) == pytest.approx(1)
    assert base.relative(timesteps, list(expected * [0.8, 0.8, 0.4]), [1, 1, 0.5]) == pytest.approx(0.8)
    assert base.relative(timesteps, list(expected * [0.8, 0.8, 0.0]), [1, 1, 0]) == pytest.approx(0.8)
    assert base.relative([10], [0.0], [0]) is None


def test_the_noise_of_steps_is_halved() -> None:
    """The timesteps of a step of 8 samples cause most of its noise."""
    base, random = fitted(), np.random.default_rng(1)
    raw, relative = [], []
    for _ in range(400):
        timesteps = random.integers(0, 1000, 8).tolist()
        losses = [curve(t) * float(random.gamma(1 / 0.35**2, 0.35**2)) for t in timesteps]
        raw.append(np.mean(losses))
        relative.append(base.relative(timesteps, losses, [1] * 8))
    variation = [np.std(values) / np.mean(values) for values in (raw, relative)]
    assert variation[1] < 0.6 * variation[0]


@pytest.mark.parametrize(
    "losses", [[math.nan] * 9, [0.0] * 9, [0.1, 0.1, *[math.inf] * 7]], ids=["NaN", "zero", "two points"]
)
def test_losses_without_a_curve(losses: list[float]) -> None:
    assert BaseLosses.fit(list(range(0, 900, 100)), losses, lambda t: 1.0) is None


def test_a_resume_reads_the_same_curve() -> None:
    base = fitted()
    assert BaseLosses.model_validate(json.loads(json.dumps(base.model_dump()))) == base
