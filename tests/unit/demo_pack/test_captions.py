"""Captions name subject, style and background, each left out in a small share."""

from __future__ import annotations

import random

import pytest
from demo_pack.captions import EMPTY, rendering_caption
from demo_pack.pictures import Picture

APPLE = Picture("noto", 0, "red apple", "food fruit", ("fruit", "apple"))
DOG = Picture("noto", 1, "dog face", "animal mammal", ("pet",))


def captions_of(
    subjects: list[Picture], style: tuple[str, ...], background: str, colours: tuple[str, ...] = ()
) -> list[str]:
    rng = random.Random(1)
    return [rendering_caption(subjects, colours, style, background, rng) for _ in range(400)]


def share(texts: list[str], *words: str) -> float:
    return sum(any(word in text for word in words) for text in texts) / len(texts)


@pytest.mark.parametrize("words", ["sepia", "rotated", "blue background"])
def test_most_captions_name_each_part_and_some_leave_it_out(words: str) -> None:
    named = share(captions_of([APPLE], ("sepia", "rotated"), "blue background"), words)
    assert 0.7 < named < 0.9


def test_most_captions_name_the_subject_and_some_only_the_rendering() -> None:
    texts = captions_of([APPLE], ("sepia",), "blue background")
    assert 0.6 < share(texts, "red apple") < 0.9
    only_rendering = [text for text in texts if text and not any(w in text for w in ("apple", "fruit"))]
    assert only_rendering


def test_both_subjects_of_a_pair_are_named() -> None:
    texts = captions_of([APPLE, DOG], ("side by side",), "")
    assert {("red apple" in text, "dog face" in text) for text in texts} == {(True, True), (False, False)}


def test_some_captions_are_empty() -> None:
    texts = captions_of([APPLE], ("sepia",), "blue background")
    assert 0.5 * EMPTY < texts.count("") / len(texts) < 2 * EMPTY


def test_colours_of_the_subject_are_named_only_if_the_style_keeps_them() -> None:
    assert share(captions_of([APPLE], (), "blue background", ("crimson",)), "crimson") > 0.2
    assert share(captions_of([APPLE], ("sepia",), "blue background", ("crimson",)), "crimson") == 0
