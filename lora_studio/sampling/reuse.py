"""Cells that exist already, in a sweep's own folder or in another sweep of the project, found by their content key.

The key is a hash of everything that determines the pixels, saved in each cell's PNG file. Names are not part of it, so
a renamed LoRA, or a checkpoint that equals the final file, shares its cells.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from PIL.Image import Image

from lora_studio.models import comfy_workflow
from lora_studio.models.png_info import load_png, read_parameters, read_text, save_png
from lora_studio.workspace.job_folder import JobFolder, job_folders

KEYWORD = "lora_studio_cell"


def content_key(determinants: Mapping[str, Any]) -> str:
    """Return the key of a cell, as hex: the SHA-256 of `determinants`, which are values of JSON."""
    text = json.dumps(determinants, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


@dataclass(frozen=True)
class CellTexts:
    """What a cell's PNG file says: A1111's infotext, ComfyUI's workflow as JSON, and the content key."""

    infotext: str
    workflow: str
    key: str


class CellCache:
    """The cells of one sweep, and those of the sweeps beside it."""

    def __init__(self, folder: JobFolder) -> None:
        self.folder = folder

    def save(self, image: Image, path: Path, texts: CellTexts) -> None:
        """Write a cell with its texts."""
        save_png(image, path, texts.infotext, **{comfy_workflow.KEYWORD: texts.workflow, KEYWORD: texts.key})

    def restore(self, path: Path, texts: CellTexts) -> bool:
        """Return whether the cell `path` exists with this key; one of another sweep is copied there.

        A damaged file, or one that was drawn with other settings, does not count.
        """
        if read_text(path, KEYWORD) == texts.key and read_parameters(path) is not None:
            return True
        for source in self._others.get(texts.key, []):
            if (image := load_png(source)) is not None:
                self.save(image, path, texts)
                return True
        return False

    @cached_property
    def _others(self) -> dict[str, list[Path]]:
        """The cells of the other sweeps of the project by key."""
        own = self.folder.path.resolve()
        found: dict[str, list[Path]] = {}
        for sweep in job_folders(own.parent):
            if sweep.path != own:
                for file in sorted((sweep.path / "cells").glob("*.png")):
                    if (key := read_text(file, KEYWORD)) is not None:
                        found.setdefault(key, []).append(file)
        return found
