from __future__ import annotations

import ast
import json
from pathlib import Path

import pytest

from lora_studio import guide
from lora_studio.settings.choices import LoraKind, Optimizer
from lora_studio.settings.recipe import Recipe

PACKAGE = Path(guide.__file__).parent


def test_every_entry_of_the_guide_is_used_somewhere() -> None:
    entries = {name for name in vars(guide) if name.isupper() and not name.startswith("_")}
    entries.add("tier_for")
    used: set[str] = set()
    for file in PACKAGE.rglob("*.py"):
        if file.name == "guide.py":
            continue
        for node in ast.walk(ast.parse(file.read_text("utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.module == "lora_studio.guide":
                used |= {alias.name for alias in node.names}
            elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "guide":
                used.add(node.attr)
    assert entries - used - {"TIERS"} == set()  # TIERS is read through tier_for


def test_recipe_advice_names_real_settings_and_is_within_its_own_range() -> None:
    elsewhere = {"tagger_threshold", "character_threshold", "strengths", "training_hours"}
    assert guide.RECIPE.keys() - elsewhere <= Recipe.model_fields.keys()
    for name, advice in guide.RECIPE.items():
        assert advice.why.endswith("."), name
        if isinstance(advice.value, int | float) and not isinstance(advice.value, bool):
            assert advice.low is None or advice.low <= advice.value, name
            assert advice.high is None or advice.value <= advice.high, name


@pytest.mark.parametrize(
    ("images", "name"), [(1, "small"), (10, "small"), (50, "small"), (51, "medium"), (300, "medium"), (301, "large")]
)
def test_tier_for_a_number_of_images(images: int, name: str) -> None:
    assert guide.tier_for(images).name == name


def test_tiers_have_the_guides_values_and_no_gaps() -> None:
    small, medium, large = guide.TIERS
    assert (small.batch_size, small.epochs) == ((1, 2), (10, 15))
    assert (medium.batch_size, medium.epochs) == ((2, 4), (5, 8))
    assert (large.batch_size[0], large.epochs) == (4, (3, 5))
    assert small.high is not None
    assert medium.high is not None
    assert (small.high + 1, medium.high + 1, large.high) == (medium.low, large.low, None)
    assert [tier.describe() for tier in guide.TIERS] == ["10 to 50 images", "51 to 300 images", "more than 300 images"]


def test_kinds_and_optimizers_match_the_settings() -> None:
    assert guide.KINDS.keys() == {kind.value for kind in LoraKind}
    assert guide.OPTIMIZERS.keys() == {optimizer.value for optimizer in Optimizer}
    for advice in guide.KINDS.values():
        assert all("{trigger}" in prompt for prompt in advice.prompts)


def test_memory_savings_and_warning_signs_name_real_settings() -> None:
    for saving in guide.MEMORY_SAVINGS:
        assert Recipe.parse({saving.setting: saving.value})
    for sign in guide.WARNING_SIGNS.values():
        assert sign.settings
        assert set(sign.settings) <= Recipe.model_fields.keys()
    assert {experiment.code for experiment in guide.EXPERIMENTS} <= Recipe.model_fields.keys()
    order = [saving.setting for saving in guide.MEMORY_SAVINGS]
    assert order[-1] == "resolution"
    assert order.index("gradient_checkpointing") < order.index("batch_size") < order.index("resolution")


def test_corrections_are_arithmetically_right() -> None:
    rate, optimizer = guide.CORRECTIONS
    assert guide.RECIPE["unet_lr"].value / guide.RECIPE["text_encoder_lr"].value == pytest.approx(5)
    assert "a fifth" in rate.holds
    assert pytest.approx(0.65, abs=0.02) == 85.1e6 * 8 / 2**30
    assert "0.65 GB" in optimizer.holds


def test_workflow_has_the_four_steps() -> None:
    assert [step.name for step in guide.WORKFLOW.values()] == ["Plan", "Dataset", "Train", "Test"]
    for step in guide.WORKFLOW.values():
        assert step.question.endswith("?")
        assert len(step.todo) >= 3
        assert step.thought


def test_hints_collect_all_advice_on_a_setting() -> None:
    rate = guide.hints("unet_lr")
    assert rate[0] == guide.RECIPE["unet_lr"].why
    assert any("NaN" in hint for hint in rate)
    assert any("most impactful" in hint for hint in rate)
    assert any("CAME" in hint for hint in guide.hints("optimizer"))
    assert any("a fifth" in hint for hint in guide.hints("text_encoder_lr"))
    assert any("Washed-out" in hint for hint in guide.hints("prediction_type"))
    assert len(guide.hints("trigger_word")) == len(guide.TRIGGER_RULES)
    assert guide.hints("seed") == []


def test_texts_have_no_exclamation_marks_or_emoji() -> None:
    texts = [value for value in json.dumps(_texts(), ensure_ascii=False).split('"') if value.strip(" ,[]")]
    assert len(texts) > 80
    for text in texts:
        assert "!" not in text
        assert not any(ord(letter) > 0x2600 for letter in text)
        assert "must never" not in text


def _texts() -> list[str]:
    entries = [
        *guide.RECIPE.values(), *guide.TIERS, *guide.KINDS.values(), *guide.OPTIMIZERS.values(), *guide.MEMORY_SAVINGS,
        *guide.TRIGGER_RULES, *guide.EXPERIMENTS, *guide.WARNING_SIGNS.values(), *guide.SUCCESS_INDICATORS,
        *guide.WORKFLOW.values(), *guide.CORRECTIONS,
    ]  # fmt: skip
    found = []
    for entry in entries:
        for value in vars(entry).values():
            values = value if isinstance(value, tuple) else (value,)
            found += [text for text in values if isinstance(text, str)]
    return found
