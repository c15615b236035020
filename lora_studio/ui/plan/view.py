"""A plan as tiles, table and cards; Plan shows one, and Train one of the settings in its form."""

from __future__ import annotations

from markupsafe import Markup

from lora_studio.planning.plan import Plan
from lora_studio.planning.timing import SecondsRange
from lora_studio.settings.choices import NetworkType
from lora_studio.settings.recipe import Recipe
from lora_studio.ui.widgets.formatting import format_count, format_value
from lora_studio.ui.widgets.html import TableRow, Tile, Tone, card, cards, heading, note, table, tiles
from lora_studio.ui.widgets.settings_form import Spec


def plan_tiles(made: Plan) -> Markup:
    """Steps, time, memory and file."""
    steps = made.steps
    files = "with its text encoder part" if made.recipe.text_encoder_lr > 0 else "UNet only"
    return tiles(
        [
            Tile(
                "Steps",
                f"{steps.total_steps:,}",
                f"{format_count(made.images, 'image')} × {format_count(made.repeats, 'repeat')}, "
                f"{format_count(steps.epochs, 'epoch')}, "
                f"batch {made.recipe.batch_size}",
            ),
            Tile("Time, roughly", _span(made.seconds), "a range, until a step is measured"),
            Tile("Memory, roughly", f"{made.vram_gib:.1f} GiB", _memory_note(made), _memory_tone(made)),
            Tile("File", f"{made.lora_mib:.0f} MiB", f"{_network(made)}, {files}"),
        ]
    )


def _network(made: Plan) -> str:
    """The network as its users write it: "dim 32", "LoKr dim 8"."""
    kind = made.recipe.network_type
    return f"{'' if kind is NetworkType.LORA else f'{kind.value} '}dim {made.recipe.network_dim}"


def _span(seconds: SecondsRange) -> str:
    """A rough time: "20–60 s", "12–25 min", "1.6–5.3 h"."""
    unit, name = next((unit, name) for unit, name in ((3600, "h"), (60, "min"), (1, "s")) if seconds.high >= 1.5 * unit)
    low, high = (
        f"{bound / unit:.1f}" if unit == 3600 else f"{bound / unit:.0f}" for bound in (seconds.low, seconds.high)
    )
    return f"{low}–{high} {name}"


def _memory_tone(made: Plan) -> Tone:
    return Tone.WARNING if any(caution.code == "memory" for caution in made.warnings) else Tone.PLAIN


def _memory_note(made: Plan) -> str:
    largest = max(made.vram_parts, key=lambda part: made.vram_parts[part])
    return f"most of it: {largest}, {made.vram_parts[largest]:.1f} GiB"


def recipe_table(made: Plan) -> Markup:
    """Every chosen setting with its value and reason."""
    rows = [
        TableRow(
            [
                Spec.of(Recipe, reason.setting).label,
                format_value(getattr(made.recipe, reason.setting)),
                Markup("{}{}").format(reason.why, "" if reason.guide else Markup(' <span class="tag">studio</span>')),
            ]
        )
        for reason in made.reasons
    ]
    size = (
        f"{format_count(made.images, 'image')}{' expected' if made.assumed else ''}: a {made.tier.name} set, good for "
    )
    return heading("Recipe", f"{size}{made.tier.good_for}. {made.tier.focus}") + table(
        ["Setting", "Value", "Why"], rows, ["", "value", "why"], label="Recipe"
    )


def caution_cards(made: Plan) -> Markup:
    """What the guide would have a second look at."""
    if not made.warnings:
        return cards([card("Nothing to look at", f"The guide has no objections. {made.tagging}", tone=Tone.OK)])
    count = len(made.warnings)
    title = heading(
        "One thing to look at" if count == 1 else f"{count} things to look at", "Advice: nothing here stops you."
    )
    return title + cards(note(caution.message, caution.why, Tone.WARNING) for caution in made.warnings)
