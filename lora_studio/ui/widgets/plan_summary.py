"""A plan's figures as tiles and its warnings as cards, shown by Plan and by the form of Train."""

from __future__ import annotations

from markupsafe import Markup

from lora_studio.planning.memory import TRAINING
from lora_studio.planning.plan import Plan
from lora_studio.planning.timing import SecondsRange
from lora_studio.settings.choices import NetworkType
from lora_studio.ui.widgets.formatting import format_count
from lora_studio.ui.widgets.html import Tile, Tone, card, cards, heading, note, tiles


def plan_tiles(plan: Plan) -> Markup:
    """Return tiles with the plan's steps, time, VRAM and file size."""
    files = "UNet and text encoders" if plan.recipe.trains_text_encoders else "UNet only"
    length = (
        f"{format_count(plan.images, 'image')} × {format_count(plan.repeats, 'repeat')}, "
        f"{format_count(plan.steps.epochs, 'epoch')}, batch size {_batch(plan)}"
    )
    return tiles(
        [
            Tile("Steps", f"{plan.steps.total_steps:,}", length),
            Tile("Estimated time", _time_range(plan.seconds), plan.seconds.source),
            Tile("Estimated VRAM", f"{plan.vram_gib:.1f} GiB", _vram_note(plan), _vram_tone(plan)),
            Tile("File size", f"{plan.lora_mib:.0f} MiB", f"{_network(plan)}, {files}"),
        ]
    )


def empty_plan_tiles(note: str) -> Markup:
    """Return the tiles of a plan without figures; `note` says what to do."""
    labels = ("Steps", "Estimated time", "Estimated VRAM", "File size")
    return tiles(Tile(label, "–", "" if index else note) for index, label in enumerate(labels))


def caution_cards(plan: Plan) -> Markup:
    """Return the plan's warnings, each with its reason."""
    if not plan.warnings:
        return cards([card("Nothing to check", f"The guide has no objections. {plan.tagging}", tone=Tone.OK)])
    count = len(plan.warnings)
    title = "One thing to check" if count == 1 else f"{count} things to check"
    warnings = cards(note(caution.message, caution.why, Tone.WARNING) for caution in plan.warnings)
    return heading(title, "Suggestions only: you can train anyway.") + warnings


def _network(plan: Plan) -> str:
    """Return the network as its users write it: "dim 32", "LoKr dim 8"."""
    kind = plan.recipe.network_type
    return f"{'' if kind is NetworkType.LORA else f'{kind.value} '}dim {plan.recipe.network_dim}"


def _batch(plan: Plan) -> str:
    """Return the images of a step: "4", or "2 × 2" if they are accumulated."""
    size, count = plan.recipe.batch_size, plan.recipe.gradient_accumulation_steps
    return f"{size} × {count}" if count > 1 else str(size)


def _time_range(seconds: SecondsRange) -> str:
    """Return a range of time: "20–60 s", "12–25 min", "1.6–5.3 h"."""
    unit, name = next((unit, name) for unit, name in ((3600, "h"), (60, "min"), (1, "s")) if seconds.high >= 1.5 * unit)
    low, high = (
        f"{bound / unit:.1f}" if unit == 3600 else f"{bound / unit:.0f}" for bound in (seconds.low, seconds.high)
    )
    return f"{low}–{high} {name}"


def _vram_tone(plan: Plan) -> Tone:
    return Tone.WARNING if any(caution.code == "memory" for caution in plan.warnings) else Tone.PLAIN


def _vram_note(plan: Plan) -> str:
    """Return the phase that takes most and what training takes, or the largest part of training if it is that."""
    peak = max(plan.vram_phases, key=lambda phase: plan.vram_phases[phase])
    if peak != TRAINING:
        return f"for {peak.lower()}; training takes {plan.vram_phases[TRAINING]:.1f} GiB"
    largest = max(plan.vram_parts, key=lambda part: plan.vram_parts[part])
    return f"largest part: {largest}, {plan.vram_parts[largest]:.1f} GiB"
