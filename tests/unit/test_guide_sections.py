"""The guide's sections: every recommendation has one, and docs/guide.md shows them."""

from __future__ import annotations

import runpy
from itertools import product
from pathlib import Path

from lora_studio.guide_sections import SECTION_OF_CAUTION, SECTION_OF_SETTING, SECTIONS
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


def test_cautions_of_bad_plans_have_a_section() -> None:
    settings = {"network_dim": 200, "network_alpha": 300, "unet_lr": 1.0, "text_encoder_lr": 2.0, "epochs": 90}
    others = {"batch_size": 9, "optimizer": "AdamW", "validation_split": 0.2, "clip_skip": 4, "noise_offset": 0.5}
    found = plan(3, vram_gib=4, hours=0.01, trigger_word="", overrides=settings | others).warnings
    found += plan(900, vram_gib=8, trigger_word="anime!", overrides=settings | others).warnings
    codes = {caution.code for caution in found}
    assert codes >= {"few_images", "memory", "trigger_missing", "unet_lr_range", "epochs_tier", "optimizer_large"}
    assert codes <= set(SECTION_OF_CAUTION)


def test_sections_name_settings_once_and_have_their_own_anchors() -> None:
    settings = [setting for section in SECTIONS for setting in section.settings]
    assert len(settings) == len(set(settings))
    assert set(settings) <= set(Recipe.model_fields)
    assert len({section.anchor for section in SECTIONS}) == len(SECTIONS)


def test_the_page_shows_the_sections() -> None:
    build = runpy.run_path(str(ROOT / "tools" / "build_guide_page.py"))
    assert build["PAGE"].read_text("utf-8") == build["guide_page"](), "run python tools/build_guide_page.py"
