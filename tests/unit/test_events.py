"""The lines of events.jsonl are written and read by the models in events.py, and docs/events.md describes these."""

from __future__ import annotations

import json
import math
import runpy
from pathlib import Path

import pytest

from lora_studio.events import EVENTS, PROCESS_EVENTS, Event, PhaseEvent, StepEvent, TimestepsEvent, parse_event

ROOT = Path(__file__).parents[2]
STEP = StepEvent(time=5.5, step=3, total=10, epoch=1, loss=0.25, lr=1e-4)


def test_every_event_is_registered_under_its_name() -> None:
    assert {model.name: model for model in EVENTS.values()} == EVENTS
    assert len(EVENTS) == 26
    assert set(PROCESS_EVENTS) < set(EVENTS.values())


def test_an_event_survives_a_round_trip() -> None:
    assert parse_event(json.dumps(STEP.record())) == STEP
    bins = TimestepsEvent(epoch=2, bins=[(0, 100), (100, 200)], loss=[0.5, None], count=[3, 0])
    assert parse_event(json.dumps(bins.record()).encode()) == bins


def test_a_record_has_the_fields_that_were_set() -> None:
    record = {"event": "step", "time": 5.5, "step": 3, "total": 10, "epoch": 1, "loss": 0.25, "lr": 1e-4}
    assert STEP.record() == record
    assert list(STEP.record()) == list(record)
    assert PhaseEvent(message="Loading").record() == {"event": "phase", "time": 0.0, "message": "Loading"}
    assert math.isnan(STEP.model_copy(update={"loss": math.nan}).record()["loss"])


def test_an_unknown_event_is_skipped_and_unknown_fields_are_ignored() -> None:
    assert parse_event('{"event": "lap", "time": 1, "lap": 3}') is None
    assert parse_event(json.dumps({**STEP.record(), "watts": 300})) == STEP


@pytest.mark.parametrize(
    "line", ["", "{", "3", "[]", "{}", '{"event": 3}', '{"event": ["step"]}', '{"event": "step"}', b"\xff"]
)
def test_a_damaged_line_raises_value_error(line: str | bytes) -> None:
    with pytest.raises(ValueError):
        parse_event(line)


def test_a_new_event_has_no_unknown_fields() -> None:
    with pytest.raises(ValueError, match="watts"):
        PhaseEvent.model_validate({"message": "Loading", "watts": 300})


@pytest.mark.parametrize("model", EVENTS.values(), ids=EVENTS)
def test_every_field_is_described(model: type[Event]) -> None:
    assert model.__doc__
    assert all(field.description for field in model.model_fields.values())


def test_the_page_is_up_to_date() -> None:
    build = runpy.run_path(str(ROOT / "tools" / "build_event_docs.py"))
    assert build["PAGE"].read_text("utf-8") == build["events_page"](), "run python tools/build_event_docs.py"
