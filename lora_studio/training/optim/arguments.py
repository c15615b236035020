"""Read the settings that name a class and its arguments: optimizers and learning rate schedulers."""

from __future__ import annotations

import ast
from collections.abc import Iterable
from typing import Any

from lora_studio.errors import ConfigError


def parse_arguments(setting: str, texts: Iterable[str]) -> dict[str, Any]:
    """Return the Python values of KEY=VALUE texts by name; raise ConfigError with all that cannot be read."""
    found, wrong = {}, []
    for text in texts:
        name, _, value = text.partition("=")
        try:
            found[name] = ast.literal_eval({"true": "True", "false": "False", "none": "None"}.get(value, value))
        except (ValueError, SyntaxError):
            wrong.append(f"{setting}: the value of {text} cannot be read. Write a number, True, False or 0.9,0.99.")
    if wrong:
        raise ConfigError(wrong)
    return found
