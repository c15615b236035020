"""The grid of a test, one enlarged image of it, and how to read them."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import NamedTuple

from markupsafe import Markup

from lora_studio import guide
from lora_studio.models.png_info import read_parameters
from lora_studio.sampling.cells import CellKey, SweepRow, base_label, strength_label
from lora_studio.ui.state.sweep_view import SweepView
from lora_studio.ui.widgets.html import card, empty_card, heading, render
from lora_studio.ui.widgets.thumbnails import thumbnail_url_or_empty
from lora_studio.workspace.project import Home

CELL_SIZE, LARGE_SIZE = 384, 1024  # px
CLOSE = "close"
EMPTY_PROMPT = "(empty)"
GRID_WARNING_SIGNS = ("overfit", "washed_out")


class GridCell(NamedTuple):
    """A cell of the grid. Without a `url`, the `placeholder` is shown."""

    name: str = ""
    url: str = ""
    label: str = ""
    selected: bool = False
    placeholder: str = ""
    is_current: bool = False


class GridRow(NamedTuple):
    """The cells of one prompt, by strength."""

    prompt: str
    cells: list[GridCell]


class GridSection(NamedTuple):
    """The part of the grid for one base and LoRA; `heading` is empty if there is only one."""

    heading: str
    strengths: list[str]
    rows: list[GridRow]


def grid(view: SweepView, home: Home, selected: str = "") -> Markup:
    """Return a table per base and LoRA: a row per prompt, a column per strength. `selected` is the enlarged cell."""
    sections = [
        _section(view, home, selected, base, number, list(columns))
        for (base, number), columns in groupby(view.plan.rows(), key=lambda row: (row.base, row.lora))
    ]
    text = "All with the same seed, so that only the strength differs along a row. Click an image to enlarge it."
    return heading("Grid: prompts down, strengths across", text) + render("sweep/grid.html", sections=sections)


def _section(
    view: SweepView, home: Home, selected: str, base: str, number: int, columns: Sequence[SweepRow]
) -> GridSection:
    current = view.current_cell
    rows = [
        GridRow(keys[0].prompt or EMPTY_PROMPT, [_cell(view, home, key, selected, current) for key in keys])
        for keys in zip(*(column.cells for column in columns), strict=True)
    ]
    strengths = [strength_label(column.strength) for column in columns]
    return GridSection(view.plan.heading(base, number), strengths, rows)


def _cell(view: SweepView, home: Home, key: CellKey, selected: str, current: CellKey | None) -> GridCell:
    name = view.file_name(key)
    if name in view.drawn:
        url = thumbnail_url_or_empty(home, view.path(key), CELL_SIZE)
        label = f"{key.prompt}, strength {strength_label(key.strength)}"
        return GridCell(name, url, label, name == selected, placeholder="cannot be shown")
    if key == current:
        return GridCell(placeholder="drawing", is_current=True)
    return GridCell(placeholder="" if view.is_active else "not drawn")


def large(view: SweepView, home: Home, name: str) -> Markup:
    """Return one enlarged image with its settings and buttons to its neighbours; empty if `name` is empty."""
    if not name:
        return Markup("")
    key = view.drawn_cell(name)
    lora = view.plan.lora(key)
    facts = [
        ("Prompt", key.prompt or EMPTY_PROMPT),
        ("Strength", strength_label(key.strength)),
        ("LoRA", lora.name if lora else "none"),
        ("Base", base_label(key.base)),
        ("Seed", str(view.job.seed)),
        ("Steps", f"{view.job.steps}, CFG {view.job.guidance:g}"),
        ("Negative prompt", view.job.negative_prompt or "none"),
    ]
    weaker, stronger = _neighbours(view, key)
    return render(
        "sweep/large.html",
        url=thumbnail_url_or_empty(home, view.path(key), LARGE_SIZE),
        prompt=key.prompt,
        facts=facts,
        weaker=weaker,
        stronger=stronger,
        close=CLOSE,
        parameters=read_parameters(view.path(key)),
    )


def _neighbours(view: SweepView, key: CellKey) -> tuple[str, str]:
    """Return the drawn cells of the same prompt at the next weaker and stronger strength; empty if there is none."""
    number = key.lora or 1
    row = [
        view.file_name(cell)
        for strength in view.plan.rows()
        if (strength.base, strength.lora) == (key.base, number)
        for cell in strength.cells
        if cell.prompt == key.prompt
    ]
    row = [name for name in dict.fromkeys(row) if name in view.drawn]
    place = row.index(view.file_name(key))
    return row[place - 1] if place else "", row[place + 1] if place + 1 < len(row) else ""


def strength_advice() -> Markup:
    """Return the guide's advice on which strength to use."""
    rule = guide.GRID_READING[0]
    return card("Which strength to use", f"{guide.RECIPE['strengths'].why} {rule.rule} {rule.why}")


def how_to_read() -> Markup:
    """Return the signs of success and the warning signs in a grid."""
    signs = [guide.WARNING_SIGNS[name] for name in GRID_WARNING_SIGNS]
    return render(
        "sweep/how_to_read.html",
        success=[(item.rule, item.why) for item in guide.SUCCESS_INDICATORS],
        warnings=[
            *((item.rule, item.why) for item in guide.GRID_READING[1:]),
            *((f"{sign.sign}: {sign.cause}", sign.remedy) for sign in signs),
        ],
        thought=guide.WORKFLOW["test"].thought,
    )


def empty_grid() -> Markup:
    """Return the placeholder for a grid."""
    return empty_card(
        "Your grid will appear here",
        "A row per prompt and a column per strength, all with the same seed, show what the LoRA does and at which "
        "strength to use it. Strength 0 is the base model without the LoRA.",
    )
