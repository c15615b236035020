from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lora_studio.events import Event, NanEvent, PhaseEvent, ResumeEvent, ValidationEvent
from lora_studio.planning.verdicts import Verdict, judge_losses, judge_run, read_losses
from lora_studio.settings.recipe import Recipe
from tests.support.events import step_event

Curve = Callable[[Any], Any]
SHAPES: dict[str, Curve] = {
    "flat": lambda t: np.ones_like(t),
    "falling": lambda t: 1 - 0.3 * t,
    "settling": lambda t: 0.6 + 0.4 * np.exp(-20 * t),
    "rising": lambda t: np.where(t < 0.5, 1 - 0.2 * t, 0.9 + 0.6 * (t - 0.5)),
}


def curve(shape: str, steps: int, noise: float, seed: int) -> list[float | None]:
    """Losses around 0.12 with skewed noise, as diffusion losses have; `noise` is its relative standard deviation."""
    generator = np.random.default_rng(seed)
    level = 0.12 * SHAPES[shape](np.linspace(0, 1, steps))
    order = 1 / noise**2
    return [float(value) for value in level * generator.gamma(order, 1 / order, steps)]


def verdicts(shape: str, steps: int, noise: float, runs: int = 60) -> list[str]:
    return [judge_losses(curve(shape, steps, noise, seed)).code for seed in range(runs)]


@pytest.mark.parametrize(
    ("shape", "code"),
    [("flat", "no_improvement"), ("falling", "healthy"), ("settling", "plateau"), ("rising", "rising")],
)
def test_long_curves_get_the_right_verdict(shape: str, code: str) -> None:
    found = verdicts(shape, 3000, 0.2)
    assert found.count(code) >= 54, found


@pytest.mark.parametrize(
    ("validation", "code"),
    [
        ({0: 0.13, 100: 0.12, 200: 0.11, 300: 0.10}, "healthy"),
        ({0: 0.13, 100: 0.10, 200: 0.11, 300: 0.12}, "overfit"),
        ({0: 0.10, 100: 0.11, 200: 0.12, 300: 0.13}, "overfit"),
        ({0: 0.13, 100: 0.10, 200: 0.101, 300: 0.102}, "healthy"),  # a rise below MIN_RISE
        ({0: 0.13, 100: 0.12, 200: 0.10, 300: 0.12}, "healthy"),  # fewer than VALIDATION_PATIENCE
        ({0: 0.13, 100: 0.10, 200: 0.12, 300: float("nan")}, "healthy"),
        ({}, "healthy"),
    ],
)
def test_rising_validation_loss_is_overfitting(validation: dict[int, float], code: str) -> None:
    losses = curve("falling", 300, 0.2, 1)
    events: list[Event] = [step_event(step, loss=loss, total=300) for step, loss in enumerate(losses, 1)]
    events += [ValidationEvent(step=step, epoch=0, loss=loss) for step, loss in validation.items()]
    found = judge_run(events)
    assert found.code == code
    if code == "overfit" and validation[0] == 0.13:
        for figure in ("step 100", "0.1,", "0.12 now", "+20%"):
            assert figure in found.evidence
        assert "step 100" in found.next_step


@pytest.mark.parametrize("steps", [60, 200, 800])
@pytest.mark.parametrize("noise", [0.3, 0.7])
def test_noise_alone_is_not_a_trend(steps: int, noise: float) -> None:
    found = verdicts("flat", steps, noise, runs=60)
    assert sum(code in ("healthy", "rising", "plateau") for code in found) <= 3, found


@pytest.mark.parametrize("shape", ["falling", "settling"])
def test_good_runs_rarely_get_a_bad_verdict(shape: str) -> None:
    found = [code for steps in (100, 400, 1500) for code in verdicts(shape, steps, 0.5, runs=30)]
    assert sum(code in ("rising", "no_improvement") for code in found) <= 3, found


def test_falling_curve_of_usual_length_is_healthy() -> None:
    assert verdicts("falling", 800, 0.4).count("healthy") >= 54


