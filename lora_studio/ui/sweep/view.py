"""A test as tiles, a grid of images, tables and cards."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import Any, NamedTuple

from markupsafe import Markup

from lora_studio import guide
from lora_studio.sampling.cells import CellKey, SweepPlan, SweepRow, base_label, strength_label
from lora_studio.sampling.measures import MEASURE_DESCRIPTIONS
from lora_studio.sampling.png_info import read_parameters
from lora_studio.ui.state.sweep_view import SweepView
from lora_studio.ui.widgets.formatting import format_count
from lora_studio.ui.widgets.html import (
    TableRow,
    Tile,
    Tone,
    card,
    cards,
    empty_card,
    heading,
    hint,
    note,
    pick_button,
    render,
    table,
    tiles,
)
from lora_studio.ui.widgets.job_status import STATE_LABELS, job_title, state_card, time_tile
from lora_studio.ui.widgets.thumbnails import thumbnail_url_or_empty
from lora_studio.workspace.job_folder import JobState
from lora_studio.workspace.project import Home

CELL_SIZE, LARGE_SIZE = 384, 1024  # px
CLOSE = "close"
EMPTY_PROMPT = "(empty)"
GRID_WARNING_SIGNS = ("overfit", "washed_out")
MEASURES = {
    "change": "Change",
    "variety": "Variety",
    "saturation": "Saturation",
    "contrast": "Contrast",
    "clipped": "Clipped",
}


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


def title(view: SweepView) -> Markup:
    """Return the test's name, its state and settings."""
    job = view.job
    loras = f"{', '.join(view.plan.lora_labels)} on {', '.join(map(base_label, view.plan.bases))}"
    facts = f"{loras} · seed {job.seed} · {job.steps} steps · CFG {job.guidance:g}"
    return job_title(f"Test {view.folder.name}", view.status, facts)


def sweep_tiles(view: SweepView) -> Markup:
    """Return tiles with images, time, and the measures at the strength nearest to 1."""
    total, done = len(view.plan.cells), len(view.drawn)
    usual = _usual_strength(view)
    without_lora = next((row for row in view.measures if row.get("strength") == 0), None)
    at = f" at {usual['strength']:g}" if usual else ""
    variety = (
        f"{_measure(without_lora.get('variety'))} without the LoRA"
        if without_lora
        else "how much images of different prompts differ"
    )
    return tiles(
        [
            Tile("Images", f"{done} / {total}" if done < total else f"{total}", _dimensions(view.plan)),
            time_tile(view.status, _time_note(view)),
            Tile(
                f"Change{at}",
                _measure(usual.get("change")) if usual else "–",
                "difference from strength 0" if usual else "measured at the end",
            ),
            Tile(f"Variety{at}", _measure(usual.get("variety")) if usual else "–", variety),
        ]
    )


def _usual_strength(view: SweepView) -> dict[str, Any] | None:
    """Return the measures of the first LoRA's strength nearest to 1."""
    strong = [row for row in view.measures if row.get("strength")]
    return min(strong, key=lambda row: abs(row["strength"] - 1), default=None)


def _dimensions(plan: SweepPlan) -> str:
    """Return the extent of the grid: "2 prompts × 7 strengths"."""
    prompts = len(dict.fromkeys(plan.job.prompts))
    parts = [format_count(prompts, "prompt"), format_count(len(plan.strengths), "strength")]
    parts += [f"{len(plan.loras)} LoRAs"] * (len(plan.loras) > 1) + [f"{len(plan.bases)} bases"] * (len(plan.bases) > 1)
    return " × ".join(parts)


def _time_note(view: SweepView) -> str:
    if view.status.state is JobState.RUNNING:
        return view.status.message or "drawing"
    return STATE_LABELS[view.status.state]


def _measure(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def state_cards(view: SweepView) -> Markup:
    """Return a card for a state that needs one, then the test's warnings."""
    state = state_card(view.status, job="test", has_results=bool(view.drawn))
    return cards([*([state] if state else []), *(note(message, tone=Tone.WARNING) for message in view.warnings)])


def cell_count(plan: SweepPlan) -> Markup:
    """Return the number of images that a job would draw."""
    without_lora = len([key for key in plan.cells if not key.lora])
    if not without_lora:
        more = "Add strength 0 to see what the base draws without the LoRA."
    elif len(plan.loras) > 1:
        more = f"{format_count(without_lora, 'image')} at strength 0 {'is' if without_lora == 1 else 'are'} shared."
    else:
        more = ""
    return hint(f"{format_count(len(plan.cells), 'image')}: {_dimensions(plan)}. {more}")


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


def measures_table(view: SweepView) -> Markup:
    """Return the measures of every strength and what they mean; empty before there are any."""
    if not view.measures:
        return Markup("")
    several = len(view.plan.loras) * len(view.plan.bases) > 1
    rows = [
        TableRow(
            [
                *([f"{row.get('lora')} · {row.get('base')}"] if several else []),
                strength_label(row.get("strength", 0.0)),
                *(_measure(row.get(name)) for name in MEASURES),
            ]
        )
        for row in view.measures
    ]
    headers = [*(["LoRA and base"] if several else []), "Strength", *MEASURES.values()]
    descriptions = [(label, MEASURE_DESCRIPTIONS[name]) for name, label in MEASURES.items()]
    return (
        heading("Measures", "They compare pixels, not meaning: compare them down a column; they do not score quality.")
        + table(headers, rows, ["keep"] * len(headers), label="Measures")
        + render("sweep/measures.html", descriptions=descriptions)
    )


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


def sweeps_table(views: Sequence[SweepView], selected: str) -> Markup:
    """Return all tests of the project, latest first."""
    if not views:
        return Markup("")
    rows = [_table_row(view, selected=view.folder.name == selected) for view in reversed(views)]
    columns = ["Test", "LoRAs", "Images", "Settings"]
    return heading("Tests of this project") + table(columns, rows, ["keep", "", "keep", ""], label="Tests")


def _table_row(view: SweepView, *, selected: bool) -> TableRow:
    name = view.folder.name
    button = pick_button(name, f"Test {name}", current=selected)
    bases = f"on {', '.join(map(base_label, view.plan.bases))}"
    return TableRow(
        [
            render("two_lines.html", first=button, second=STATE_LABELS[view.status.state]),
            render("two_lines.html", first=", ".join(view.plan.lora_labels), second=bases),
            f"{len(view.drawn)} of {len(view.plan.cells)}",
            f"seed {view.job.seed}, {view.job.steps} steps",
        ],
        changed=selected,
    )
