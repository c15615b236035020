"""The fold "What if" of Plan: steps, time, memory and file size over the values of one variable."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import gradio as gr
from markupsafe import Markup

from lora_studio.planning.planned_run import Plan
from lora_studio.planning.timing import describe_range, time_unit
from lora_studio.planning.what_if import Variable, WhatIfRow
from lora_studio.plurals import format_count
from lora_studio.ui.widgets.charts import Chart, Mark, MarkKind, Series, XAxis, chart_grid
from lora_studio.ui.widgets.events import Updates
from lora_studio.ui.widgets.html import TableRow, html, render, table

NAMES = {
    Variable.IMAGES: "Images",
    Variable.EPOCHS: "Epochs",
    Variable.BATCH_SIZE: "Batch size",
    Variable.NETWORK_DIM: "Network rank (dim)",
    Variable.VRAM_GIB: "GPU memory (GiB)",
}
MEMORY_HEADROOM = 1.3  # the memory axis ends at this multiple of what the runs take
MARGIN = 0.03  # of the axis on both sides of the values


class WhatIfFold(NamedTuple):
    """The components of the fold. `is_open` is True while it shows plots."""

    fold: gr.Accordion
    variable: gr.Radio
    plots: gr.HTML
    is_open: gr.State


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


@dataclass(frozen=True)
class Sweep:
    """The rows of a plan over the values of a variable; `hours` is the limit of the time, if there is one."""

    variable: Variable
    rows: Sequence[WhatIfRow]
    hours: float | None = None


def build_what_if() -> WhatIfFold:
    """Create the fold, closed: nothing is computed before it is opened."""
    with gr.Accordion("What if", open=False, elem_id="plan-what-if") as fold:
        variable = gr.Radio(
            [(name, variable.value) for variable, name in NAMES.items()],
            value=Variable.IMAGES.value,
            show_label=False,
            label="Change",
            container=False,
            elem_classes=["segments", "small"],
            elem_id="plan-what-if-variable",
        )
        plots = html(elem_id="plan-what-if-plots")
    return WhatIfFold(fold, variable, plots, gr.State(False))


def what_if_updates(layout: WhatIfFold, plan: Plan | None, sweep: Sweep | None) -> Updates:
    """Return the updates that show a sweep, or nothing without one."""
    shown = what_if_plots(plan, sweep) if plan is not None and sweep is not None else ""
    return {layout.plots: shown, layout.is_open: sweep is not None}


def what_if_plots(plan: Plan, sweep: Sweep) -> Markup:
    """Return a plot of each figure over the values, and a table; the memory of a CPU is not estimated."""
    rows, variable = sweep.rows, sweep.variable
    figures = [_steps(rows), _time(rows, sweep.hours), _file_size(rows)]
    if variable is Variable.VRAM_GIB or not plan.on_cpu:
        figures.insert(2, _memory(rows))
    charts = chart_grid([_chart(sweep, figure) for figure in figures])
    return render("plan/what_if.html", note=_note(sweep), charts=charts, table=_table(sweep, figures))


def _chart(sweep: Sweep, figure: Figure) -> Chart:
    """Return the chart of a figure over the values; the planned value is marked and read at first."""
    rows, name = sweep.rows, NAMES[sweep.variable]
    numbers = [row.value for row in rows]
    labels, texts = [f"{number:g}" for number in numbers], [_value_text(sweep.variable, number) for number in numbers]
    series = []
    if figure.bounds:
        low, high = zip(*figure.bounds, strict=True)
        series.append(Series(figure.bounds_name, numbers, low, "band", "band", upper=high))
    if figure.limits:
        series.append(Series(figure.limit_name, numbers, figure.limits, "limit"))
    series.append(Series(figure.title, numbers, figure.line, texts=figure.texts, points=True))
    current = next((index for index, row in enumerate(rows) if row.is_current), None)
    is_logarithmic = sweep.variable is not Variable.EPOCHS
    return Chart(
        figure.title,
        series,
        f"For {name} {labels[0]} to {labels[-1]}: {figure.texts[0]} to {figure.texts[-1]}.",
        group="what if",
        x=XAxis(name, _domain(numbers, is_logarithmic), is_logarithmic, numbers, labels, texts),
        unit=figure.unit,
        from_zero=True,
        top=figure.top,
        marks=[] if current is None else [Mark(numbers[current], MarkKind.CURRENT, "the plan")],
        reading="" if current is None else f"{texts[current]} · {figure.texts[current]}",
        file_name="what-if",
        small=True,
        has_table=False,
    )


def _domain(numbers: Sequence[float], is_logarithmic: bool) -> tuple[float, float]:
    """Return the ends of the axis, a little outside of the values."""
    low, high = numbers[0], numbers[-1]
    if is_logarithmic:
        factor = (high / low) ** MARGIN
        return low / factor, high * factor
    return low - MARGIN * (high - low), high + MARGIN * (high - low)


def _value_text(variable: Variable, value: float) -> str:
    match variable:
        case Variable.IMAGES:
            return format_count(int(value), "image")
        case Variable.EPOCHS:
            return format_count(int(value), "epoch")
        case Variable.BATCH_SIZE:
            return f"batch size {value:g}"
        case Variable.NETWORK_DIM:
            return f"dim {value:g}"
        case Variable.VRAM_GIB:
            return f"{value:g} GiB GPU"


def _steps(rows: Sequence[WhatIfRow]) -> Figure:
    return Figure(
        "Steps", "", [row.total_steps for row in rows], [format_count(row.total_steps, "step") for row in rows]
    )


def _time(rows: Sequence[WhatIfRow], hours: float | None) -> Figure:
    seconds, name = time_unit(max(row.seconds.high for row in rows))
    return Figure(
        "Time",
        name,
        [row.seconds.middle / seconds for row in rows],
        [describe_range(row.seconds) for row in rows],
        bounds=[(row.seconds.low / seconds, row.seconds.high / seconds) for row in rows],
        bounds_name="range",
        limits=[] if hours is None else [hours * 3600 / seconds] * len(rows),
        limit_name="your budget",
    )


def _memory(rows: Sequence[WhatIfRow]) -> Figure:
    limits = [row.limit_gib for row in rows if row.limit_gib is not None]
    top = MEMORY_HEADROOM * max(row.vram_gib for row in rows)
    return Figure(
        "GPU memory",
        "GiB",
        [row.vram_gib for row in rows],
        [_memory_text(row) for row in rows],
        bounds=[(row.min_vram_gib, row.max_vram_gib) for row in rows],
        bounds_name="least to most",
        limits=limits,
        limit_name="the GPU's",
        top=max([top, *limits]),
    )


def _memory_text(row: WhatIfRow) -> str:
    least = f", at least {row.min_vram_gib:.1f}" if row.min_vram_gib < row.vram_gib else ""
    return f"{row.vram_gib:.1f} GiB{least}{' (does not fit)' if row.fits is False else ''}"


def _file_size(rows: Sequence[WhatIfRow]) -> Figure:
    return Figure("File size", "MiB", [row.lora_mib for row in rows], [f"{row.lora_mib:.0f} MiB" for row in rows])


def _note(sweep: Sweep) -> str:
    if sweep.variable.is_setting:
        return "All other settings stay as planned, as when you change this one in Train."
    if sweep.variable is Variable.VRAM_GIB:
        return "The plan is made again for each GPU. Times are rough: they follow from the class of a GPU."
    return "The plan is made again for each number of images: repeats, epochs and batch size follow."


def _table(sweep: Sweep, figures: Sequence[Figure]) -> Markup:
    columns = zip(*(figure.texts for figure in figures), strict=True)
    rows = [
        TableRow([f"{row.value:g}{' (plan)' if row.is_current else ''}", *texts], changed=row.is_current)
        for row, texts in zip(sweep.rows, columns, strict=True)
    ]
    headers = [NAMES[sweep.variable], *(figure.title for figure in figures)]
    return table(headers, rows, ["value"], label="What if", stacked=True)
