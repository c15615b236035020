"""Signs by the fixed-noise loss, which has hardly any noise."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from lora_studio.planning.loss_record import LossRecord
from lora_studio.planning.loss_signs import find_sign

STEPS, EPOCHS = 1040, 13
Level = Callable[[float], float]


def record(level: Level, seed: int = 0, *, unseen: Level | None = None) -> LossRecord:
    """A run of batch 2, whose steps vary by 28%, and whose loss relative to the base's is level(share of the run)."""
    noise = np.random.default_rng(seed).gamma(1 / 0.28**2, 0.28**2, STEPS)
    losses = [level((step + 1) / STEPS) * float(noise[step]) for step in range(STEPS)]
    fixed = {epoch * STEPS // EPOCHS: (unseen or level)(epoch / EPOCHS) for epoch in range(EPOCHS + 1)}
    return LossRecord(losses, losses, fixed, 1.0, validates=unseen is not None, total=STEPS)


def codes(found: LossRecord) -> dict[int, str]:
    return {step: find_sign(found.up_to(step)).code for step in found.fixed if step}


@pytest.mark.parametrize("fall", [0.1, 0.35])
def test_an_early_plateau_is_named_within_15_percent_of_the_run(fall: float) -> None:
    found = codes(record(lambda t: 1 - fall * (1 - np.exp(-t / 0.04))))
    assert found[320] == "plateau"  # the first evaluation after 12% + 15%
    assert found[160] == "healthy"


@pytest.mark.parametrize("fall", [0.0, 0.02])
def test_a_run_that_does_not_learn_is_named_early_and_to_its_end(fall: float) -> None:
    found = codes(record(lambda t: 1 - fall * t))
    assert found[80] != "no_improvement"  # the warmup is hardly over
    assert set(list(found.values())[1:]) == {"no_improvement"}


def test_a_rise_is_named_within_15_percent_of_the_run() -> None:
    found = codes(record(lambda t: 1 - 0.2 * t if t < 0.5 else 0.9 + 0.3 * (t - 0.5)))
    assert "rising" not in [code for step, code in found.items() if step <= 520]
    assert found[720] == "rising"


@pytest.mark.parametrize("fall", [0.1, 0.3])
def test_a_steady_fall_is_healthy_throughout(fall: float) -> None:
    assert set(list(codes(record(lambda t: 1 - fall * t)).values())[1:]) == {"healthy"}


def test_a_validation_loss_that_gains_little_while_the_training_learns_is_not_a_stall() -> None:
    found = codes(record(lambda t: 1 - 0.4 * (1 - np.exp(-t / 0.3)), unseen=lambda t: 1 - 0.01 * t))
    assert set(found.values()) <= {"healthy", "unclear"}
