"""Build docs/events.md from the models in lora_studio/events.py: `python tools/build_event_docs.py`."""

import sys
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, get_args, get_origin

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "events.md"
JSON_TYPES = {int: "integer", float: "number", str: "string", bool: "boolean", NoneType: "null"}
INTRODUCTION = """# Events

Every job (tagging, training, sweep) appends its events to `events.jsonl` in its folder, one JSON object per line:

```
{"event": "step", "time": 1767225600.0, "step": 1, "total": 1200, "epoch": 1, "loss": 0.1234}
```

`event` is the name, `time` the seconds since 1970. Readers should skip events and fields that
they do not know: later versions may add some. Numbers that are not finite are written as null.

This page is generated from `lora_studio/events.py` by `tools/build_event_docs.py`.
"""

sys.path.insert(0, str(ROOT))

from lora_studio.events import EVENTS, Event  # noqa: E402


def main() -> None:
    PAGE.write_text(events_page(), "utf-8")


def events_page() -> str:
    return "\n".join([INTRODUCTION, *(event_section(model) for model in EVENTS.values())])


def event_section(model: type[Event]) -> str:
    table = ["| field | type | description |", "|---|---|---|"]
    for name, field in model.model_fields.items():
        if name != "time":
            kind = json_type(field.annotation) + ("" if field.is_required() else ", optional")
            table.append(f"| `{name}` | {kind} | {field.description} |")
    return "\n".join([f"## {model.name}", "", " ".join((model.__doc__ or "").split()), "", *table, ""])


def json_type(annotation: Any) -> str:
    """Return a Python type as the types of JSON."""
    if isinstance(annotation, UnionType):
        return " or ".join(map(json_type, get_args(annotation)))
    if get_origin(annotation) is Literal:
        return "string"
    if get_origin(annotation) is list:
        return f"array of {json_type(get_args(annotation)[0])}"
    if get_origin(annotation) is tuple:
        return f"[{', '.join(map(json_type, get_args(annotation)))}]"
    return JSON_TYPES[annotation]


if __name__ == "__main__":
    main()
