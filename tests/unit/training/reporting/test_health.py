"""The health monitor: each warning sign becomes a hint once, also after a resume."""

from __future__ import annotations

import json

from lora_studio.training.reporting.health import HealthMonitor
from tests.support.events import step_event


def diverging_run() -> HealthMonitor:
    monitor = HealthMonitor()
    for step in range(1, 201):
        monitor.add_step(step_event(step, total=400, loss=0.1 + (step / 100) ** 3))
    return monitor


def test_each_hint_is_returned_once() -> None:
    monitor = diverging_run()
    verdict = monitor.verdict()
    assert verdict is not None
    assert [hint.code for hint in monitor.new_hints()] == [verdict.code]
    assert monitor.new_hints() == []


def test_the_state_restores_losses_and_reported_hints() -> None:
    monitor, resumed = diverging_run(), HealthMonitor()
    monitor.add_validation_loss(200, 0.5)
    monitor.new_hints()
    resumed.load_state(json.loads(json.dumps(monitor.state())))
    assert resumed.verdict() == monitor.verdict()
    assert resumed.new_hints() == []
    assert json.dumps(resumed.state()) == json.dumps(monitor.state())
