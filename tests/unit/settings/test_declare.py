"""Declarations of settings: label, group, reason and default of each, and values that are given as text."""

from __future__ import annotations

from typing import Any

import pytest

from lora_studio.errors import InputError
from lora_studio.settings.declare import Group, parse_toml, split_commas, split_lines
from lora_studio.settings.recipe import Recipe


def test_every_setting_has_label_group_and_reason() -> None:
    groups = {group.value for group in Group}
    for name, field in Recipe.model_fields.items():
        extra: Any = field.json_schema_extra
        assert extra["label"], name
        assert extra["group"] in groups, name
        assert field.description, name
        assert field.description.endswith("."), name
    simple = [name for name, field in Recipe.model_fields.items() if field.json_schema_extra["simple"]]  # type: ignore[call-overload,index]
    assert 3 <= len(simple) <= 8


def test_non_defaults_are_only_the_differences() -> None:
    assert Recipe().non_defaults() == {}
    changed = Recipe.parse({"epochs": 3, "optimizer": "Prodigy", "network_dim": 32}).non_defaults()
    assert changed == {"epochs": 3, "optimizer": "Prodigy"}
    assert Recipe.parse(changed).non_defaults() == changed


def test_assignment_is_validated() -> None:
    recipe = Recipe()
    with pytest.raises(ValueError, match="greater than or equal to 1"):
        recipe.epochs = 0
    assert recipe.epochs == 10


def test_texts_are_split_into_lists_and_lists_are_kept() -> None:
    assert split_commas(" a, b c,,\n") == ["a", "b c"]
    assert split_lines("a, b\n\n  c ") == ["a, b", "c"]
    assert split_commas(["a, b"]) == split_lines(["a, b"]) == ["a, b"]


def test_an_error_in_toml_names_the_source_and_the_line() -> None:
    assert parse_toml("epochs = 3", "job.toml") == {"epochs": 3}
    with pytest.raises(InputError, match=r"job\.toml.*line 2") as caught:
        parse_toml("epochs = 3\nseed = x", "job.toml")
    assert caught.value.code == "toml"
