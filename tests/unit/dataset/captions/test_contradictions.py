"""Tags that contradict each other."""

from __future__ import annotations

import pytest

from lora_studio.dataset.captions.contradictions import contradictions


@pytest.mark.parametrize(
    ("tags", "found"),
    [
        (["1girl", "2girls"], [("1girl", "2girls")]),
        (["2girls", "standing", "sitting"], []),
        (["1girl", "1boy", "standing", "sitting"], []),
        (["solo", "standing", "Sitting"], [("standing", "sitting")]),
        (["indoors", "outdoors", "night"], [("indoors", "outdoors")]),
    ],
)
def test_finds_contradictory_tags(tags: list[str], found: list[tuple[str, ...]]) -> None:
    assert list(contradictions(tags)) == found
