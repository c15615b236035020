"""Parse ranks (dims) for single blocks of the UNet.

Blocks are numbered as in Stability's code: `in0` to `in8`, `mid0` to `mid2`, `out0` to `out8`. kohya's `block_dims`
lists 23 numbers: the time embedding, these 21 blocks in this order, and the last convolution.
"""

from __future__ import annotations

import re

INPUTS, MIDDLES, OUTPUTS = 9, 3, 9
BLOCKS = (
    *(f"in{number}" for number in range(INPUTS)),
    *(f"mid{number}" for number in range(MIDDLES)),
    *(f"out{number}" for number in range(OUTPUTS)),
)
MAX_DIM = 512
_ENTRY = re.compile(r"(in|mid|out)(?:(\d+)(?:-(\d+))?)?=(\d+)")
_EXAMPLE = "Write it like in4-5=8, mid=16, out0-2=32, or as kohya's 23 numbers."


def parse_block_dims(text: str) -> dict[str, int]:
    """Return the dims by block name; blocks that the text does not name are missing, 0 leaves a block untrained.

    A name without a number (`mid=16`) means all blocks of that part; a later entry overrides an earlier one. Raises
    ValueError with a message for the user.
    """
    parts = [part for part in re.split(r"[,;\s]+", re.sub(r"\s*([=-])\s*", r"\1", text.strip().lower())) if part]
    if parts and all(part.isdecimal() for part in parts):
        return _kohya(parts)
    dims: dict[str, int] = {}
    for part in parts:
        match = _ENTRY.fullmatch(part)
        if match is None:
            raise ValueError(f"{part!r} is not a block. {_EXAMPLE}")
        kind, first, last, dim = match.groups()
        count = {"in": INPUTS, "mid": MIDDLES, "out": OUTPUTS}[kind]
        begin = int(first) if first else 0
        end = int(last) if last else begin if first else count - 1
        if not begin <= end < count:
            raise ValueError(f"{part!r}: {kind!r} has the blocks {kind}0 to {kind}{count - 1}.")
        dims |= {f"{kind}{number}": _dim(dim) for number in range(begin, end + 1)}
    return dims


def _kohya(numbers: list[str]) -> dict[str, int]:
    if len(numbers) != len(BLOCKS) + 2:
        raise ValueError(f"there are {len(numbers)} numbers, but SDXL has {len(BLOCKS) + 2} blocks. {_EXAMPLE}")
    return dict(zip(BLOCKS, map(_dim, numbers[1:-1]), strict=True))


def _dim(text: str) -> int:
    if int(text) > MAX_DIM:
        raise ValueError(f"a dim of {text} is above {MAX_DIM}.")
    return int(text)
