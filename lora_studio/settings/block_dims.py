"""Parse ranks (dims) for single blocks of the UNet.

kohya's `block_dims` lists 23 numbers: the time embedding, the 21 blocks of `settings.blocks` in their order, and the
last convolution.
"""

from __future__ import annotations

from lora_studio.settings.blocks import BLOCKS, parse_entry, split_entries

MAX_DIM = 512
_EXAMPLE = "Write it like in4-5=8, mid=16, out0-2=32, or as kohya's 23 numbers."


def parse_block_dims(text: str) -> dict[str, int]:
    """Return the dims by block name; blocks that the text does not name are missing, 0 leaves a block untrained.

    A name without a number (`mid=16`) means all blocks of that part; a later entry overrides an earlier one. Raises
    ValueError with a message for the user.
    """
    entries = split_entries(text)
    if entries and all(entry.isdecimal() for entry in entries):
        return _kohya(entries)
    dims: dict[str, int] = {}
    for entry in entries:
        blocks, dim = parse_entry(entry, _EXAMPLE)
        if not dim.isdecimal():
            raise ValueError(f"{entry!r} is not a block. {_EXAMPLE}")
        dims |= dict.fromkeys(blocks, _dim(dim))
    return dims


def _kohya(numbers: list[str]) -> dict[str, int]:
    if len(numbers) != len(BLOCKS) + 2:
        raise ValueError(f"there are {len(numbers)} numbers, but SDXL has {len(BLOCKS) + 2} blocks. {_EXAMPLE}")
    return dict(zip(BLOCKS, map(_dim, numbers[1:-1]), strict=True))


def _dim(text: str) -> int:
    if int(text) > MAX_DIM:
        raise ValueError(f"a dim of {text} is above {MAX_DIM}. Use at most {MAX_DIM}.")
    return int(text)
