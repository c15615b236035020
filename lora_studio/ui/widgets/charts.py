"""The chart of every tab: series over steps or another variable, with marks, drawn by static/chart*.js.

A chart is data: the browser draws it, answers the pointer and the keys, zooms, and shows it as a table. The page keeps
zoom and cursor by group, so that both outlast updates of a running job, and charts of a group move together.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from math import isfinite
from typing import Any, Literal

import gradio as gr
from markupsafe import Markup

from lora_studio.ui.widgets.html import html, render, script

MAX_POINTS = 1500  # per series
SIGNIFICANT_DIGITS = 6
MAX_RUNS = 6  # as many as there are styles of runs
SCRIPTS = ("chart_scale.js", "chart_draw.js", "chart_export.js", "chart_table.js", "chart.js")

Value = float | None


class MarkKind(StrEnum):
    """What a mark of a chart is; each has its own shape."""

    CHECKPOINT = "checkpoint"
    BEST = "best"
    RESUME = "resume"
    VERDICT = "verdict"
    CURRENT = "current"
    RECOMMENDED = "recommended"


@dataclass(frozen=True)
class Series:
    """Values `y` at ascending `x`; None is a gap. `style` is a CSS class: its colour, and its dash or width.

    A `band` is the area between `y` and `upper`, a `level` a line across at its only value; `hidden` is shown in the
    reading and the table alone. `texts` replace the values there. A `robust` series does not stretch the value axis to
    its spikes, a robust level not at all; `points` has dots.
    """

    name: str
    x: Sequence[float]
    y: Sequence[Value]
    style: str = "smooth"
    kind: Literal["line", "bar", "stairs", "band", "level", "hidden"] = "line"
    upper: Sequence[Value] = ()
    texts: Sequence[str] = ()
    robust: bool = False
    points: bool = False


@dataclass(frozen=True)
class Mark:
    """Something that happened at `x`, with a text for the reading; at the value `y`, or along the edge without one.

    `low` to `high` is the uncertainty of `x`, drawn as a bar across.
    """

    x: float
    kind: MarkKind
    text: str
    y: Value = None
    low: Value = None
    high: Value = None

    def data(self) -> dict[str, Any]:
        """Return what the script needs."""
        return {"x": self.x, "kind": self.kind, "text": self.text, "y": self.y, "low": self.low, "high": self.high}


@dataclass(frozen=True)
class Sample:
    """The URL of a sample image that was drawn at `x`."""

    x: float
    url: str


@dataclass(frozen=True)
class XAxis:
    """The horizontal axis: its name, and the first and last value (default: those of the series).

    `labels` and `texts` name the values `values` on the axis and in the reading; without, they are numbers. With
    `steps_per_epoch` the ticks are epochs, until the chart is zoomed to a few steps.
    """

    name: str = "step"
    domain: tuple[float, float] | None = None
    logarithmic: bool = False
    values: Sequence[float] = ()
    labels: Sequence[str] = ()
    texts: Sequence[str] = ()
    steps_per_epoch: int = 0


@dataclass(frozen=True)
class Chart:
    """A chart. `summary` describes it for screen readers; `group` names the charts that share zoom and cursor.

    The value axis has `unit`, begins at 0 if `from_zero`, and ends at `top`, if given. `reading` is shown beside the
    title, `note` below: what a healthy curve looks like. `file_name` begins the names of its downloads.
    """

    title: str
    series: Sequence[Series]
    summary: str
    group: str
    x: XAxis = XAxis()
    unit: str = ""
    from_zero: bool = False
    top: float | None = None
    marks: Sequence[Mark] = ()
    samples: Sequence[Sample] = ()
    reading: str = ""
    note: str = ""
    file_name: str = ""
    small: bool = False
    has_table: bool = True

    @property
    def has_values(self) -> bool:
        """True if a series has a finite value."""
        return any(value is not None and isfinite(value) for series in self.series for value in series.y)

    def data(self) -> dict[str, Any]:
        """Return what the script needs; series with the same `x` share it."""
        shared: list[list[float]] = []
        series = [_series_data(item, shared) for item in self.series]
        x = {
            "name": self.x.name,
            "domain": self.x.domain or _domain(shared),
            "log": self.x.logarithmic,
            "epoch": self.x.steps_per_epoch,
            "named": [
                {"x": value, "label": label, "text": text}
                for value, label, text in zip(self.x.values, self.x.labels, self.x.texts, strict=True)
            ],
        }
        return {
            "title": self.title,
            "summary": self.summary,
            "group": self.group,
            "x": x,
            "y": {"unit": self.unit, "zero": self.from_zero, "top": self.top},
            "xs": shared,
            "series": series,
            "marks": [mark.data() for mark in self.marks],
            "samples": [{"x": sample.x, "url": sample.url} for sample in self.samples],
            "reading": self.reading,
            "note": self.note,
            "file": self.file_name,
            "small": self.small,
            "table": self.has_table,
        }


def chart(drawn: Chart) -> Markup:
    """Return the HTML of a chart; empty if it has no finite value."""
    if not drawn.has_values:
        return Markup("")
    data = json.dumps(drawn.data(), ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return render("chart.html", data=data)


def chart_grid(charts: Sequence[Chart]) -> Markup:
    """Return small charts side by side, as far as there is room; empty if none has a value."""
    shown = [drawn for drawn in map(chart, charts) if drawn]
    return render("charts.html", charts=shown) if shown else Markup("")


def chart_script() -> gr.HTML:
    """Create the component that draws all charts of the page."""
    return html(js=SCRIPTS, chart_css=script("chart.css"))


def run_series(curves: Sequence[tuple[str, Sequence[tuple[float, float]]]], **options: Any) -> list[Series]:
    """Return one series per named curve of (x, value), each in the style of its place: run0, run1 and so on."""
    return [
        Series(name, [x for x, _ in points], [value for _, value in points], f"run{place % MAX_RUNS}", **options)
        for place, (name, points) in enumerate(curves)
    ]


def _series_data(series: Series, shared: list[list[float]]) -> dict[str, Any]:
    kept = _thinned(len(series.x))
    x = [series.x[place] for place in kept]
    if x not in shared:
        shared.append(x)
    data: dict[str, Any] = {
        "name": series.name,
        "style": series.style,
        "kind": series.kind,
        "x": shared.index(x),
        "y": [_rounded(series.y[place]) for place in kept],
        "robust": series.robust,
        "points": series.points,
    }
    if series.upper:
        data["upper"] = [_rounded(series.upper[place]) for place in kept]
    if series.texts:
        data["texts"] = [series.texts[place] for place in kept]
    return data


def _thinned(count: int) -> list[int]:
    """Return at most `MAX_POINTS` + 1 evenly spaced places of `count`, the last one included."""
    every = max(1, -(-count // MAX_POINTS))
    places = [*range(0, count, every)]
    return [*places, count - 1] if places and places[-1] != count - 1 else places


def _rounded(value: Value) -> Value:
    return float(f"{value:.{SIGNIFICANT_DIGITS}g}") if value is not None and isfinite(value) else None


def _domain(shared: Sequence[Sequence[float]]) -> tuple[float, float]:
    places = [x for xs in shared for x in xs]
    return min(places), max(places)
