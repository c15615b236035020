"""Durations and coordinates as text."""

from __future__ import annotations

from lora_studio.ui.widgets.formatting import format_coordinate, format_duration


def test_durations_and_coordinates() -> None:
    seconds = [None, 45.2, 64, 7800]
    assert [format_duration(value) for value in seconds] == ["unknown", "45 s", "1 min 04 s", "2 h 10 min"]
    assert [format_coordinate(value) for value in (0, 50, 100 / 3)] == ["0", "50", "33.33"]
