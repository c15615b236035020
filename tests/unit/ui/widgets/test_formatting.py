"""Counts, durations and coordinates as text."""

from __future__ import annotations

from lora_studio.ui.widgets.formatting import format_coordinate, format_count, format_duration


def test_counts_and_durations() -> None:
    assert [format_count(number, "image") for number in (0, 1, 1200)] == ["0 images", "1 image", "1,200 images"]
    seconds = [None, 45.2, 64, 7800]
    assert [format_duration(value) for value in seconds] == ["unknown", "45 s", "1 min 04 s", "2 h 10 min"]
    assert [format_coordinate(value) for value in (0, 50, 100 / 3)] == ["0", "50", "33.33"]
