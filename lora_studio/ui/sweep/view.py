"""A test as tiles, a grid of images, tables and cards."""

from __future__ import annotations

from collections.abc import Sequence

from markupsafe import Markup

from lora_studio.plurals import format_count
from lora_studio.sampling.cells import SweepPlan, base_label, strength_label
from lora_studio.sampling.measures import MEASURE_DESCRIPTIONS, StrengthMeasures
from lora_studio.settings.choices import LoraKind
from lora_studio.settings.prompt_sets import CAPTIONS, PROMPT_SETS
from lora_studio.ui.state.sweep_view import SweepView
from lora_studio.ui.sweep.curves import measure_charts
from lora_studio.ui.widgets.html import (
    TableRow,
    Tile,
    Tone,
    cards,
    heading,
    hint,
    note,
    pick_button,
    render,
    table,
    tiles,
)
from lora_studio.ui.widgets.job_status import STATE_LABELS, job_title, state_card, time_tile
from lora_studio.workspace.job_folder import JobState

MEASURES = {
    "change": "Change",
    "variety": "Variety",
    "saturation": "Saturation",
    "contrast": "Contrast",
    "clipped": "Clipped",
}


def title(view: SweepView) -> Markup:
    """Return the test's name, its state and settings."""
    job = view.job
    loras = f"{', '.join(view.plan.lora_labels)} on {', '.join(map(base_label, view.plan.bases))}"
    facts = f"{loras} · {seeds_text(view.plan)} · {job.steps} steps · CFG {job.guidance:g}"
    return job_title(f"Test {view.folder.name}", view.status, facts)


def sweep_tiles(view: SweepView) -> Markup:
    """Return tiles with images, time, and the measures at the strength nearest to 1."""
    total, done = len(view.plan.cells), len(view.drawn)
    usual = _usual_strength(view)
    at = f" at {usual.strength:g}" if usual else ""
    of = f", {usual.lora}" if usual and len(view.plan.loras) > 1 else ""
    return tiles(
        [
            Tile("Images", f"{done} / {total}" if done < total else f"{total}", _dimensions(view.plan)),
            time_tile(view.status, _time_note(view)),
            Tile(
                f"Change{at}",
                _measure(usual.change) if usual else "–",
                f"difference from strength 0{of}" if usual else "measured at the end",
            ),
            _variety_tile(view, usual, at),
        ]
    )


def _variety_tile(view: SweepView, usual: StrengthMeasures | None, at: str) -> Tile:
    """Return the variety over seeds by features where it was measured, else that of the pixels."""
    rows = view.pictures.rows if view.pictures is not None and usual is not None else []
    for row in rows:
        place = (row.strength, row.base, row.lora)
        if usual is not None and place == (usual.strength, usual.base, usual.lora) and row.seed_variety is not None:
            return Tile(f"Variety{at}", f"{row.seed_variety[0]:.0%}", "from seed to seed, of that without the LoRA")
    return Tile(f"Variety{at}", _measure(usual.variety) if usual else "–", _variety_note(view, usual))


def _variety_note(view: SweepView, usual: StrengthMeasures | None) -> str:
    """Return what the figure of variety is compared with, or why there is none."""
    different = "how much images of different prompts and seeds differ"
    if len(view.plan.templates) * len(view.plan.seeds) < 2:
        return "needs at least two prompts or seeds"
    if usual is None:
        return different
    matching = [row for row in view.measures if row.strength == 0 and (row.base, row.lora) == (usual.base, usual.lora)]
    if not matching:
        return different
    return f"{_measure(matching[0].variety)} without the LoRA"


def _usual_strength(view: SweepView) -> StrengthMeasures | None:
    """Return the measures of the first LoRA's strength nearest to 1."""
    strong = [row for row in view.measures if row.strength]
    return min(strong, key=lambda row: abs(row.strength - 1), default=None)


def _dimensions(plan: SweepPlan) -> str:
    """Return the extent of the grid: "2 prompts × 7 strengths"."""
    parts = [format_count(len(plan.templates), "prompt"), format_count(len(plan.strengths), "strength")]
    parts += [f"{len(plan.seeds)} seeds"] * (len(plan.seeds) > 1)
    parts += [f"{len(plan.loras)} LoRAs"] * (len(plan.loras) > 1) + [f"{len(plan.bases)} bases"] * (len(plan.bases) > 1)
    return " × ".join(parts)


def seeds_text(plan: SweepPlan) -> str:
    """Return the seeds of a test: "seed 42", or "3 seeds"."""
    return f"seed {plan.seeds[0]}" if len(plan.seeds) == 1 else f"{len(plan.seeds)} seeds"


def _time_note(view: SweepView) -> str:
    if view.status.state is JobState.RUNNING:
        return view.status.message or "drawing"
    return STATE_LABELS[view.status.state]


def _measure(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def prompt_sets(kind: LoraKind) -> Markup:
    """Return buttons that add prompts for a kind of LoRA."""
    return render("sweep/prompt_sets.html", kind=kind.value, sets=PROMPT_SETS[kind], captions=CAPTIONS)


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


def measures_table(view: SweepView) -> Markup:
    """Return the measures of every strength and what they mean; empty before there are any."""
    if not view.measures:
        return Markup("")
    several = len(view.plan.loras) * len(view.plan.bases) > 1
    rows = [
        TableRow(
            [
                *([f"{row.lora} · {row.base}"] if several else []),
                strength_label(row.strength),
                *(_measure(getattr(row, name)) for name in MEASURES),
            ]
        )
        for row in view.measures
    ]
    headers = [*(["LoRA and base"] if several else []), "Strength", *MEASURES.values()]
    descriptions = [(label, MEASURE_DESCRIPTIONS[name]) for name, label in MEASURES.items()]
    return (
        heading("Measures", "They compare pixels, not meaning: compare them down a column; they do not score quality.")
        + measure_charts(view, view.measures, MEASURES)
        + table(headers, rows, ["keep"] * len(headers), label="Measures", stacked=True)
        + render("sweep/measures.html", descriptions=descriptions)
    )


def sweeps_table(views: Sequence[SweepView], selected: str) -> Markup:
    """Return all tests of the project, latest first."""
    if not views:
        return Markup("")
    rows = [_table_row(view, selected=view.folder.name == selected) for view in reversed(views)]
    columns = ["Test", "LoRAs", "Images", "Settings"]
    classes = ["keep", "", "keep", ""]
    return heading("Tests of this project") + table(
        columns, rows, classes, label="Tests", stacked=True, searchable=True
    )


def _table_row(view: SweepView, *, selected: bool) -> TableRow:
    name = view.folder.name
    button = pick_button(name, f"Test {name}", current=selected)
    bases = f"on {', '.join(map(base_label, view.plan.bases))}"
    return TableRow(
        [
            render("two_lines.html", first=button, second=STATE_LABELS[view.status.state]),
            render("two_lines.html", first=", ".join(view.plan.lora_labels), second=bases),
            f"{len(view.drawn)} of {len(view.plan.cells)}",
            f"{seeds_text(view.plan)}, {view.job.steps} steps",
        ],
        changed=selected,
    )
