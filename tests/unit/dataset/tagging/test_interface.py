"""The caption of a description."""

from __future__ import annotations

from lora_studio.dataset.tagging.interface import Description, Tag


def test_a_description_as_caption() -> None:
    assert Description(sentence="a cat, sitting").caption == "a cat, sitting"
    assert Description().caption == ""
    assert Description((Tag("red", 0.9), Tag("hat", 0.5)), "a cat").caption == "a cat, red, hat"
