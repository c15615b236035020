"""Prompt adherence by a tagger's confidences."""

from __future__ import annotations

import pytest

from lora_studio.measures.adherence import adherence, prompt_tags


def test_tags_are_those_that_the_tagger_knows_without_the_trigger_word() -> None:
    known = ["cat", "red hair", "inkstamp"]
    assert prompt_tags("InkStamp, Red_Hair, a poem, cat, cat", known, "inkstamp") == ["red hair", "cat"]


def test_mean_confidence_of_the_tags_of_prompts_that_have_any() -> None:
    found = adherence([[{"cat": 0.8}, {"cat": 0.4, "dog": 0.9}], [{"dog": 1.0}] * 2], [["cat", "hat"], []])
    assert found is not None
    assert found.value == pytest.approx((0.4 + 0.2) / 2)
    assert found.error == pytest.approx(0.1)


def test_a_missing_picture_is_left_out_and_no_tags_are_no_figure() -> None:
    found = adherence([[{"cat": 0.8}, None]], [["cat"]])
    assert found is not None
    assert found.value == pytest.approx(0.8)
    assert adherence([[{"cat": 0.8}]], [[]]) is None
