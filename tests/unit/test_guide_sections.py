"""The guide's sections: every recommendation has one, and docs/guide.md shows them."""

from __future__ import annotations

import runpy
from itertools import product
from pathlib import Path

from lora_studio.guide_sections import SECTION_OF_SETTING, SECTIONS
from lora_studio.planning.plan import plan
from lora_studio.settings.choices import LoraKind
from lora_studio.settings.recipe import Recipe

ROOT = Path(__file__).parents[2]


def test_every_recommendation_of_the_guide_has_a_section() -> None:
    cases = product(LoraKind, (20, 500), (None, 6.0), ("SDXL 1.0", "embedded"))
    guided = {
        reason.setting
        for kind, images, vram_gib, base in cases
        for reason in plan(images, kind=kind, vram_gib=vram_gib, base=base).reasons
        if reason.guide
    }
    assert guided >= {"unet_lr", "network_dim", "epochs", "resolution"}
    assert guided <= set(SECTION_OF_SETTING)


def test_sections_name_settings_once_and_have_their_own_anchors() -> None:
    settings = [setting for section in SECTIONS for setting in section.settings]
    assert len(settings) == len(set(settings))
    assert set(settings) <= set(Recipe.model_fields)
    assert len({section.anchor for section in SECTIONS}) == len(SECTIONS)


def test_the_page_shows_the_sections() -> None:
    build = runpy.run_path(str(ROOT / "tools" / "build_guide_page.py"))
    assert build["PAGE"].read_text("utf-8") == build["guide_page"](), "run python tools/build_guide_page.py"
