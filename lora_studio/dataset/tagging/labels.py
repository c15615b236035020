"""The labels of a tagger, as tags of a caption."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import NamedTuple

from lora_studio.errors import InputError

TAGS_FILE = "selected_tags.csv"
WEIGHTS_FILE = "model.safetensors"

GENERAL, CHARACTER = 0, 4  # categories of selected_tags.csv; 9 are ratings, which are of no use in captions

# Emoticons keep their underscores: these do not separate words.
_FACES = "0_0 (o)_(o) +_+ +_- ._. <o>_<o> <|>_<|> =_= >_< 3_3 6_9 >_o @_@ ^_^ o_o u_u x_x |_| ||_||"
KAOMOJI = frozenset(_FACES.split())


class Label(NamedTuple):
    """A tag as captions write it, and its category."""

    name: str
    category: int


def read_labels(file: Path) -> tuple[Label, ...]:
    """Read selected_tags.csv, one row per output; raises InputError if the table cannot be read."""
    try:
        with file.open(encoding="utf-8", newline="") as table:
            return tuple(Label(caption_tag(row["name"]), int(row["category"])) for row in csv.DictReader(table))
    except (OSError, ValueError, KeyError, TypeError, csv.Error) as error:
        raise InputError(
            f"{file} cannot be read: {error!r}.",
            "It needs the columns name and category; download it again.",
            code="tagger_broken",
        ) from error


def caption_tag(name: str) -> str:
    """Return a tag with spaces instead of underscores, as SDXL base models expect; kaomoji are unchanged."""
    return name if name in KAOMOJI else name.replace("_", " ")
