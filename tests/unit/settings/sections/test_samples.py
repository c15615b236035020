"""Settings of the samples."""

from __future__ import annotations

from lora_studio.settings.recipe import Recipe


def test_prompts_are_split_into_lines() -> None:
    assert Recipe.parse({"sample_prompts": " a cat \n\n b, c\n"}).sample_prompts == ["a cat", "b, c"]
