"""A sweep as tiles, a grid of pictures, tables and cards."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import groupby
from typing import Any

from markupsafe import Markup

from lora_studio import guide
from lora_studio.errors import InputError
from lora_studio.sampling.cells import CellKey, SweepPlan, SweepRow, base_label, strength_label
from lora_studio.sampling.measures import MEASURE_DESCRIPTIONS
from lora_studio.sampling.png_info import read_parameters
from lora_studio.ui.state.sweep_view import SweepView
from lora_studio.ui.train.view import STATE_WORDS
from lora_studio.ui.widgets.formatting import format_count, format_duration
from lora_studio.ui.widgets.html import (
    TableRow,
    Tile,
    Tone,
    card,
    cards,
    empty_card,
    heading,
    note,
    pick_button,
    table,
    tiles,
)
from lora_studio.ui.widgets.thumbnails import picture_url
from lora_studio.workspace.job_folder import JobState
from lora_studio.workspace.project import Home

CELL_SIZE, LARGE_SIZE = 384, 1024  # px of the copies that are shown
CLOSE = "close"
SIGNS = ("overfit", "washed_out")
FIGURES = {
    "change": "Change",
    "variety": "Variety",
    "saturation": "Saturation",
    "contrast": "Contrast",
    "clipped": "Clipped",
}


def title(view: SweepView) -> Markup:
    """Which test this is, and where it stands."""
    return Markup(
        '<h2 class="run-title">Test {} <span class="pill" title="{}">{}</span></h2><p class="hint">{}</p>'
    ).format(view.folder.name, view.status.message, STATE_WORDS[view.status.state], _facts(view))


def _facts(view: SweepView) -> str:
    job = view.job
    what = f"{', '.join(view.plan.lora_labels)} on {', '.join(map(base_label, view.plan.bases))}"
    return f"{what} · seed {job.seed} · {job.steps} steps · CFG {job.guidance:g}"


def sweep_tiles(view: SweepView) -> Markup:
    """Pictures, time, and what the LoRA does at its usual strength."""
    total, done = len(view.plan.cells), len(view.drawn)
    usual = _usual(view)
    bare = next((row for row in view.measures if row.get("strength") == 0), None)
    at = f" at {usual['strength']:g}" if usual else ""
    variety = f"without it {_figure(bare.get('variety'))}" if bare else "how unlike the prompts' pictures are"
    return tiles(
        [
            Tile("Pictures", f"{done} / {total}" if done < total else f"{total}", _shape(view.plan)),
            _time_tile(view),
            Tile(
                f"Change{at}",
                _figure(usual.get("change")) if usual else "–",
                "from strength 0: how much it does" if usual else "measured at the end",
            ),
            Tile(f"Variety{at}", _figure(usual.get("variety")) if usual else "–", variety),
        ]
    )


def _usual(view: SweepView) -> dict[str, Any] | None:
    """The figures of the first LoRA's strength nearest to 1."""
    strong = [row for row in view.measures if row.get("strength")]
    return min(strong, key=lambda row: abs(row["strength"] - 1), default=None)


def _shape(plan: SweepPlan) -> str:
    parts = [
        format_count(len(dict.fromkeys(plan.job.prompts)), "prompt"),
        format_count(len(plan.strengths), "strength"),
    ]
    parts += [f"{len(plan.loras)} LoRAs"] * (len(plan.loras) > 1) + [f"{len(plan.bases)} bases"] * (len(plan.bases) > 1)
    return " × ".join(parts)


def _time_tile(view: SweepView) -> Tile:
    status = view.status
    if status.state is JobState.RUNNING:
        return Tile("Time left", format_duration(status.seconds_left), status.message or "drawing")
    if status.started_at and status.updated_at and not view.alive:
        return Tile("Took", format_duration(status.updated_at - status.started_at), STATE_WORDS[status.state])
    return Tile("Time left", "–", "it waits for its turn" if view.alive else STATE_WORDS[status.state])