def test_verdicts_have_levels_and_next_steps_with_figures() -> None:
    recipe = Recipe()
    flat = judge_losses(curve("flat", 3000, 0.2, 1), recipe=recipe)
    assert (flat.code, flat.level) == ("no_improvement", "warn")
    assert "0.0005 to 0.001" in flat.next_step
    rising = judge_losses(curve("rising", 3000, 0.2, 1), recipe=recipe)
    assert (rising.code, rising.level) == ("rising", "bad")
    assert "0.0005 to 0.00025" in rising.next_step
    settled = judge_losses(curve("settling", 3000, 0.2, 1), recipe=recipe)
    assert (settled.code, settled.level) == ("plateau", "good")
    running = judge_losses(curve("settling", 3000, 0.2, 1), recipe=recipe, running=True)
    assert (running.code, running.level) == ("plateau", "warn")
    assert "undertrain" in running.next_step
    healthy = judge_losses(curve("falling", 3000, 0.2, 1), running=True)
    assert (healthy.code, healthy.level) == ("healthy", "good")
    assert "%" in healthy.evidence
    assert "3000 steps" in healthy.evidence


def test_prodigy_gets_no_advice_on_its_learning_rate() -> None:
    recipe = Recipe.parse({"optimizer": "Prodigy", "unet_lr": 1, "text_encoder_lr": 0})
    assert "unet_lr" not in judge_losses(curve("rising", 3000, 0.2, 1), recipe=recipe).next_step


@pytest.mark.parametrize(("slope", "level"), [(0.002, "bad"), (0.00005, "warn")])
def test_steep_rise_is_worse(slope: float, level: str) -> None:
    found = judge_losses([0.1] * 200 + [0.1 + slope * step for step in range(200)])
    assert (found.code, found.level) == ("rising", level)


def test_short_run_is_too_short_for_a_verdict() -> None:
    found = judge_losses(curve("falling", 49, 0.1, 0), running=True)
    assert (found.code, found.level) == ("too_short", "info")
    assert "49 steps" in found.evidence
    assert judge_losses([]).code == "too_short"


@pytest.mark.parametrize("last", [None, float("nan"), float("inf")])
def test_run_that_ends_without_a_finite_loss_is_nan(last: float | None) -> None:
    losses = [*curve("falling", 100, 0.2, 0), last, last]
    found = judge_losses(losses, recipe=Recipe.parse({"mixed_precision": "fp16"}))
    assert (found.code, found.level) == ("nan", "bad")
    assert "2 of 102" in found.evidence
    assert "bf16" in found.next_step
    assert "0.0005 to 0.00025" in found.next_step


def test_run_without_a_finite_loss_in_every_other_step_is_nan() -> None:
    losses: list[float | None] = curve("falling", 500, 0.2, 0)
    losses[1::2] = [None] * 250
    losses.append(0.1)
    recipe = Recipe.parse({"unet_lr": 0.1, "text_encoder_lr": 1e-4})
    found = judge_losses(losses, recipe=recipe)
    assert (found.code, found.level) == ("nan", "bad")
    assert "10 of the last 20" in found.evidence
    assert "unet_lr 0.1 to 0.0005" in found.next_step  # 200 times the guide's rate, to the guide's


def test_gaps_do_not_change_the_verdict() -> None:
    losses = curve("falling", 3000, 0.2, 0)
    losses[500:520] = [None] * 20
    losses[900] = float("nan")
    assert judge_losses(losses).code == "healthy"


def test_spike_is_not_a_rise() -> None:
    losses = curve("falling", 3000, 0.2, 0)
    losses[2900] = 1e6
    assert judge_losses(losses).code == "healthy"


def test_judge_run_reads_losses_and_total_from_events() -> None:
    losses = curve("falling", 1000, 0.2, 0)
    events: list[Event] = [PhaseEvent(message="Loading")]
    events += [step_event(step, loss=loss, total=1200) for step, loss in enumerate(losses, 1)]
    found = judge_run(events)
    assert found.code == "healthy"
    assert found == judge_losses(losses, running=True)
    assert judge_run(events, total=1000) == judge_losses(losses, running=False)
    assert Verdict.model_validate_json(found.model_dump_json()) == found


def test_last_loss_of_a_repeated_step_counts() -> None:
    events: list[Event] = [step_event(step, loss=1.0) for step in (1, 2, 3)]
    events += [ResumeEvent(step=1), step_event(2, loss=0.5), NanEvent(step=4, total=10, epoch=1)]
    assert read_losses(events) == [1.0, 0.5, 1.0, None]


@given(
    st.lists(st.floats(0.0, 5.0) | st.none() | st.just(float("nan")), max_size=150),
    st.booleans(),
)
def test_any_curve_gets_a_verdict(losses: list[float | None], running: bool) -> None:
    found = judge_losses(losses, recipe=Recipe(), running=running)
    assert found.title
    assert found.evidence
    assert found.next_step
    assert "nan" not in found.evidence.lower().replace("finite", "")
