"""Names of the UNet's blocks, and texts that give single blocks a number.

Blocks are numbered as in Stability's code: `in0` to `in8`, `mid0` to `mid2`, `out0` to `out8`. These are kohya's down,
mid and up blocks, from the shallowest to the deepest and back.
"""

from __future__ import annotations

import re

PART_SIZES = {"in": 9, "mid": 3, "out": 9}
BLOCKS = tuple(f"{part}{number}" for part, size in PART_SIZES.items() for number in range(size))
_ENTRY = re.compile(r"(in|mid|out)(?:(\d+)(?:-(\d+))?)?=(.+)")


def split_entries(text: str) -> list[str]:
    """Return the entries of a text, like in4-5=8, in lower case and without spaces."""
    return [part for part in re.split(r"[,;\s]+", re.sub(r"\s*([=-])\s*", r"\1", text.strip().lower())) if part]


def parse_entry(entry: str, example: str) -> tuple[list[str], str]:
    """Return the blocks that an entry like in4-5=8 names, and what it gives them.

    A name without a number (`mid=16`) means all blocks of that part. Raises ValueError with a message for the user;
    `example` is its remedy.
    """
    match = _ENTRY.fullmatch(entry)
    if match is None:
        raise ValueError(f"{entry!r} is not a block. {example}")
    part, first, last, value = match.groups()
    count = PART_SIZES[part]
    begin = int(first) if first else 0
    end = int(last) if last else begin if first else count - 1
    if not begin <= end < count:
        raise ValueError(f"{entry!r}: {part!r} has the blocks {part}0 to {part}{count - 1}. {example}")
    return [f"{part}{number}" for number in range(begin, end + 1)], value
