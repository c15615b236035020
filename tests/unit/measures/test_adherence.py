"""Prompt adherence by a tagger's confidences, and the content of prompts by features."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lora_studio.measures.adherence import adherence, content_kept, prompt_tags
from tests.support.features import at_angles


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


@given(st.lists(st.floats(0, 60), min_size=4, max_size=4))
def test_the_base_keeps_all_of_its_content(jitter: list[float]) -> None:
    base = at_angles([[0.0 + jitter[0], 5.0 + jitter[1]], [120.0 + jitter[2], 125.0 + jitter[3]]])
    found = content_kept(base, base)
    assert found is not None
    assert found.value == pytest.approx(1)


def test_pictures_that_ignore_the_prompt_keep_nothing_and_swapped_ones_less() -> None:
    base = at_angles([[0.0, 10.0], [90.0, 100.0], [180.0, 190.0]])
    same, swapped = np.broadcast_to(base[:1], base.shape), base[::-1]
    none, wrong = content_kept(same, base), content_kept(swapped, base)
    assert none is not None
    assert wrong is not None
    assert none.value == pytest.approx(0, abs=1e-3)
    assert wrong.value < 0


def test_half_of_the_content_is_half_of_the_margin() -> None:
    """The base has two orthogonal pictures; a picture between its own and an unrelated one has half of its cosine."""
    base = np.eye(3, dtype=np.float32)[:2, None]
    pictures = np.array([[[0.5, 0, 0.75**0.5]], [[0, 0.5, 0.75**0.5]]], np.float32)
    found = content_kept(pictures, base)
    assert found is not None
    assert found.value == pytest.approx(0.5)
    assert content_kept(pictures[:1], base[:1]) is None
