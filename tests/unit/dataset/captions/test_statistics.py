"""Statistics of captions."""

from __future__ import annotations

from pathlib import Path

import pytest

from lora_studio.dataset.captions.statistics import TagTable, caption_statistics


def test_counts_tags_once_per_image_and_their_co_occurrence(tmp_path: Path) -> None:
    images = []
    for number, caption in enumerate(["ohwx, Cat, cat, hat", "ohwx, cat", "ohwx, dog", "", None]):
        images.append(tmp_path / f"{number}.png")
        if caption is not None:
            images[-1].with_suffix(".txt").write_text(caption)
    found = caption_statistics(images)
    assert (found.images, found.captioned) == (5, 3)
    assert [(count.tag, count.images) for count in found.tags] == [("ohwx", 3), ("Cat", 2), ("dog", 1), ("hat", 1)]
    assert (found.of, [count.tag for count in found.together]) == ("ohwx", ["Cat", "dog", "hat"])
    assert found.together[0].share == pytest.approx(2 / 3)
    assert (found.tokens.least, found.tokens.too_long) == (3, 0)
    beside = caption_statistics(images, tag="CAT").together
    assert [(count.tag, count.images, count.share) for count in beside] == [("ohwx", 2, 1.0), ("hat", 1, 0.5)]


def test_an_absent_tag_co_occurs_with_nothing() -> None:
    assert TagTable.of({Path("a"): "cat"}).cooccurring("dog") == []
    assert caption_statistics([]).tags == []
