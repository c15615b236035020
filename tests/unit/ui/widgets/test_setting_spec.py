"""Settings as form fields: content that is parsed back, and what depends on what."""

from __future__ import annotations

import pytest

from lora_studio.settings.recipe import Recipe
from lora_studio.ui.widgets.setting_spec import SettingSpec


@pytest.mark.parametrize("name", Recipe.model_fields)
def test_a_setting_depends_on_one_that_exists(name: str) -> None:
    spec = SettingSpec.of(Recipe, name)
    if spec.depends_on:
        dependency = SettingSpec.of(Recipe, spec.depends_on)
        assert not spec.simple
        assert set(spec.depends_on_values) <= set(dependency.choices)
        assert not dependency.depends_on


@pytest.mark.parametrize("name", Recipe.model_fields)
def test_defaults_are_parsed_back_and_unchanged(name: str) -> None:
    spec = SettingSpec.of(Recipe, name)
    content = spec.to_component(spec.default)
    assert not spec.is_changed(content)
    assert getattr(Recipe.model_validate({name: spec.from_component(content)}), name) == spec.default


def test_changed_and_wrong_fields_are_marked() -> None:
    spec = SettingSpec.of(Recipe, "unet_lr")
    assert spec.classes("0.0005") == ["field"]
    assert spec.classes("1e-3") == ["field", "changed"]
    assert spec.classes("fast", "should be a number") == ["field", "changed", "wrong"]
    assert spec.info("fast", "should be a number") == "should be a number"
    assert spec.info("1e-3") == f"Default: 5e-4. {spec.why}"
    planned = spec.compared_with_plan(1e-3)
    assert planned.classes("0.001") == ["field"]
    assert planned.info("5e-4") == f"Plan: 0.001. {spec.why}"
