"""The sheets of test images in tests/data/pack: emoji that no model of the embedded pack was trained on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from PIL import Image

SHEETS = Path(__file__).parents[1] / "data" / "pack"
SIDE = 128  # px, of an image in a sheet
Words = list[dict[str, Any]]


def load_sheet(name: str) -> tuple[list[Image.Image], Words]:
    """Load the images of a sheet with their label, subgroup, tags and colours."""
    with Image.open(SHEETS / f"{name}.webp") as image:
        whole = image.convert("RGB")
    boxes = [(x, y) for y in range(0, whole.height, SIDE) for x in range(0, whole.width, SIDE)]
    words = json.loads((SHEETS / f"{name}.json").read_text("utf-8"))
    return [whole.crop((x, y, x + SIDE, y + SIDE)) for x, y in boxes], words
