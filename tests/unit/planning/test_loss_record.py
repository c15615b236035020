"""The losses that a run is judged by."""

from __future__ import annotations

from typing import Any

from lora_studio.events import Event, NanEvent, ResumeEvent, ValidationEvent
from lora_studio.planning.loss_record import LossRecord
from tests.support.events import start_event, step_event


def events_of(*losses: float, relative: float | None = None) -> list[Event]:
    fields = {} if relative is None else {"relative_loss": relative}
    return [
        start_event(total=9),
        *(step_event(step, loss=loss, total=9, **fields) for step, loss in enumerate(losses, 1)),
    ]


def test_a_resume_repeats_the_steps_after_its_own() -> None:
    events = events_of(1.0, 1.0, 1.0, 1.0)
    events += [ValidationEvent(step=step, epoch=0, loss=0.5) for step in (1, 3)]
    events += [ResumeEvent(step=2), step_event(3, loss=0.5, total=9), NanEvent(step=4, total=9, epoch=1)]
    found = LossRecord.from_events(events)
    assert found.losses == [1.0, 1.0, 0.5, None]
    assert found.fixed == {1: 0.5}
    assert (found.total, found.share) == (9, 4 / 9)


def test_the_relative_losses_are_judged_where_all_are_known() -> None:
    known = LossRecord.from_events([*events_of(0.2, 0.1, relative=0.9), NanEvent(step=3, total=9, epoch=1)])
    assert known.curve == [0.9, 0.9, None]
    partly = LossRecord.from_events([*events_of(0.2, 0.1, relative=0.9), step_event(3, loss=0.3)])
    assert partly.curve == [0.2, 0.1, 0.3]
    assert LossRecord([0.2, 0.1]).curve == [0.2, 0.1]


def test_a_fixed_noise_loss_says_which_images_it_is_of() -> None:
    fields: dict[str, Any] = {"split": "training", "base_loss": 0.25}
    events = [ValidationEvent(step=step, epoch=0, loss=loss, **fields) for step, loss in ((0, 0.2), (4, None))]
    found = LossRecord.from_events(events)
    assert (found.fixed, found.base, found.validates) == ({0: 0.2}, 0.25, False)
    assert LossRecord.from_events([ValidationEvent(step=0, epoch=0, loss=0.2)]).validates


def test_an_earlier_record_has_what_was_known_then() -> None:
    fixed, files = {0: 1.0, 2: 0.5, 3: 0.4}, {1: "a", 3: "b"}
    record = LossRecord([3.0, 2.0, 1.0], [1.0, 0.9, 0.8], fixed, checkpoints=files, total=6)
    found = record.up_to(2)
    assert (found.losses, found.relative) == ([3.0, 2.0], [1.0, 0.9])
    assert (found.fixed, found.checkpoints, found.total) == ({0: 1.0, 2: 0.5}, {1: "a"}, 6)
