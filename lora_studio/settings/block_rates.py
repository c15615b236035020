"""Parse factors on the UNet's learning rate for its single blocks, as in kohya's `down_lr_weight` and the like."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from math import isfinite, pi, sin
from types import MappingProxyType

from lora_studio.settings.blocks import BLOCKS, PART_SIZES, parse_entry, split_entries

MAX_WEIGHT = 100.0
# Factors by a block's position from 0 to 1 within its part, from sd-scripts' networks/lora.py.
_CURVES: Mapping[str, Callable[[float], float]] = {
    "sine": lambda position: sin(pi * position / 2),
    "cosine": lambda position: sin(pi * (1 - position) / 2),
    "linear": lambda position: position,
    "reverse_linear": lambda position: 1 - position,
    "zeros": lambda position: 0.0,
}


def parse_block_rates(part: str, text: str) -> list[float]:
    """Return the factor of each block of a part (`in`, `mid` or `out`); 1 where the text says nothing.

    The text is a curve like `cosine+.2` (not for `mid`), a number for each block, or entries like `in0-3=0.2`. Raises
    ValueError with a message for the user.
    """
    size = PART_SIZES[part]
    entries = split_entries(text)
    name, _, base = text.strip().lower().partition("+")
    if name.strip() in _CURVES and part != "mid":
        curve, added = _CURVES[name.strip()], _factor(base, part) if base.strip() else 0.0
        return [curve(number / (size - 1)) + added for number in range(size)]
    if entries and not any("=" in entry for entry in entries):
        if len(entries) != size:
            raise ValueError(f"{text!r} has {len(entries)} of the {size} blocks of this part. {_example(part)}")
        return [_factor(entry, part) for entry in entries]
    factors = dict.fromkeys((f"{part}{number}" for number in range(size)), 1.0)
    for entry in entries:
        blocks, factor = parse_entry(entry, _example(part))
        if blocks[0] not in factors:
            raise ValueError(f"{entry!r} is not in this part. {_example(part)}")
        factors |= dict.fromkeys(blocks, _factor(factor, part))
    return list(factors.values())


@cache
def block_rates(down: str, mid: str, up: str, zero_threshold: float) -> Mapping[str, float]:
    """Return the factor of each block by its name; those up to `zero_threshold` are 0 in parts that have a text."""
    factors: list[float] = []
    for part, text in zip(PART_SIZES, (down, mid, up), strict=True):
        threshold = zero_threshold if text.strip() else 0.0
        factors += [factor if factor > threshold else 0.0 for factor in parse_block_rates(part, text)]
    return MappingProxyType(dict(zip(BLOCKS, factors, strict=True)))


def _example(part: str) -> str:
    curve = "" if part == "mid" else f", as a curve like {'cosine' if part == 'in' else 'sine'}+.2"
    return f"Write {PART_SIZES[part]} numbers{curve}, or single blocks like {part}0-1=0.5."


def _factor(text: str, part: str) -> float:
    try:
        factor = float(text)
    except ValueError:
        raise ValueError(f"{text.strip()!r} is not a number. {_example(part)}") from None
    if not (isfinite(factor) and 0 <= factor <= MAX_WEIGHT):
        raise ValueError(f"{factor:g} is not between 0 and {MAX_WEIGHT:g}. {_example(part)}")
    return factor
