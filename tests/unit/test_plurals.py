"""Nouns and verbs agree with their numbers."""

from __future__ import annotations

from lora_studio.plurals import format_count, format_share


def test_nouns_follow_their_number() -> None:
    assert [format_count(number, "image") for number in (0, 1, 1200)] == ["0 images", "1 image", "1,200 images"]


def test_verbs_follow_the_part_and_nouns_the_whole() -> None:
    found = [format_share(part, total, "image", "has", "have") for part, total in ((1, 1), (1, 24), (24, 24))]
    assert found == ["1 of 1 image has", "1 of 24 images has", "24 of 24 images have"]
