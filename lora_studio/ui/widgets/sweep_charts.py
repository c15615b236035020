"""Small charts of a figure over the values of one variable, with the current value and limits marked.

Coordinates are percent of the plot, as in `charts`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import log
from typing import NamedTuple

from markupsafe import Markup

from lora_studio.ui.widgets.charts import Axis, Key, Line, Tick
from lora_studio.ui.widgets.formatting import format_coordinate
from lora_studio.ui.widgets.html import render

MARGIN = 3.0  # percent of the plot on both sides of the values
MIN_LABEL_DISTANCE = 13.0  # percent of the plot between two labels of values


class Column(NamedTuple):
    """The part of the plot that belongs to a value, and what pointing at it shows."""

    x: float
    width: float
    text: str


@dataclass(frozen=True)
class Values:
    """The values of the variable, in ascending order, with their labels and the index of the current one.

    They are placed by their logarithm if `logarithmic`.
    """

    numbers: Sequence[float]
    labels: Sequence[str]
    current: int | None
    name: str
    logarithmic: bool = False

    def places(self) -> list[float]:
        """Return the horizontal place of each value."""
        scaled = [log(number) if self.logarithmic else number for number in self.numbers]
        low, span = scaled[0], (scaled[-1] - scaled[0]) or 1.0
        return [MARGIN + (100 - 2 * MARGIN) * (value - low) / span for value in scaled]

    def ticks(self) -> list[Tick]:
        """Return labels with enough distance between them; the current value's is always among them."""
        places = self.places()
        first = [] if self.current is None else [self.current]
        kept: list[int] = []
        for index in [*first, 0, len(places) - 1, *range(1, len(places) - 1)]:
            if all(abs(places[index] - places[other]) >= MIN_LABEL_DISTANCE for other in kept):
                kept.append(index)
        return [Tick(places[index], self.labels[index], has_line=False) for index in sorted(kept)]

    def columns(self, texts: Sequence[str]) -> list[Column]:
        """Return the column of each value, which meet halfway between two values."""
        places = self.places()
        edges = [0.0, *((left + right) / 2 for left, right in pairwise(places)), 100.0]
        return [Column(left, right - left, text) for (left, right), text in zip(pairwise(edges), texts, strict=True)]


@dataclass(frozen=True)
class Figure:
    """A figure for each value: the line, the text of each value and, if it is a range, its bounds.

    `limits` is a line that the figure should stay below, named `limit_name`. The axis ends at `top`, if that is given.
    """

    title: str
    unit: str
    line: Sequence[float]
    texts: Sequence[str]
    bounds: Sequence[tuple[float, float]] = ()
    bounds_name: str = ""
    limits: Sequence[float] = ()
    limit_name: str = ""
    top: float | None = None


def sweep_chart(values: Values, figure: Figure) -> Markup:
    """Draw a figure over the values."""
    places = values.places()
    highest = max([*figure.line, *(high for _, high in figure.bounds), *figure.limits])
    axis = Axis.around(0.0, min(highest, figure.top) if figure.top is not None else highest)
    keys, lines = [], []
    if figure.bounds:
        keys.append(Key(figure.bounds_name, "band"))
        upper = [(place, high) for place, (_, high) in zip(places, figure.bounds, strict=True)]
        lower = [(place, low) for place, (low, _) in zip(places, figure.bounds, strict=True)]
        lines.append(Line("band", f"{_path([*upper, *reversed(lower)], axis)}Z"))
    if figure.limits:
        keys.append(Key(figure.limit_name, "limit"))
        lines.append(Line("limit", _path(list(zip(places, figure.limits, strict=True)), axis)))
    lines.append(Line("smooth", _path(list(zip(places, figure.line, strict=True)), axis)))
    reading = ""
    if values.current is not None:
        x = format_coordinate(places[values.current])
        lines.append(Line("current", f"M{x} 0V100"))
        reading = figure.texts[values.current]
    return render(
        "chart.html",
        title=figure.title,
        classes="small sweep",
        label=f"{figure.title} for {values.name} {values.labels[0]} to {values.labels[-1]}: {figure.texts[0]} to "
        f"{figure.texts[-1]}",
        keys=keys,
        lines=lines,
        bars=[],
        ticks_x=values.ticks(),
        ticks_y=axis.ticks(),
        axis=values.name,
        unit=figure.unit,
        reading=reading,
        columns=values.columns(figure.texts),
    )


def _path(points: Sequence[tuple[float, float]], axis: Axis) -> str:
    places = (f"{format_coordinate(x)} {format_coordinate(100 - axis.place(value))}" for x, value in points)
    return f"M{'L'.join(places)}"
