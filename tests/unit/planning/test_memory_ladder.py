"""Each way to save memory takes no more than those before it, and a plan fits where one of them does."""

from __future__ import annotations

import pytest

from lora_studio.planning.memory_ladder import memory_ladder
from lora_studio.planning.plan import plan
from lora_studio.settings.recipe import Recipe


def test_no_rung_takes_more_memory_and_recomputing_takes_time() -> None:
    rungs = memory_ladder(Recipe(batch_size=4, optimizer="Prodigy", unet_lr=1), None, 8)
    needed = [rung.vram_gib for rung in rungs]
    assert needed == sorted(needed, reverse=True)
    assert rungs[0].time_factor == 1
    by_setting = {rung.setting: rung for rung in rungs}
    assert by_setting["gradient_checkpointing"].time_factor > 1
    assert set(by_setting) >= {"optimizer", "batch_size", "text_encoder_lr", "base_precision", "resolution"}


@pytest.mark.parametrize("vram", [6, 8, 10])
def test_the_plan_fits_where_a_rung_does(vram: int) -> None:
    planned = plan(24, vram_gib=vram)
    fitting = [rung for rung in planned.ladder if rung.fits]
    assert fitting
    assert planned.vram_gib <= vram
    assert any(not rung.fits for rung in planned.ladder)


def test_without_a_known_gpu_nothing_is_said_to_fit() -> None:
    assert {rung.fits for rung in plan(24).ladder} == {None}