def _figure(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def state_card(view: SweepView) -> Markup:
    """What the state asks for, then what the sweep warned of; empty while all goes its way."""
    status = view.status
    said: list[Markup] = []
    match status.state:
        case JobState.QUEUED:
            said = [
                card("Waiting for its turn", status.message, "It starts by itself. Stop takes it out of the queue.")
            ]
        case JobState.RUNNING if not view.drawn:
            said = [card("Getting ready", status.message)]
        case JobState.STOPPED:
            said = [card("Stopped", status.message, status.remedy, Tone.WARNING)]
        case JobState.FAILED:
            said = [card("The test failed", status.message, status.remedy, Tone.ERROR)]
    return cards([*said, *(note(message, tone=Tone.WARNING) for message in view.notes)])


def count(plan: SweepPlan) -> Markup:
    """How many pictures a job would make."""
    bare = len([key for key in plan.cells if not key.lora])
    if not bare:
        more = "Add strength 0 to see what the base draws without the LoRA."
    elif len(plan.loras) > 1:
        more = f"The {bare} without a LoRA serve all of them."
    else:
        more = ""
    return Markup('<p class="hint">{}: {}. {}</p>').format(format_count(len(plan.cells), "picture"), _shape(plan), more)


def log(lines: str) -> Markup:
    """What the worker printed last."""
    return Markup('<pre class="log">{}</pre>').format(lines)


def grid(view: SweepView, home: Home, shown: str = "") -> Markup:
    """A table for each base and LoRA: a row a prompt, a column a strength. `shown` is the cell that is seen large."""
    parts = [
        _section(view, home, shown, base, number, list(rows))
        for (base, number), rows in groupby(view.plan.rows(), key=lambda row: (row.base, row.lora))
    ]
    hint = "One seed, so that only the strength differs along a row. Choose a picture to see it large."
    return heading("Grid: prompts down, strengths across", hint) + Markup("").join(parts)


def _section(view: SweepView, home: Home, shown: str, base: str, number: int, columns: Sequence[SweepRow]) -> Markup:
    head = Markup("").join(
        Markup('<th scope="col">{}</th>').format(strength_label(column.strength)) for column in columns
    )
    at_work = view.at_work
    rows = Markup("").join(
        Markup('<tr><th scope="row"><span title="{0}">{0}</span></th>{1}</tr>').format(
            cells[0].prompt or "(empty)",
            Markup("").join(Markup("<td>{}</td>").format(_cell(view, home, key, shown, at_work)) for key in cells),
        )
        for cells in zip(*(column.cells for column in columns), strict=True)
    )
    name = view.plan.heading(base, number)
    return Markup(
        '{}<div class="table-scroll grid-scroll" tabindex="0" role="region" aria-label="Grid {}"><table class="grid">'
        '<thead><tr><th scope="col">Prompt</th>{}</tr></thead><tbody>{}</tbody></table></div>'
    ).format(Markup('<h3 class="heading">{}</h3>').format(name) if name else "", name, head, rows)


def _cell(view: SweepView, home: Home, key: CellKey, shown: str, at_work: CellKey | None) -> Markup:
    name = view.name(key)
    if name not in view.drawn:
        word = "drawing" if key == at_work else "" if view.alive else "none"
        return Markup('<div class="cell {}">{}</div>').format("now" if word == "drawing" else "", word)
    label = f"{key.prompt}, strength {strength_label(key.strength)}"
    try:
        url = picture_url(home, view.path(key), CELL_SIZE)
    except (InputError, OSError):
        return Markup('<div class="cell">cannot be shown</div>')
    return pick_button(
        name,
        Markup('<img src="{}" alt="{}" loading="lazy">').format(url, label),
        current=name == shown,
        title=label,
    )


def large(view: SweepView, home: Home, name: str) -> Markup:
    """One picture, large, with what made it, and the way to the next ones; empty for none."""
    if not name:
        return Markup("")
    key = view.cell(name)
    try:
        shown = Markup('<img src="{}" alt="{}">').format(picture_url(home, view.path(key), LARGE_SIZE), key.prompt)
    except (InputError, OSError):
        shown = Markup('<div class="cell">cannot be shown</div>')
    lora = view.plan.lora(key)
    facts = [
        ("Prompt", key.prompt or "(empty)"),
        ("Strength", strength_label(key.strength)),
        ("LoRA", lora.name if lora else "none"),
        ("Base", base_label(key.base)),
        ("Seed", str(view.job.seed)),
        ("Steps", f"{view.job.steps}, CFG {view.job.guidance:g}"),
        ("Negative prompt", view.job.negative_prompt or "none"),
    ]
    listed = Markup("").join(Markup("<dt>{}</dt><dd>{}</dd>").format(*fact) for fact in facts)
    weaker, stronger = _neighbours(view, key)
    buttons = Markup("").join(
        pick_button(target, text) for target, text in ((weaker, "‹ Weaker"), (stronger, "Stronger ›")) if target
    )
    return Markup(
        '<div class="card large" role="group" aria-label="Picture">{}<div class="facts">'
        '<div class="steps">{}{}</div><dl>{}</dl><details><summary>Parameters in the file</summary>'
        '<pre class="log">{}</pre></details></div></div>'
    ).format(shown, buttons, pick_button(CLOSE, "Close"), listed, read_parameters(view.path(key)) or "none")


def _neighbours(view: SweepView, key: CellKey) -> tuple[str, str]:
    """The cells of the same prompt at the next weaker and stronger strength; empty where there is none."""
    number = key.lora or 1
    row = [
        view.name(cell)
        for strength in view.plan.rows()
        if (strength.base, strength.lora) == (key.base, number)
        for cell in strength.cells
        if cell.prompt == key.prompt
    ]
    row = [name for name in dict.fromkeys(row) if name in view.drawn]
    place = row.index(view.name(key))
    return row[place - 1] if place else "", row[place + 1] if place + 1 < len(row) else ""


def measures(view: SweepView) -> Markup:
    """The figures of every strength and what they mean; empty before there are any."""
    if not view.measures:
        return Markup("")
    several = len(view.plan.loras) * len(view.plan.bases) > 1
    rows = [
        TableRow(
            [
                *([f"{row.get('lora')} · {row.get('base')}"] if several else []),
                strength_label(row.get("strength", 0.0)),
                *(_figure(row.get(name)) for name in FIGURES),
            ]
        )
        for row in view.measures
    ]
    headers = [*(["LoRA and base"] if several else []), "Strength", *FIGURES.values()]
    meaning = Markup("").join(
        Markup("<li><b>{}</b>: {}</li>").format(label, MEASURE_DESCRIPTIONS[name]) for name, label in FIGURES.items()
    )
    return (
        heading("Measures", "They compare pixels, not meaning: read them down a column, never as a score of quality.")
        + table(headers, rows, ["keep"] * len(headers), label="Measures")
        + Markup('<div class="guide"><ul>{}</ul></div>').format(meaning)
    )


def reading() -> Markup:
    """How to find the strength to use."""
    return card(
        "Which strength to use",
        f"{guide.RECIPE['strengths'].why} {guide.GRID_READING[0].rule} {guide.GRID_READING[0].why}",
    )


def how_to_read() -> Markup:
    """What a grid can tell: signs of success, and of what went wrong."""
    good = _list((item.rule, item.why) for item in guide.SUCCESS_INDICATORS)
    signs = [
        (f"{guide.WARNING_SIGNS[name].sign}: {guide.WARNING_SIGNS[name].cause}", guide.WARNING_SIGNS[name].remedy)
        for name in SIGNS
    ]
    look = _list([*((item.rule, item.why) for item in guide.GRID_READING[1:]), *signs])
    step = guide.WORKFLOW["test"]
    return Markup(
        '<div class="guide"><p>It worked, if:</p><ul>{}</ul><p>Have a second look, if:</p><ul>{}</ul><p>{}</p></div>'
    ).format(good, look, step.thought)


def _list(items: Iterable[tuple[str, str]]) -> Markup:
    return Markup("").join(Markup("<li>{} {}</li>").format(*item) for item in items)


def promise() -> Markup:
    """What stands in the place of a grid before there is one."""
    return empty_card(
        "The grid will stand here",
        "A row for each prompt, a column for each strength, all with one seed: what the LoRA does, and how much of it "
        "you want. Strength 0 shows the base alone. Make the grid draws it, picture by picture.",
    )


def sweeps_table(views: Sequence[SweepView], shown: str) -> Markup:
    """All tests of the project, latest first."""
    if not views:
        return Markup("")
    rows = [
        TableRow(
            [
                Markup("{}<div class='hint'>{}</div>").format(
                    pick_button(view.folder.name, f"Test {view.folder.name}", current=view.folder.name == shown),
                    STATE_WORDS[view.status.state],
                ),
                Markup("{}<div class='hint'>on {}</div>").format(
                    ", ".join(view.plan.lora_labels), ", ".join(map(base_label, view.plan.bases))
                ),
                f"{len(view.drawn)} of {len(view.plan.cells)}",
                f"seed {view.job.seed}, {view.job.steps} steps",
            ],
            changed=view.folder.name == shown,
        )
        for view in reversed(views)
    ]
    return heading("Tests of this project") + table(
        ["Test", "LoRAs", "Pictures", "Drawn with"], rows, ["keep", "", "keep", ""], label="Tests"
    )
