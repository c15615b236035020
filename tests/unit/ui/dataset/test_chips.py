"""Chips show a tagger's confidence and what is truncated."""

from __future__ import annotations

import re

from lora_studio.ui.dataset.chips import tag_chips
from tests.support.captioned_images import TRIGGER


def test_chips_show_confidences_and_truncation() -> None:
    caption = ", ".join([TRIGGER, *(f"tag number {number}" for number in range(20))])
    chips = tag_chips(caption, TRIGGER, {"tag number 0": 0.95, "tag number 1": 0.5, "tag number 2": 0.2})
    assert re.findall(r'<li class="chip (\w+)"', chips) == ["trigger", "high", "middle", "low"]
    assert "<s>" not in chips.split('data-tag="tag number 9"')[0]
    assert "<span><s>tag number 19</s></span>" in chips
