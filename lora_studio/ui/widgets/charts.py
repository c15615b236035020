"""The loss as SVG: over the steps, raw values faint, the smooth ones strong, epochs as ticks; and by timestep.

It stretches with its place: lines keep their width, and labels are text of the page, so they keep their size. Colours
are the page's own, in light and dark.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import floor, isfinite, log10

from markupsafe import Markup

POINTS = 500
TICKS_Y = 4
TICKS_X = 12

Value = float | None


def loss_curve(
    steps: Sequence[int],
    raw: Sequence[Value],
    smoothed: Sequence[Value],
    *,
    total: int,
    steps_per_epoch: int,
    held_out: Sequence[tuple[int, float]] = (),
) -> Markup:
    """Draw losses over steps 0 to `total`. The first three sequences have one entry a step; None is a gap.

    `held_out` has steps and losses on images that are not trained on.
    """
    known = sorted(value for value in raw if value is not None and isfinite(value))
    if not known:
        return Markup("")
    total = max(total, steps[-1])
    measured = [value for _, value in held_out if isfinite(value)]
    low, high, step = _axis(
        min([known[int(0.01 * len(known))], *measured]),
        max([known[min(len(known) - 1, int(0.99 * len(known)))], *measured]),
    )
    epochs = total // steps_per_epoch if steps_per_epoch else 0
    every = max(1, -(-epochs // TICKS_X))
    ticks_x = [(epoch * steps_per_epoch / total, str(epoch)) for epoch in range(every, epochs + 1, every)]
    ticks_y = [((tick - low) / (high - low), f"{tick:.{_digits(step)}f}") for tick in _range(low, high, step)]
    last = next((value for value in reversed(smoothed) if value is not None), known[-1])
    label = f"Loss over {steps[-1]} of {total} steps; smoothed loss now {last:.4f}."
    key, line = Markup(""), Markup("")
    if measured:
        label = f"{label[:-1]}, held-out loss {measured[-1]:.4f}."
        key = Markup('<span class="key held">held out</span>')
        places, values = zip(*held_out, strict=True)
        line = Markup('<path class="line held" d="{}"/>').format(_path(places, values, total, low, high))
    grid = Markup("").join(
        [Markup('<path class="grid" d="M0 {0}H100"/>').format(_round(100 - 100 * y)) for y, _ in ticks_y]
        + [Markup('<path class="grid" d="M{0} 0V100"/>').format(_round(100 * x)) for x, _ in ticks_x]
    )
    marks = Markup("").join(
        [
            Markup('<span class="tick y" style="bottom:{}%">{}</span>').format(_round(100 * y), text)
            for y, text in ticks_y
        ]
        + [
            Markup('<span class="tick x" style="left:{}%">{}</span>').format(_round(100 * x), text)
            for x, text in ticks_x
        ]
    )
    return Markup(
        '<figure class="curve"><figcaption><span class="title">Loss</span><span class="key raw">each step</span>'
        '<span class="key smooth">smoothed</span>{key}</figcaption><div class="plot" role="img" aria-label="{label}">'
        '<svg viewBox="0 0 100 100" preserveAspectRatio="none" aria-hidden="true">{grid}'
        '<path class="line raw" d="{raw}"/><path class="line smooth" d="{smooth}"/>{line}</svg>{marks}'
        '<span class="axis">epoch</span></div></figure>'
    ).format(
        label=label,
        key=key,
        line=line,
        grid=grid,
        raw=_path(steps, raw, total, low, high),
        smooth=_path(steps, smoothed, total, low, high),
        marks=marks,
    )


def timestep_chart(
    bins: Sequence[Sequence[int]], losses: Sequence[Value], first: Sequence[Value], *, epoch: int
) -> Markup:
    """Draw mean losses by timestep: bars for an `epoch`, and a line where the `first` epoch was. None is a gap.

    `bins` are [begin, end) of timesteps, from the last touches at 0 to pure noise.
    """
    known = [value for value in (*losses, *first) if value is not None and isfinite(value)]
    if not known or not bins:
        return Markup("")
    _, high, step = _axis(0.0, max(known))
    width = 100 / len(bins)
    ticks_y = [(tick / high, f"{tick:.{_digits(step)}f}") for tick in _range(0.0, high, step)]
    bars = Markup("").join(
        Markup('<rect class="bar" x="{}" y="{}" width="{}" height="{}"/>').format(
            _round(width * place + 0.15 * width), _round(100 - height), _round(0.7 * width), _round(height)
        )
        for place, value in enumerate(losses)
        if value is not None and isfinite(value)
        for height in (100 * value / high,)
    )
    line = "".join(
        f"M{_round(width * place)} {_round(100 - 100 * value / high)}h{_round(width)}"
        for place, value in enumerate(first)
        if value is not None and isfinite(value)
    )
    grid = Markup("").join(
        Markup('<path class="grid" d="M0 {}H100"/>').format(_round(100 - 100 * y)) for y, _ in ticks_y
    )
    marks = Markup("").join(
        [
            Markup('<span class="tick y" style="bottom:{}%">{}</span>').format(_round(100 * y), text)
            for y, text in ticks_y
        ]
        + [
            Markup('<span class="tick x" style="left:{}%">{}</span>').format(_round(width * place), begin)
            for place, (begin, _) in enumerate(bins)
        ]
    )
    said = ", ".join(
        f"{begin} to {end - 1}: {value:.3f}"
        for (begin, end), value in zip(bins, losses, strict=True)
        if value is not None
    )
    return Markup(
        '<figure class="curve small"><figcaption><span class="title">Loss by timestep</span>'
        '<span class="key">epoch {epoch}</span><span class="key raw">first epoch</span></figcaption>'
        '<div class="plot" role="img" aria-label="{label}"><svg viewBox="0 0 100 100" preserveAspectRatio="none" '
        'aria-hidden="true">{grid}{bars}<path class="line raw" d="{line}"/></svg>{marks}'
        '<span class="axis">timestep: 0 is the picture, the end is noise</span></div></figure>'
    ).format(
        epoch=epoch,
        label=f"Mean loss of epoch {epoch} by timestep. {said}.",
        grid=grid,
        bars=bars,
        line=line,
        marks=marks,
    )


def _path(steps: Sequence[int], values: Sequence[Value], total: int, low: float, high: float) -> str:
    """An SVG path in a square of 100, thinned to at most POINTS points; a gap begins a new piece."""
    every = max(1, -(-len(steps) // POINTS))
    places = [*range(0, len(steps), every)]
    if places and places[-1] != len(steps) - 1:
        places.append(len(steps) - 1)
    pieces, pen = [], "M"
    for place in places:
        value = values[place]
        if value is None or not isfinite(value):
            pen = "M"
            continue
        height = 100 - 100 * (min(max(value, low), high) - low) / (high - low)
        pieces.append(f"{pen}{_round(100 * steps[place] / total)} {_round(height)}")
        pen = "L"
    return "".join(pieces)


def _axis(low: float, high: float) -> tuple[float, float, float]:
    """Round limits around `low` to `high` and a step of 1, 2 or 5 times a power of ten."""
    span = (high - low) or abs(high) or 1.0
    rough = span / TICKS_Y
    power = 10.0 ** floor(log10(rough))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough)
    bottom = floor(low / step) * step
    top = -floor(-high / step) * step
    return bottom, top if top > bottom else bottom + step, step


def _range(low: float, high: float, step: float) -> list[float]:
    return [low + number * step for number in range(round((high - low) / step) + 1)]


def _digits(step: float) -> int:
    return max(0, -floor(log10(step) + 1e-9))


def _round(value: float) -> str:
    return f"{value:.2f}".rstrip("0").rstrip(".")
