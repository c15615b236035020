from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lora_studio.events import Event, PhaseEvent, ValidationEvent
from lora_studio.planning.loss_record import LossRecord
from lora_studio.planning.verdicts import Verdict, judge, judge_run, worst_verdict
from lora_studio.settings.recipe import Recipe
from tests.support.events import step_event

Curve = Callable[[Any], Any]
SHAPES: dict[str, Curve] = {
    "flat": lambda t: np.ones_like(t),
    "falling": lambda t: 1 - 0.3 * t,
    "settling": lambda t: 0.6 + 0.4 * np.exp(-20 * t),
    "rising": lambda t: np.where(t < 0.5, 1 - 0.2 * t, 0.9 + 0.6 * (t - 0.5)),
}


def verdict_on(losses: Sequence[float | None], **options: Any) -> Verdict:
    """Return the verdict on the losses of steps alone."""
    return judge(LossRecord(losses), **options)


def curve(shape: str, steps: int, noise: float, seed: int) -> list[float | None]:
    """Losses around 0.12 with skewed noise, as diffusion losses have; `noise` is its relative standard deviation."""
    generator = np.random.default_rng(seed)
    level = 0.12 * SHAPES[shape](np.linspace(0, 1, steps))
    order = 1 / noise**2
    return [float(value) for value in level * generator.gamma(order, 1 / order, steps)]


def verdicts(shape: str, steps: int, noise: float, runs: int = 60) -> list[str]:
    return [verdict_on(curve(shape, steps, noise, seed)).code for seed in range(runs)]


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
        ({0: 0.13, 100: 0.10, 200: 0.101, 300: 0.102}, "plateau"),  # a rise below MIN_RISE
        ({0: 0.13, 100: 0.12, 200: 0.10, 300: 0.12}, "plateau"),  # fewer than PATIENCE
        ({0: 0.13, 100: 0.10, 200: 0.12, 300: float("nan")}, "plateau"),
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


@pytest.mark.parametrize(
    ("checkpoints", "named"),
    [
        ({}, None),
        ({100: "checkpoints/a-best.safetensors", 200: "checkpoints/a-2.safetensors"}, "a-best.safetensors"),
        ({50: "checkpoints/a-1.safetensors", 300: "checkpoints/a-3.safetensors"}, "a-1.safetensors"),
        ({200: "checkpoints/a-2.safetensors"}, None),
    ],
    ids=["no file", "at the lowest loss", "before it", "only later ones"],
)
def test_only_a_checkpoint_that_exists_is_named(checkpoints: dict[int, str], named: str | None) -> None:
    losses = curve("falling", 300, 0.2, 1)
    record = LossRecord(losses, fixed={0: 0.13, 100: 0.10, 200: 0.11, 300: 0.12}, checkpoints=checkpoints)
    found = judge(record)
    assert found.code == "overfit"
    assert (".safetensors" in found.next_step) == (named is not None)
    assert named is None or named in found.next_step


@pytest.mark.parametrize(
    ("factor", "at", "code"),
    [(5, 0.1, "broken"), (2, 0.05, "rising"), (1.3, 0.4, "rising"), (3, 0.4, "broken"), (5, 0.96, "broken")],
)
@pytest.mark.parametrize("noise", [0.14, 0.4])
def test_a_run_that_blew_up_is_told_to_lower_its_rate(factor: float, at: float, code: str, noise: float) -> None:
    losses = np.array(curve("settling", 1500, noise, 3)) * np.where(np.arange(1500) < at * 1500, 1, factor)
    found = judge(LossRecord(losses.tolist(), total=1500), recipe=Recipe())
    assert found.code == code
    assert "0.0005 to 0.00025" in found.next_step


def test_divergence_is_not_overfitting() -> None:
    """The validation loss rises as well, but the training loss with it."""
    losses = np.array(curve("falling", 300, 0.14, 3)) * np.where(np.arange(300) < 30, 1, 3)
    record = LossRecord(losses.tolist(), fixed={0: 0.1, 60: 0.3, 120: 0.31, 180: 0.3, 300: 0.3}, total=300)
    assert judge(record).code == "broken"


def test_a_lora_that_makes_the_base_worse_is_broken() -> None:
    losses = curve("flat", 200, 0.2, 3)
    record = LossRecord(losses, fixed={0: 0.1, 100: 0.14, 200: 0.13}, base=0.1, validates=False, total=200)
    assert judge(record).code == "broken"


@pytest.mark.parametrize("seed", range(5))
def test_the_range_is_what_the_change_is_tested_by(seed: int) -> None:
    """A change that is called noise is within the range that is printed with it."""
    found = verdict_on(curve("flat", 300, 0.5, seed))
    assert found.code == "unclear"
    change, margin = (float(figure) for figure in re.findall(r"([+-]?[\d.]+)%", found.evidence)[:2])
    assert abs(change) <= margin


def test_nan_that_comes_and_goes_is_nan() -> None:
    losses = curve("falling", 400, 0.2, 0)
    losses[100:300:5] = [None] * 40
    found = verdict_on(losses)
    assert (found.code, found.level) == ("nan", "bad")
    assert "40 of 400" in found.evidence


