"""The step log: one event per step, in order, reported at once or deferred."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from lora_studio.planning.steps import count_steps
from lora_studio.training.progress import Progress
from lora_studio.training.reporting.step_log import StepLog, StepResult
from tests.support.events import Events, append_to, of

CPU = torch.device("cpu")


def result_of(*losses: float, gradient_norm: float = 1.0) -> StepResult:
    mean = sum(losses) / len(losses)
    images = [f"{number}.png" for number in range(len(losses))]
    return StepResult({"unet": 1e-4}, images, [5] * len(losses), torch.tensor([gradient_norm, mean, *losses]))


def log_into(events: Events, **options: Any) -> StepLog:
    options = {"deferred": False, "on_nan": lambda: None} | options
    counts = count_steps({"bucket": 9}, batch_size=1, epochs=1)
    return StepLog(append_to(events), Progress(), counts, CPU, **options)


def add(log: StepLog, *results: StepResult) -> None:
    for result in results:
        log.progress.step += 1
        log.add(result)


@pytest.mark.parametrize("bad", [result_of(math.nan), result_of(0.5, gradient_norm=math.inf)], ids=["loss", "gradient"])
def test_a_non_finite_loss_or_gradient_is_no_loss(bad: StepResult) -> None:
    assert bad.read() is None
    assert result_of(0.25, 0.75).read() == 0.5


def test_steps_are_reported_in_order_with_their_losses() -> None:
    events, nans, seconds = Events(), [], []
    log = log_into(events, on_nan=lambda: nans.append(len(events)), on_seconds=seconds.append)
    log.start_clock()
    add(log, result_of(0.25, 0.75), result_of(math.nan), result_of(0.125))
    log.flush()
    assert nans == [2]
    assert len(seconds) == 3
    assert [(event, values["step"]) for event, values in events] == [("step", 1), ("nan", 2), ("step", 3)]
    assert log.progress.losses == [0.5, None, 0.125]
    assert [values["loss"] for values in of(events, "step")] == [0.5, 0.125]
    assert {(values["total"], values["epoch"], values["lr"]) for values in of(events, "step")} == {(9, 1, 1e-4)}
    assert [values["gradient_norm"] for values in of(events, "step")] == [1.0, 1.0]
    assert sum(log.progress.timestep_losses.event(1).count) == 3
    samples = {entry.image: round(entry.samples) for entry in log.progress.image_losses.ranked()}
    assert samples == {"0.png": 2, "1.png": 1}
    log.flush()
    assert len(events) == 3


def test_a_deferred_log_is_due_only_after_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr("lora_studio.training.reporting.step_log.time.monotonic", lambda: now)
    log = log_into(Events(), deferred=True)
    log.start_clock()
    add(log, result_of(0.5))
    assert not log.due
    now += 1
    assert log.due
    assert log_into(Events()).due
