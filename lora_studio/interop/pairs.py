"""KEY=VALUE arguments of networks, optimizers and schedulers, as sd-scripts and kohya_ss write them."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Mapping
from typing import Any

from lora_studio.settings.sections.optimization import ARGUMENT_SEPARATOR, unquoted

_WORDS = {"true": "True", "false": "False", "none": "None"}


def parse_pairs(value: Any) -> dict[str, str]:
    """Return the values by name of a list of KEY=VALUE, of one text with several of them, or of a mapping.

    Quotes around a pair and around a value are removed; an entry without `=` has the value "".
    """
    if isinstance(value, Mapping):
        return {str(name): str(content) for name, content in value.items()}
    if isinstance(value, str):
        value = ARGUMENT_SEPARATOR.split(value.strip(" ,\n"))
    found = {}
    for text in value if isinstance(value, Iterable) else ():
        name, _, content = unquoted(str(text).strip()).partition("=")
        if name.strip():
            found[name.strip()] = unquoted(content.strip())
    return found


def format_pairs(pairs: Mapping[str, str]) -> list[str]:
    """Return KEY=VALUE texts that sd-scripts reads: words like true become Python's."""
    return [f"{name}={_WORDS.get(value.lower(), value)}" for name, value in pairs.items()]


def same_value(first: str, second: str) -> bool:
    """Return True if two texts are the same Python value, like 1e-2 and 0.01."""
    return bool(_value(first) == _value(second))


def is_true(text: str) -> bool:
    """Return True if a text is a Python value that counts as true."""
    return bool(_value(text))


def format_number(value: float) -> str:
    """Return the shortest text of a number that is read back to the same number."""
    short = f"{value:g}"
    return short if float(short) == value else repr(value)


def _value(text: str) -> Any:
    try:
        return ast.literal_eval(_WORDS.get(text.lower(), text))
    except (ValueError, SyntaxError):
        return text
