"""Lists of numbers written with ranges, such as `0, 0.7:1.2:0.1`."""

from __future__ import annotations

from decimal import Decimal, InvalidOperation
from typing import Any

from lora_studio.settings.declare import split_commas

MAX_VALUES = 1000


def expand_ranges(value: Any) -> Any:
    """Return the parts of a text between commas with ranges expanded, and any other value unchanged.

    A range is `first:last` in steps of 1, or `first:last:step`; it has `last` if a whole number of steps leads there.
    Numbers are added as decimals, so that 0:1:0.1 has 0.3 and not 0.30000000000000004. Parts without a colon stay as
    they are. Raises ValueError for a range that is not of numbers, never ends or has more than 1000 values.
    """
    parts = split_commas(value)
    if not isinstance(value, str) or ":" not in value:
        return parts
    return [number for part in parts for number in (_expand(part) if ":" in part else [part])]


def _expand(text: str) -> list[str]:
    try:
        first, last, *steps = [Decimal(part.strip()) for part in text.split(":")]
        step = steps.pop() if steps else Decimal(1)
        count = (last - first) / step
    except (InvalidOperation, ArithmeticError, ValueError) as error:
        raise ValueError(_message(text)) from error
    if steps or not count.is_finite() or count < 0:
        raise ValueError(_message(text))
    if count >= MAX_VALUES:
        raise ValueError(f"has more than {MAX_VALUES} values in the range {text}: take larger steps")
    return [f"{(first + number * step).normalize():f}" for number in range(int(count) + 1)]


def _message(text: str) -> str:
    return f"has the range {text!r}, which is not first:last or first:last:step, like 0:1.4:0.2"
