"""Tags that contradict each other: a caption should have at most one of each group.

The groups of `EXCLUSIVE_TAGS_SOLO` apply to images with at most one person: of two people, one may be standing and the
other sitting.
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


def normalised_tag(tag: str) -> str:
    """Return a tag in lower case and with spaces instead of underscores, for comparison."""
    return tag.casefold().replace("_", " ").strip()


def contradictions(tags: Iterable[str]) -> Iterator[tuple[str, ...]]:
    """Yield, for each group of which a caption has two or more tags, those tags in normalised form."""
    present = {normalised_tag(tag) for tag in tags}
    several = not present.isdisjoint((*SEVERAL_PEOPLE_TAGS, *_COUNTED_PEOPLE_TAGS)) or {"1girl", "1boy"} <= present
    for group in EXCLUSIVE_TAGS if several else EXCLUSIVE_TAGS + EXCLUSIVE_TAGS_SOLO:
        found = tuple(tag for tag in group if tag in present)
        if len(found) > 1:
            yield found
