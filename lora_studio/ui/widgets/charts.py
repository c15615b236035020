"""Charts of a training run as SVG: the loss curve, and the loss by timestep.

Coordinates are percent of the plot. Lines and colours come from the style sheet, so light and dark mode both work.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import floor, isfinite, log10
from typing import NamedTuple

from markupsafe import Markup

from lora_studio.ui.widgets.formatting import format_coordinate
from lora_studio.ui.widgets.html import render

MAX_POINTS = 500  # per line
TICKS_Y = 4
MAX_TICKS_X = 12

Loss = float | None


class Key(NamedTuple):
    """An entry of the legend."""

    text: str
    classes: str = ""


class Tick(NamedTuple):
    """A label of an axis, and whether a grid line belongs to it."""

    place: float
    text: str
    has_line: bool = True


class Line(NamedTuple):
    """An SVG path with its CSS classes."""

    classes: str
    path: str


class Bar(NamedTuple):
    """A bar that starts at the bottom of the plot."""

    x: float
    width: float
    height: float


class Axis(NamedTuple):
    """Limits and step of a value axis."""

    low: float
    high: float
    step: float

    @classmethod
    def around(cls, low: float, high: float) -> Axis:
        """Return rounded limits that contain `low` to `high`, with a step of 1, 2 or 5 times a power of ten."""
        span = (high - low) or abs(high) or 1.0
        rough = span / TICKS_Y
        power = 10.0 ** floor(log10(rough))
        step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough)
        bottom = floor(low / step) * step
        top = -floor(-high / step) * step
        return cls(bottom, top if top > bottom else bottom + step, step)

    def place(self, value: float) -> float:
        """Return the height of a value, clipped to the limits."""
        return 100 * (min(max(value, self.low), self.high) - self.low) / (self.high - self.low)

    def ticks(self) -> list[Tick]:
        """Return a tick at each step."""
        digits = max(0, -floor(log10(self.step) + 1e-9))
        values = [self.low + number * self.step for number in range(round((self.high - self.low) / self.step) + 1)]
        return [Tick(self.place(value), f"{value:.{digits}f}") for value in values]


def loss_curve(
    steps: Sequence[int],
    raw: Sequence[Loss],
    smoothed: Sequence[Loss],
    *,
    total: int,
    steps_per_epoch: int,
    fixed: Sequence[tuple[int, float]] = (),
    fixed_name: str = "validation",
    base: float | None = None,
) -> Markup:
    """Draw the training loss over steps 0 to `total`, with epochs as ticks.

    `steps`, `raw` and `smoothed` have one entry per step; a loss of None is a gap. `fixed` has steps and fixed-noise
    losses, which the legend names `fixed_name`; `base` is the level of the base without the LoRA. Returns empty Markup
    if no loss is finite.
    """
    known = sorted(value for value in raw if value is not None and isfinite(value))
    if not known:
        return Markup("")
    total = max(total, steps[-1])
    measured = [value for _, value in fixed if isfinite(value)]
    levels = measured if base is None else [*measured, base]
    # the 1st to 99th percentile: a single spike does not flatten the curve
    axis = Axis.around(
        min([known[int(0.01 * len(known))], *levels]),
        max([known[min(len(known) - 1, int(0.99 * len(known)))], *levels]),
    )
    last = next((value for value in reversed(smoothed) if value is not None), known[-1])
    label = f"Loss over {steps[-1]} of {total} steps; smoothed loss now {last:.4f}"
    keys = [Key("each step", "raw"), Key("smoothed", "smooth")]
    lines = [Line("raw", _path(steps, raw, total, axis)), Line("smooth", _path(steps, smoothed, total, axis))]
    if measured:
        label += f", {fixed_name} loss {measured[-1]:.4f}"
        keys.append(Key(fixed_name, "validation"))
        at, values = zip(*fixed, strict=True)
        lines.append(Line("validation", _path(at, values, total, axis)))
    if base is not None:
        label += f", the base without the LoRA {base:.4f}"
        keys.append(Key("base without the LoRA", "base"))
        lines.append(Line("base", _path([0, total], [base, base], total, axis)))
    return render(
        "chart.html",
        title="Loss",
        classes="",
        label=f"{label}.",
        keys=keys,
        lines=lines,
        bars=[],
        ticks_x=_epoch_ticks(total, steps_per_epoch),
        ticks_y=axis.ticks(),
        axis="epoch",
    )


def timestep_chart(
    bins: Sequence[Sequence[int]], losses: Sequence[Loss], first: Sequence[Loss], *, epoch: int
) -> Markup:
    """Draw the mean loss by timestep: bars for `epoch`, and a line for the `first` epoch. None is a gap.

    `bins` are [begin, end) of timesteps; 0 is the clean image, the last one pure noise.
    """
    known = [value for value in (*losses, *first) if value is not None and isfinite(value)]
    if not known or not bins:
        return Markup("")
    axis = Axis.around(0.0, max(known))
    width = 100 / len(bins)
    summary = ", ".join(
        f"{begin} to {end - 1}: {value:.3f}"
        for (begin, end), value in zip(bins, losses, strict=True)
        if value is not None
    )
    return render(
        "chart.html",
        title="Loss by timestep",
        classes="small",
        label=f"Mean loss of epoch {epoch} by timestep. {summary}.",
        keys=[Key(f"epoch {epoch}"), Key("first epoch", "raw")],
        lines=[Line("raw", _levels(first, width, axis))],
        bars=[
            Bar(width * place + 0.15 * width, 0.7 * width, axis.place(value))
            for place, value in enumerate(losses)
            if value is not None and isfinite(value)
        ],
        ticks_x=[Tick(width * place, str(begin), has_line=False) for place, (begin, _) in enumerate(bins)],
        ticks_y=axis.ticks(),
        axis="timestep (0: clean image)",
    )


def _epoch_ticks(total: int, steps_per_epoch: int) -> list[Tick]:
    epochs = total // steps_per_epoch if steps_per_epoch else 0
    every = max(1, -(-epochs // MAX_TICKS_X))
    return [Tick(100 * epoch * steps_per_epoch / total, str(epoch)) for epoch in range(every, epochs + 1, every)]


def _path(steps: Sequence[int], values: Sequence[Loss], total: int, axis: Axis) -> str:
    """Return an SVG path of at most `MAX_POINTS` points; after a gap a new subpath begins."""
    every = max(1, -(-len(steps) // MAX_POINTS))
    places = [*range(0, len(steps), every)]
    if places and places[-1] != len(steps) - 1:
        places.append(len(steps) - 1)
    pieces, pen = [], "M"
    for place in places:
        value = values[place]
        if value is None or not isfinite(value):
            pen = "M"
            continue
        x, y = 100 * steps[place] / total, 100 - axis.place(value)
        pieces.append(f"{pen}{format_coordinate(x)} {format_coordinate(y)}")
        pen = "L"
    return "".join(pieces)


def _levels(values: Sequence[Loss], width: float, axis: Axis) -> str:
    """Return an SVG path with a horizontal piece of `width` for each value."""
    return "".join(
        f"M{format_coordinate(width * place)} {format_coordinate(100 - axis.place(value))}h{format_coordinate(width)}"
        for place, value in enumerate(values)
        if value is not None and isfinite(value)
    )
