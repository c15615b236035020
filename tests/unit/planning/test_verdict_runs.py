"""Verdicts on runs that were really trained, by tools/train_verdict_runs.py."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import judge_verdicts
import pytest

from lora_studio.planning.loss_record import LossRecord
from lora_studio.planning.verdicts import judge, worst_verdict
from lora_studio.settings.recipe import Recipe

RUNS = Path(__file__).parents[2] / "data" / "verdict_runs"


def record_of(name: str) -> LossRecord:
    return judge_verdicts.record_of(json.loads((RUNS / f"{name}.json").read_text("utf-8")))


def recipe_of(name: str) -> Recipe:
    return Recipe.parse(json.loads((RUNS / f"{name}.json").read_text("utf-8"))["recipe"])


def codes(record: LossRecord) -> list[str]:
    """Return the verdict's code after each fixed-noise loss, in order, each once in a row."""
    found = [judge(record.up_to(step)).code for step in record.fixed if step]
    return [code for place, code in enumerate(found) if place == 0 or found[place - 1] != code]


@pytest.mark.parametrize("name", ["healthy", "healthy_2", "healthy_batch_4", "batch_1"])
def test_a_healthy_run_is_healthy_until_it_levels_off_at_its_end(name: str) -> None:
    record = record_of(name)
    assert [code for code in codes(record) if code != "too_short"] == ["healthy", "plateau"]
    assert judge(record).level == "good"
    assert worst_verdict(record) is None


def test_a_hundredth_of_the_rate_is_no_improvement_from_a_sixth_of_the_run_on() -> None:
    record = record_of("rate_by_100")
    assert codes(record) == ["too_short", "no_improvement"]
    assert judge(record.up_to(record.length // 5)).code == "no_improvement"


def test_a_hundred_times_the_rate_is_broken_then_nan_and_gets_the_guide_s_rate() -> None:
    record = record_of("rate_x100")
    assert judge(record.up_to(54)).code == "broken"
    found = judge(record, recipe=recipe_of("rate_x100"))
    assert found.code == "nan"
    assert "unet_lr 0.1 to 0.0005" in found.next_step


@pytest.mark.parametrize("name", ["split", "overtrained"])
def test_a_small_validation_split_shows_overfitting(name: str) -> None:
    record = record_of(name)
    assert judge(record).code == "overfit"
    assert judge(record.up_to(record.length // 2)).code in ("overfit", "plateau")


@pytest.mark.parametrize("name", ["rate_x3", "rate_x10", "rate_x10_2"])
def test_a_rate_far_too_high_is_memorising_by_the_end_and_gets_a_lower_one(name: str) -> None:
    record = record_of(name)
    found = judge(record, recipe=recipe_of(name))
    assert (found.code, found.level) == ("memorising", "warn")
    assert judge(record.up_to(record.length // 2)).code != "memorising"
    assert "unet_lr" in found.next_step


def test_a_validation_split_shows_a_rate_far_too_high_in_time() -> None:
    record = record_of("rate_x10_split")
    assert judge(record.up_to(record.length // 2)).code == "overfit"


def test_a_run_that_ends_before_it_memorises_is_not_named() -> None:
    assert set(codes(record_of("rate_x10_batch_2"))) <= {"too_short", "healthy", "plateau"}


def test_the_base_s_loss_shows_a_wrong_prediction_type() -> None:
    right, wrong = (json.loads((RUNS / f"{name}.json").read_text("utf-8")) for name in ("healthy", "wrong_prediction"))
    assert wrong["base_loss"] > 3 * right["base_loss"]


@pytest.mark.parametrize("name", ["healthy", "rate_by_100", "rate_x10", "batch_1"])
def test_dividing_by_the_base_s_loss_halves_the_noise_of_a_step(name: str) -> None:
    record = record_of(name)

    def noise(losses: list[float]) -> float:
        squares = [(after - before) ** 2 for before, after in pairwise(losses)]
        return (sum(squares) / len(squares) / 2) ** 0.5 / (sum(losses) / len(losses))

    raw, relative = ([loss for loss in curve if loss is not None] for curve in (record.losses, record.relative))
    assert noise(relative) < 0.6 * noise(raw)
