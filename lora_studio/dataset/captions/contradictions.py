"""Tags that cannot all be true of one picture, as Danbooru and people write them.

Of each group a caption should have one at most. Those of ALONE hold where one person is in the picture alone: of two
people one may stand and one sit.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

EXCLUSIVE_TAGS: tuple[tuple[str, ...], ...] = (
    ("1girl", "2girls", "3girls", "4girls", "5girls", "6+girls"),
    ("1boy", "2boys", "3boys", "4boys", "5boys", "6+boys"),
    *(("solo", tag) for tag in ("2girls", "3girls", "multiple girls", "2boys", "3boys", "multiple boys", "couple")),
    *(("no humans", tag) for tag in ("1girl", "2girls", "1boy", "2boys", "solo")),
    ("day", "night"),
    ("indoors", "outdoors"),
    ("from above", "from below"),
    ("close-up", "full body"),
    ("portrait", "upper body", "cowboy shot", "full body"),
    ("simple background", "detailed background"),
    ("white background", "black background"),
    ("monochrome", "colorful"),
)
EXCLUSIVE_TAGS_SOLO: tuple[tuple[str, ...], ...] = (
    ("standing", "sitting", "lying", "kneeling", "squatting"),
    ("open mouth", "closed mouth"),
    ("open eyes", "closed eyes"),
    ("looking at viewer", "closed eyes"),
    ("looking at viewer", "looking away", "looking back"),
    ("smile", "frown"),
    ("long hair", "short hair", "bald"),
    ("barefoot", "shoes"),
)
SEVERAL_PEOPLE_TAGS = ("multiple girls", "multiple boys", "couple", "group", "crowd")
_COUNTED_PEOPLE_TAGS = tuple(f"{count}{who}" for who in ("girls", "boys") for count in (2, 3, 4, 5, "6+"))


def normalized_tag(tag: str) -> str:
    """A tag as it is compared: lower case, spaces for underscores."""
    return tag.casefold().replace("_", " ").strip()


def contradictions(tags: Iterable[str]) -> Iterator[tuple[str, ...]]:
    """The tags of each group of which there are two or more, in plain form."""
    there = {normalized_tag(tag) for tag in tags}
    several = not there.isdisjoint((*SEVERAL_PEOPLE_TAGS, *_COUNTED_PEOPLE_TAGS)) or {"1girl", "1boy"} <= there
    for group in EXCLUSIVE_TAGS if several else EXCLUSIVE_TAGS + EXCLUSIVE_TAGS_SOLO:
        found = tuple(tag for tag in group if tag in there)
        if len(found) > 1:
            yield found
