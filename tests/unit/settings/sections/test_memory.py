"""Settings of memory: gradient checkpointing as a boolean, as in kohya's files."""

from __future__ import annotations

import pytest

from lora_studio.settings.choices import GradientCheckpointing
from lora_studio.settings.recipe import Recipe


@pytest.mark.parametrize(
    ("value", "expected"), [(True, GradientCheckpointing.ON), (False, GradientCheckpointing.OFF), ("auto", "auto")]
)
def test_gradient_checkpointing_can_be_a_boolean(value: object, expected: str) -> None:
    assert Recipe.parse({"gradient_checkpointing": value}).gradient_checkpointing == expected
