"""A plan as JSON values and as Markdown."""

from __future__ import annotations

import re

from lora_studio.planning.plan import plan
from lora_studio.settings.recipe import Recipe


def test_the_text_has_the_plans_figures_and_cautions() -> None:
    result = plan(24, kind="style", vram_gib=8, trigger_word="")
    text = result.describe()
    facts = (
        "24 images",
        "small",
        f"{result.steps.total_steps:,} steps",
        f"{result.memory.most:.1f} GiB",
        "Tag with BLIP",
    )
    for part in (
        *facts,
        f"{result.lora_mib:.0f} MiB",
        result.seconds.source,
        *(found.why for found in result.warnings),
    ):
        assert part in text
    assert "**GPU memory:**" in text
    assert "**RAM:**" in plan(24, base="embedded", device="CPU").describe()


def test_the_text_has_a_row_with_its_reason_for_each_difference_from_the_defaults() -> None:
    values = {"network_dim": 48, "optimizer": "Prodigy", "caption_prefix": "a | b"}
    result = plan(24, overrides=values)
    rows = dict(re.findall(r"^\| `(\w+)` \| (.+) \|$", result.describe(), re.MULTILINE))
    assert set(rows) >= set(result.recipe.non_defaults())
    assert rows["network_dim"].startswith("`48` | ")
    assert r"a \| b" in rows["caption_prefix"]
    assert all(row.split(" | ")[-1].strip() for row in rows.values())


def test_settings_that_were_given_as_the_defaults_have_no_row() -> None:
    result = plan(24, overrides=Recipe(network_dim=48).model_dump())
    assert [reason.setting for reason in result.differences] == ["network_dim"]