def test_the_worst_verdict_of_a_run_stays_on_record() -> None:
    """A jump that is undone is reported after the run has recovered; a run without one has nothing on record."""
    level = np.where((np.arange(600) > 200) & (np.arange(600) < 350), 3.0, 1.0)
    losses = (np.array(curve("falling", 600, 0.14, 3)) * level).tolist()
    losses[350:] = [loss * 0.6 for loss in losses[350:]]
    record = LossRecord(losses, total=600)
    assert judge(record).code == "healthy"
    worst = worst_verdict(record)
    assert worst is not None
    assert worst.code == "broken"
    assert 200 < worst.step < 350
    assert worst_verdict(LossRecord(curve("falling", 600, 0.14, 3), total=600)) is None
    assert worst_verdict(record.up_to(300)) is None  # it is the latest verdict, too


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
    flat = verdict_on(curve("flat", 3000, 0.2, 1), recipe=recipe)
    assert (flat.code, flat.level) == ("no_improvement", "warn")
    assert "0.0005 to 0.001" in flat.next_step
    rising = verdict_on(curve("rising", 3000, 0.2, 1), recipe=recipe)
    assert (rising.code, rising.level) == ("rising", "warn")
    assert "0.0005 to 0.00025" in rising.next_step
    settled = verdict_on(curve("settling", 3000, 0.2, 1), recipe=recipe)
    assert (settled.code, settled.level) == ("plateau", "good")
    running = verdict_on(curve("settling", 3000, 0.2, 1), recipe=recipe, running=True)
    assert (running.code, running.level) == ("plateau", "warn")
    assert "undertrain" in running.next_step
    healthy = verdict_on(curve("falling", 3000, 0.2, 1), running=True)
    assert (healthy.code, healthy.level) == ("healthy", "good")
    assert "%" in healthy.evidence
    assert "3000 steps" in healthy.evidence


def test_prodigy_gets_no_advice_on_its_learning_rate() -> None:
    recipe = Recipe.parse({"optimizer": "Prodigy", "unet_lr": 1, "text_encoder_lr": 0})
    assert "unet_lr" not in verdict_on(curve("rising", 3000, 0.2, 1), recipe=recipe).next_step


@pytest.mark.parametrize(("slope", "level"), [(0.0002, "bad"), (0.00005, "warn")])
def test_steep_rise_is_worse(slope: float, level: str) -> None:
    found = verdict_on([0.1] * 200 + [0.1 + slope * step for step in range(200)])
    assert (found.code, found.level) == ("rising", level)


def test_short_run_is_too_short_for_a_verdict() -> None:
    found = verdict_on(curve("falling", 49, 0.1, 0), running=True)
    assert (found.code, found.level) == ("too_short", "info")
    assert "49 steps" in found.evidence
    assert verdict_on([]).code == "too_short"


@pytest.mark.parametrize("last", [None, float("nan"), float("inf")])
def test_run_that_ends_without_a_finite_loss_is_nan(last: float | None) -> None:
    losses = [*curve("falling", 100, 0.2, 0), last, last]
    found = verdict_on(losses, recipe=Recipe.parse({"mixed_precision": "fp16"}))
    assert (found.code, found.level) == ("nan", "bad")
    assert "2 of 102" in found.evidence
    assert "bf16" in found.next_step
    assert "0.0005 to 0.00025" in found.next_step


def test_run_without_a_finite_loss_in_every_other_step_is_nan() -> None:
    losses: list[float | None] = curve("falling", 500, 0.2, 0)
    losses[1::2] = [None] * 250
    losses.append(0.1)
    recipe = Recipe.parse({"unet_lr": 0.1, "text_encoder_lr": 1e-4})
    found = verdict_on(losses, recipe=recipe)
    assert (found.code, found.level) == ("nan", "bad")
    assert "10 of the last 20" in found.evidence
    assert "unet_lr 0.1 to 0.0005" in found.next_step  # 200 times the guide's rate, to the guide's


def test_gaps_do_not_change_the_verdict() -> None:
    losses = curve("falling", 3000, 0.2, 0)
    losses[500:520] = [None] * 20
    losses[900] = float("nan")
    assert verdict_on(losses).code == "healthy"


def test_spike_is_not_a_rise() -> None:
    losses = curve("falling", 3000, 0.2, 0)
    losses[2900] = 1e6
    assert verdict_on(losses).code == "healthy"


def test_judge_run_reads_losses_and_total_from_events() -> None:
    losses = curve("falling", 1000, 0.2, 0)
    events: list[Event] = [PhaseEvent(message="Loading")]
    events += [step_event(step, loss=loss, total=1200) for step, loss in enumerate(losses, 1)]
    found = judge_run(events)
    assert found.code == "healthy"
    assert found == judge(LossRecord(losses, total=1200), running=True)
    assert judge_run(events, total=1000) == judge(LossRecord(losses, total=1200))
    assert Verdict.model_validate_json(found.model_dump_json()) == found


@given(
    st.lists(st.floats(0.0, 5.0) | st.none() | st.just(float("nan")), max_size=150),
    st.booleans(),
)
def test_any_curve_gets_a_verdict(losses: list[float | None], running: bool) -> None:
    found = verdict_on(losses, recipe=Recipe(), running=running)
    assert found.title
    assert found.evidence
    assert found.next_step
    assert "nan" not in found.evidence.lower().replace("finite", "")
