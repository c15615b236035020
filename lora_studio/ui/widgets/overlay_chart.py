"""Curves of several runs over each other, as SVG; coordinates are percent of the plot, as in charts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import isfinite

from markupsafe import Markup

from lora_studio.ui.widgets.charts import Axis, Key, Line, Tick
from lora_studio.ui.widgets.formatting import format_coordinate
from lora_studio.ui.widgets.html import render

MAX_POINTS = 400  # per curve
Points = Sequence[tuple[int, float]]


def overlay_chart(title: str, curves: Mapping[str, Points], *, small: bool = False) -> Markup:
    """Draw one curve of (step, value) per run, in the colours `run0`, `run1` and so on; empty without a value."""
    finite = {name: [point for point in points if isfinite(point[1])] for name, points in curves.items()}
    values = sorted(value for points in finite.values() for _, value in points)
    if not values:
        return Markup("")
    total = max(step for points in finite.values() for step, _ in points) or 1
    axis = Axis.around(values[int(0.01 * len(values))], values[int(0.99 * (len(values) - 1))])
    ends = ", ".join(f"{name} {points[-1][1]:.4f}" if points else f"{name} none" for name, points in finite.items())
    step = Axis.around(0, total).step
    return render(
        "chart.html",
        title=title,
        classes="overlay small" if small else "overlay",
        label=f"{title} over {total} steps. Last values: {ends}.",
        keys=[Key(name, f"run{place}") for place, name in enumerate(finite)],
        lines=[Line(f"run{place}", _path(points, total, axis)) for place, points in enumerate(finite.values())],
        bars=[],
        ticks_x=[Tick(100 * at * step / total, f"{at * step:,.0f}") for at in range(1, int(total / step) + 1)],
        ticks_y=axis.ticks(),
        axis="step",
    )


def _path(points: Points, total: int, axis: Axis) -> str:
    """Return an SVG path of at most `MAX_POINTS` points, the last one included."""
    every = max(1, -(-len(points) // MAX_POINTS))
    drawn = [*points[:-1:every], *points[-1:]]
    places = (
        f"{format_coordinate(100 * step / total)} {format_coordinate(100 - axis.place(value))}" for step, value in drawn
    )
    return "M" + "L".join(places) if drawn else ""
