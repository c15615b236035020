"""A plan's figures as tiles and its warnings as cards, shown by Plan and by the form of Train."""

from __future__ import annotations

from markupsafe import Markup

from lora_studio.guide_sections import SECTION_OF_CAUTION, GuideSection
from lora_studio.planning.cautions import Caution
from lora_studio.planning.memory import TRAINING
from lora_studio.planning.planned_memory import ESTIMATED, MEASURED
from lora_studio.planning.planned_run import Plan, batch_as_text
from lora_studio.planning.timing import describe_range
from lora_studio.plurals import format_count
from lora_studio.settings.choices import NetworkType
from lora_studio.ui.widgets.html import Tile, Tone, card, cards, heading, note, render, tiles


def plan_tiles(plan: Plan) -> Markup:
    """Return tiles with the plan's figures."""
    return tiles(plan_figures(plan))


def plan_figures(plan: Plan) -> list[Tile]:
    """Return the plan's steps, time, memory and file size, each with a note."""
    files = "UNet and text encoders" if plan.recipe.trains_text_encoders else "UNet only"
    length = (
        f"{format_count(plan.images, 'image')} × {format_count(plan.repeats, 'repeat')}, "
        f"{format_count(plan.steps.epochs, 'epoch')}, {batch_as_text(plan.recipe, plan.num_processes)}"
    )
    return [
        Tile("Steps", f"{plan.steps.total_steps:,}", length),
        Tile("Estimated time", describe_range(plan.seconds), plan.seconds.source),
        _memory_tile(plan),
        Tile("File size", f"{plan.lora_mib:.0f} MiB", f"{_network(plan)}, {files}"),
    ]


def empty_plan_tiles(note: str) -> Markup:
    """Return the tiles of a plan without figures; `note` says what to do."""
    labels = ("Steps", "Estimated time", "Estimated memory", "File size")
    return tiles(Tile(label, "–", "" if index else note) for index, label in enumerate(labels))


def caution_cards(plan: Plan, *, with_guide: bool = False) -> Markup:
    """Return the plan's warnings, each with its reason and, on a page `with_guide`, a link to the guide's section."""
    if not plan.warnings:
        return cards([card("Nothing to check", f"The guide has no objections. {plan.tagging}", tone=Tone.OK)])
    count = len(plan.warnings)
    title = "One thing to check" if count == 1 else f"{count} things to check"
    sections = SECTION_OF_CAUTION if with_guide else {}
    warnings = cards(
        note(caution.message, _reason(caution, sections.get(caution.code)), Tone.WARNING) for caution in plan.warnings
    )
    return heading(title, "Suggestions only: you can train anyway.") + warnings


def _reason(caution: Caution, section: GuideSection | None) -> str:
    return render("plan/caution_reason.html", why=caution.why, section=section)


def _network(plan: Plan) -> str:
    """Return the network as its users write it: "dim 32", "LoKr dim 8"."""
    kind = plan.recipe.network_type
    return f"{'' if kind is NetworkType.LORA else f'{kind.value} '}dim {plan.recipe.network_dim}"


def _memory_tile(plan: Plan) -> Tile:
    """Return the memory: measured, or estimated for a GPU, as a range where the run decides what is recomputed."""
    memory = plan.memory
    if plan.on_cpu:
        if memory.ram_gib is not None:
            return Tile("Peak RAM", f"{memory.ram_gib:.1f} GiB", MEASURED)
        return Tile("RAM", "–", "not measured yet; enter the VRAM of a GPU to plan for it")
    if memory.is_range:
        value, note = f"{memory.least:.1f}–{memory.most:.1f} GiB", "all UNet blocks recomputed to none: as many as fit"
        return Tile("Estimated VRAM", value, note, _vram_tone(plan))
    if memory.source != ESTIMATED:
        return Tile("VRAM", f"{memory.gib:.1f} GiB", memory.source, _vram_tone(plan))
    return Tile("Estimated VRAM", f"{memory.gib:.1f} GiB", _vram_note(plan), _vram_tone(plan))


def _vram_tone(plan: Plan) -> Tone:
    return Tone.WARNING if any(caution.code == "memory" for caution in plan.warnings) else Tone.PLAIN


def _vram_note(plan: Plan) -> str:
    """Return the phase that takes most and what training takes, or the largest part of training if it is that."""
    peak = max(plan.vram_phases, key=lambda phase: plan.vram_phases[phase])
    if peak != TRAINING:
        return f"for {peak.lower()}; training takes {plan.vram_phases[TRAINING]:.1f} GiB"
    largest = max(plan.vram_parts, key=lambda part: plan.vram_parts[part])
    return f"largest part: {largest}, {plan.vram_parts[largest]:.1f} GiB"
