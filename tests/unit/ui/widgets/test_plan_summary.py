"""A plan as tiles and cards."""

from __future__ import annotations

import pytest

from lora_studio.planning.plan import plan
from lora_studio.planning.planned_memory import MEASURED
from lora_studio.planning.planned_run import Plan
from lora_studio.planning.timing import SecondsRange
from lora_studio.ui.widgets.plan_summary import caution_cards, plan_tiles


@pytest.fixture
def made() -> Plan:
    return plan(24, kind="style", trigger_word="inkstamp_hc")


@pytest.mark.parametrize(
    ("low", "high", "text"),
    [(20, 60, "20–60 s"), (100, 300, "2–5 min"), (720, 1500, "12–25 min"), (5760, 19080, "1.6–5.3 h")],
)
def test_times_are_ranges_with_a_unit(made: Plan, low: float, high: float, text: str) -> None:
    changed = made.model_copy(update={"seconds": SecondsRange(low=low, high=high)})
    assert text in plan_tiles(changed)


def test_tiles_have_the_figures_of_the_plan(made: Plan) -> None:
    drawn = plan_tiles(made)
    for figure in (f"{made.steps.total_steps:,}", f"{made.lora_mib:.0f} MiB", "dim 32"):
        assert figure in drawn
    unet_only = made.model_copy(update={"recipe": made.recipe.model_copy(update={"text_encoder_lr": 0.0})})
    assert "UNet only" in plan_tiles(unet_only)


def test_every_warning_has_a_card_with_its_reason() -> None:
    warned = plan(3, kind="character", trigger_word="")
    assert warned.warnings
    drawn = caution_cards(warned)
    assert drawn.count('class="card warning"') == len(warned.warnings)
    quiet = warned.model_copy(update={"warnings": []})
    assert 'class="card ok"' in caution_cards(quiet)


def test_the_memory_tile_names_the_phase_that_takes_more_than_training() -> None:
    settings = {"gradient_checkpointing": "on", "batch_size": 1, "text_encoder_lr": 0}
    drawing = plan(24, overrides=settings | {"resolution": 512})
    assert f"for drawing a sample; training takes {drawing.vram_phases['Training']:.1f} GiB" in plan_tiles(drawing)
    assert "largest part: UNet, 4.8 GiB" in plan_tiles(plan(24, overrides=settings))


def test_the_memory_tile_shows_the_least_and_the_most_where_the_run_decides() -> None:
    given = {"batch_size": 1, "text_encoder_lr": 0}
    every, none = (plan(24, overrides=given | {"gradient_checkpointing": choice}).vram_gib for choice in ("on", "off"))
    for vram in (9, 11, 24):
        made = plan(24, vram_gib=vram, overrides=given)
        drawn = plan_tiles(made)
        assert f"{every:.1f}–{none:.1f} GiB" in drawn
        assert every < made.vram_gib <= none
    assert f"{every:.1f} GiB" in plan_tiles(plan(24, overrides=given | {"gradient_checkpointing": "on"}))


def test_the_memory_tile_of_a_measured_run_says_so(made: Plan) -> None:
    changes = {"gib": 9.4, "least": 9.4, "most": 9.4, "source": MEASURED}
    drawn = plan_tiles(made.model_copy(update={"memory": made.memory.model_copy(update=changes)}))
    assert "9.4 GiB" in drawn
    assert MEASURED in drawn


def test_a_cpu_has_no_estimated_memory_but_a_measured_peak_of_ram() -> None:
    made = plan(24, base="embedded", device="CPU")
    assert "GiB" not in plan_tiles(made)
    measured = made.model_copy(update={"memory": made.memory.model_copy(update={"ram_gib": 1.3})})
    assert "1.3 GiB" in plan_tiles(measured)
    assert "VRAM" not in plan_tiles(measured)
