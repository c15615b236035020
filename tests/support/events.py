"""Events in tests: as objects of `lora_studio.events`, and as the JSON of events.jsonl."""

from __future__ import annotations

import json
from typing import Any

from lora_studio.events import EVENTS, Event, Report, StartEvent, StepEvent, parse_event
from lora_studio.workspace.job_folder import JobFolder

Events = list[tuple[str, dict[str, Any]]]


def append_to(events: Events) -> Report:
    """Return a report function that appends the name and the fields of each event, once they are written and read."""

    def report(event: Event) -> None:
        line = json.dumps(event.record())
        read = parse_event(line)
        assert read is not None
        assert json.dumps(read.record()) == line
        fields = event.record()
        del fields["event"], fields["time"]
        events.append((event.name, fields))

    return report


def of(events: Events, name: str) -> list[dict[str, Any]]:
    """Return the fields of the events with this name."""
    return [fields for event, fields in events if event == name]


def ignore(event: Event) -> None:
    """Ignore an event."""


def step_event(step: int, **fields: Any) -> StepEvent:
    """Return the event of an optimizer step."""
    return StepEvent(**{"step": step, "total": 10, "epoch": 1, "loss": 0.5, "lr": 1e-4} | fields)


def start_event(**fields: Any) -> StartEvent:
    """Return the event of the start of a run."""
    usual = {
        "total": 10,
        "epochs": 1,
        "steps_per_epoch": 10,
        "images": 3,
        "device": "CPU",
        "precision": "fp32",
        "precision_reason": "A CPU computes in fp32.",
        "prediction_type": "epsilon",
        "zero_terminal_snr": False,
    }
    return StartEvent(**usual | fields)


def records_of(folder: JobFolder, name: str = "") -> list[dict[str, Any]]:
    """Return the lines of a job's events.jsonl, or those of one event; raise if a model lacks one of their fields."""
    records = [json.loads(line) for line in folder.events_file.read_bytes().splitlines()]
    for record in records:
        assert record.keys() - {"event"} <= EVENTS[record["event"]].model_fields.keys(), record
    assert [event.record() for event in folder.events()[0]] == records
    return [record for record in records if name in ("", record["event"])]
