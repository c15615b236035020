"""Counts how often image files are decoded and hashed."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

from PIL import ImageFile


@dataclass
class ImageReads:
    """How often the pixels of each file were decoded, and its bytes were hashed."""

    decoded: Counter[Path] = field(default_factory=Counter)
    hashed: Counter[Path] = field(default_factory=Counter)


@contextmanager
def counted_image_reads() -> Iterator[ImageReads]:
    """Count in the block. Pillow must decode itself, which it does for PNG and JPEG."""
    found = ImageReads()
    load, file_digest = ImageFile.ImageFile.load, hashlib.file_digest

    def counted_load(image: ImageFile.ImageFile) -> Any:
        if image.tile:  # it is empty once the pixels are decoded
            found.decoded[Path(str(image.filename))] += 1
        return load(image)

    def counted_digest(file: Any, *arguments: Any) -> Any:
        found.hashed[Path(file.name)] += 1
        return file_digest(file, *arguments)

    with (
        mock.patch.object(ImageFile.ImageFile, "load", counted_load),
        mock.patch.object(hashlib, "file_digest", counted_digest),
    ):
        yield found
