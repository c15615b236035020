"""The tags that anime bases were trained on, from the taggers that are on this machine; nothing is downloaded."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

from huggingface_hub import try_to_load_from_cache

from lora_studio.dataset.tagging.catalogue import CATALOGUE
from lora_studio.dataset.tagging.labels import TAGS_FILE, read_labels
from lora_studio.errors import InputError


@lru_cache(maxsize=1)
def known_tags() -> frozenset[str]:
    """Return the tags of all WD taggers that were downloaded, with spaces; empty if none was."""
    found: set[str] = set()
    for entry in CATALOGUE.values():
        if not isinstance(entry.location, str) or entry.output_kind != "tags":
            continue
        file = try_to_load_from_cache(entry.location, TAGS_FILE)
        try:
            found |= {label.name.lower() for label in read_labels(Path(file))} if isinstance(file, str) else set()
        except InputError:
            continue
    return frozenset(found)
