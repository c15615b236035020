"""Verdicts on the samples of real runs, which tools/train_sample_runs.py trained."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lora_studio.events import SampleMeasuresEvent, parse_event
from lora_studio.planning.picture_verdicts import judge_samples

RUNS = Path(__file__).parents[2] / "data" / "sample_runs"
CODES: dict[str, set[str]] = {
    "healthy": set(),
    "memorised": {"copies"},
    "rate_x10": set(),
    "wrong_prediction": set(),
}


def verdicts(name: str) -> list[tuple[int, str]]:
    """Return the step and code of each verdict after each time that samples were drawn."""
    events = []
    for record in json.loads((RUNS / f"{name}.json").read_text("utf-8")):
        event = parse_event(json.dumps(record))
        assert isinstance(event, SampleMeasuresEvent)
        events.append(event)
    judged = [judge_samples(events[: count + 1]) for count in range(len(events))]
    return [(found.step, found.code) for at in judged for found in at]


@pytest.mark.parametrize("name", sorted(CODES))
def test_real_runs_have_the_verdicts_that_they_deserve(name: str) -> None:
    assert {code for _, code in verdicts(name)} == CODES[name]


def test_copies_are_named_when_they_appear_and_from_then_on() -> None:
    steps = [step for step, _ in verdicts("memorised")]
    assert steps == list(range(min(steps), 601, 50))
    assert min(steps) <= 350
