"""Statistics of captions, and the validation split that is recommended."""

from __future__ import annotations

from pathlib import Path

import pytest

from lora_studio import guide
from lora_studio.dataset.captions.statistics import TagTable, caption_statistics, suggest_split


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


def test_splits_only_large_sets_and_keeps_duplicates_on_one_side() -> None:
    def images(count: int) -> list[tuple[Path, str]]:
        return [(Path(f"{number}.png"), f"{number:064x}") for number in range(count)]

    few, medium, large = (suggest_split(images(count), [], seed=1) for count in (29, 30, 301))
    assert (few.share, few.held_out) == (0.0, [])
    assert str(guide.MIN_IMAGES_FOR_VALIDATION) in few.why
    assert (medium.share, medium.held_out) == (0.0, [])
    assert medium.why != few.why
    assert (large.share, len(large.held_out)) == (0.1, 30)
    pairs = [[Path(f"{number}.png"), Path(f"{number + 1}.png")] for number in range(0, 300, 2)]
    chosen = set(suggest_split(images(301), pairs, seed=1).held_out)
    assert all(len(chosen & set(pair)) in (0, 2) for pair in pairs)
