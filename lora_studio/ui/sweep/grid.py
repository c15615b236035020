"""The grid of a test, and how to read it."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

from markupsafe import Markup

from lora_studio import guide
from lora_studio.sampling.cells import Arrangement, CellKey, SweepPlan, strength_label
from lora_studio.settings.choices import SweepAxis
from lora_studio.ui.state.sweep_view import SweepView
from lora_studio.ui.widgets.html import card, empty_card, heading, render
from lora_studio.ui.widgets.thumbnails import thumbnail_url_or_empty
from lora_studio.workspace.project import Home

CELL_SIZE = 384  # px
AXIS_NAMES = {
    SweepAxis.PROMPT: "Prompts",
    SweepAxis.STRENGTH: "Strengths",
    SweepAxis.SEED: "Seeds",
    SweepAxis.LORA: "LoRAs",
    SweepAxis.BASE: "Bases",
}
GRID_WARNING_SIGNS = ("overfit", "washed_out")


class GridCell(NamedTuple):
    """A cell of the grid. Without a `url`, the `placeholder` is shown."""

    name: str = ""
    url: str = ""
    label: str = ""
    selected: bool = False
    is_starred: bool = False
    placeholder: str = ""
    is_current: bool = False


class GridRow(NamedTuple):
    """The cells of one row, by column."""

    label: str
    cells: list[GridCell]


class Choice(NamedTuple):
    """A button that arranges the grid: what it sends, and its label."""

    pick: str
    label: str
    selected: bool


class Selector(NamedTuple):
    """Buttons of which one is selected: the axis of the rows or columns, or the value of another axis."""

    label: str
    choices: list[Choice]


def grid(view: SweepView, home: Home, arrangement: Arrangement, selected: str = "") -> Markup:
    """Return one page of the grid with the selectors of its axes. `selected` is the enlarged cell."""
    plan, current = view.plan, view.current_cell
    labels = plan.labels(arrangement.rows)
    rows = [
        GridRow(label, [_cell(view, home, key, selected, current) for key in keys])
        for label, keys in zip(labels, plan.table(arrangement), strict=True)
    ]
    text = "Cells of a row or column differ in one thing only. Click an image to enlarge it."
    title = f"Grid: {AXIS_NAMES[arrangement.rows].lower()} down, {AXIS_NAMES[arrangement.columns].lower()} across"
    return heading(title, text) + render(
        "sweep/grid.html",
        corner=AXIS_NAMES[arrangement.rows],
        columns=plan.labels(arrangement.columns),
        rows=rows,
        selectors=_selectors(plan, arrangement),
    )


def _selectors(plan: SweepPlan, shown: Arrangement) -> list[Selector]:
    """Return the selectors of the axes and pages; none while there are only two axes with several values."""
    several = [axis for axis in SweepAxis if plan.count(axis) > 1]
    if len(several) < 2:
        return []
    sides = {"Rows": ("rows", shown.rows), "Columns": ("columns", shown.columns)}
    found = [
        Selector(label, [Choice(f"{side}:{axis}", AXIS_NAMES[axis], axis is current) for axis in several])
        for label, (side, current) in sides.items()
    ]
    for axis in plan.page_axes(shown):
        chosen = shown.page.get(axis, plan.default_index(axis))
        values = enumerate(plan.labels(axis))
        choices = [Choice(f"page:{axis}:{index}", label, index == chosen) for index, label in values]
        found.append(Selector(AXIS_NAMES[axis], choices))
    return found


def arrange(plan: SweepPlan, shown: Arrangement, pick: str) -> Arrangement | None:
    """Return the arrangement after a click on a selector; None if `pick` is not from a selector of this grid.

    The axis that another one displaces takes that one's former side, or becomes a page.
    """
    picks = {choice.pick for selector in _selectors(plan, shown) for choice in selector.choices}
    if pick not in picks:
        return None
    kind, name, *index = pick.split(":")
    axis = SweepAxis(name)
    if kind == "page":
        return replace(shown, page={**shown.page, axis: int(index[0])})
    rows, columns = shown.rows, shown.columns
    if kind == "rows":
        return replace(shown, rows=axis, columns=rows if axis is columns else columns)
    return replace(shown, columns=axis, rows=columns if axis is rows else rows)


def _cell(view: SweepView, home: Home, key: CellKey, selected: str, current: CellKey | None) -> GridCell:
    name = view.file_name(key)
    if name in view.drawn:
        url = thumbnail_url_or_empty(home, view.path(key), CELL_SIZE)
        label = f"{key.prompt}, strength {strength_label(key.strength)}, seed {key.seed}"
        return GridCell(name, url, label, name == selected, name in view.starred, placeholder="cannot be shown")
    if key == current:
        return GridCell(placeholder="drawing", is_current=True)
    return GridCell(placeholder="" if view.is_active else "not drawn")


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
        "strength to use it. Strength 0 is the base model without the LoRA. Seeds, LoRAs and bases are further axes.",
    )
