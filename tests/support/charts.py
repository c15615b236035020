"""The data of the charts in a piece of HTML."""

from __future__ import annotations

import html
import json
import re
from typing import Any


def charts_in(shown: str) -> dict[str, dict[str, Any]]:
    """Return the data of each chart by its title."""
    found = [json.loads(html.unescape(data)) for data in re.findall(r'<studio-chart data="([^"]*)">', str(shown))]
    return {data["title"]: data for data in found}


def points_of(chart: dict[str, Any], series: str) -> list[tuple[float, float | None]]:
    """Return the (x, value) of a named series of a chart."""
    [found] = [item for item in chart["series"] if item["name"] == series]
    return list(zip(chart["xs"][found["x"]], found["y"], strict=True))


def marks_of(chart: dict[str, Any]) -> dict[str, list[float]]:
    """Return the x of the marks by their kind."""
    found: dict[str, list[float]] = {}
    for mark in chart["marks"]:
        found.setdefault(mark["kind"], []).append(mark["x"])
    return found
