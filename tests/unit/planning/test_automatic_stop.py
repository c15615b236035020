"""Runs that stop by themselves."""

from __future__ import annotations

import json
from pathlib import Path

import judge_verdicts
import pytest

from lora_studio.errors import ConfigError
from lora_studio.planning.automatic_stop import AutomaticStop, automatic_stop
from lora_studio.planning.loss_record import LossRecord
from lora_studio.planning.loss_signs import find_sign
from lora_studio.settings.recipe import Recipe

RUNS = Path(__file__).parents[2] / "data" / "verdict_runs"
ALL = {"stop_at_plateau": 1, "stop_at_rise": 1, "stop_at_break": 1}


def record_of(name: str) -> LossRecord:
    return judge_verdicts.record_of(json.loads((RUNS / f"{name}.json").read_text("utf-8")))


def first_stop(record: LossRecord, *, ignored: frozenset[str] = frozenset(), **patience: int) -> AutomaticStop | None:
    """Return the first stop of a run, asked for after each evaluation."""
    for step in record.fixed:
        if step and (found := automatic_stop(record.up_to(step), Recipe(**patience), ignored=ignored)) is not None:
            return found
    return None


@pytest.mark.parametrize(
    ("name", "settings", "code"),
    [
        ("healthy", {"stop_at_plateau": 1}, "plateau"),
        ("split", {"stop_at_rise": 1}, "rise"),
        ("rate_x100", {"stop_at_break": 1}, "break"),
        ("rate_x100", {"stop_at_rise": 1}, "rise"),
        ("rate_x100", ALL, "break"),
        ("healthy", {"stop_at_rise": 1, "stop_at_break": 1}, None),
        ("split", {}, None),
    ],
)
def test_a_run_stops_at_what_its_recipe_names_alone(name: str, settings: dict[str, int], code: str | None) -> None:
    found = first_stop(record_of(name), **settings)
    assert (found and found.code) == code


def test_the_sign_has_to_hold_for_as_many_evaluations_as_the_patience() -> None:
    record = record_of("overtrained")
    signs = {step: find_sign(record.up_to(step)).code == "overfit" for step in record.fixed if step}
    steps, held = list(signs), list(signs.values())
    for patience in (1, 2, 4):
        expected = next(steps[end - 1] for end in range(patience, len(held)) if all(held[end - patience : end]))
        found = first_stop(record, stop_at_rise=patience)
        assert found is not None
        assert found.step == expected
        assert found.lowest == min(record.up_to(expected).fixed, key=record.fixed.__getitem__)


def test_a_plateau_has_no_lowest_step() -> None:
    found = first_stop(record_of("healthy"), stop_at_plateau=1)
    assert found is not None
    assert found.lowest is None


def test_a_resumed_run_does_not_stop_for_the_same_sign_again() -> None:
    record = record_of("overtrained")
    assert first_stop(record, ignored=frozenset({"rise"}), stop_at_rise=1) is None
    again = first_stop(record, ignored=frozenset({"rise"}), stop_at_rise=1, stop_at_plateau=1)
    assert again is not None
    assert again.code == "plateau"


def test_a_complete_run_does_not_stop() -> None:
    record = record_of("split")
    assert find_sign(record).code == "overfit"
    assert automatic_stop(record, Recipe(stop_at_rise=1)) is None


def test_a_negative_patience_is_refused_by_name() -> None:
    with pytest.raises(ConfigError) as raised:
        Recipe.parse({"stop_at_rise": -1})
    assert "stop_at_rise" in raised.value.message
