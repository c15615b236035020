"""The settings of kohya_ss' 19 SDXL presets, as arguments of sd-scripts, and sd-scripts' own arguments.

`tests/data/kohya_presets.json` has the arguments that have an effect, by preset (kohya_ss 45088f0, `presets/lora/`),
`tests/data/sd_scripts_arguments.json` the types of all that sdxl_train_network.py knows (sd-scripts 48d368f).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

DATA = Path(__file__).parents[1] / "data"
OPTIONS: dict[str, dict[str, Any]] = json.loads((DATA / "kohya_presets.json").read_text("utf-8"))
ARGUMENT_TYPES: dict[str, dict[str, Any]] = json.loads((DATA / "sd_scripts_arguments.json").read_text("utf-8"))
_TYPES = {"int": int, "float": (int, float), "str": str, "bool": bool, "number": (int, float)}


def argument_errors(arguments: dict[str, Any]) -> list[str]:
    """Return the arguments that sdxl_train_network.py would not know, or whose value has another type."""
    found = []
    for name, value in arguments.items():
        known = ARGUMENT_TYPES.get(name)
        if known is None:
            found.append(f"{name} is unknown")
            continue
        values = value if known.get("many") else [value]
        right = isinstance(values, list) and all(isinstance(item, _TYPES[known["type"]]) for item in values)
        if not right or not all(item in known.get("choices", [item]) for item in values):
            found.append(f"{name} is {value!r}")
    return found
