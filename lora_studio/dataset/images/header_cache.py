"""Size and hash of image files, each read once while its time of change and its length stay the same."""

from __future__ import annotations

import os
from functools import lru_cache
from pathlib import Path

from PIL import Image

from lora_studio.dataset.buckets import Size
from lora_studio.dataset.images.decode import ORIENTATION_TAG, file_sha256, pillow_formats

Stamp = tuple[int, int]  # time of the last change in ns, length in bytes

REMEMBERED = 100_000  # files
SIDEWAYS = (5, 6, 7, 8)  # EXIF orientations whose upright image has its sides exchanged
PNG_SIGNATURE = 8  # bytes
PNG_METADATA = (b"eXIf", b"iTXt", b"tEXt", b"zTXt")  # the chunks that may tell an orientation


def stamp_of(path: Path) -> Stamp:
    """What changes when a file does; raises OSError if it is gone."""
    stat = path.stat()
    return stat.st_mtime_ns, stat.st_size


def upright_size(path: Path) -> Size | None:
    """Width and height by the image's header, EXIF orientation honoured; None if there is no readable header.

    Raises OSError if the file is gone.
    """
    return _upright_size(path, stamp_of(path))


def sha256_of(path: Path) -> str:
    """SHA-256 of a file's bytes, in hex; raises OSError if it cannot be read."""
    return _sha256(path, stamp_of(path))


@lru_cache(maxsize=REMEMBERED)
def _upright_size(path: Path, stamp: Stamp) -> Size | None:
    try:
        with Image.open(path, formats=pillow_formats()) as image:
            width, height = image.size
            if image.format == "TIFF":  # Pillow tells its upright size
                return width, height
            # Of a PNG Pillow decodes all pixels to see what stands behind them, which takes a hundred times as long.
            plainly = image.format == "PNG" and not _metadata_follows(path)
            exif = Image.Image.getexif(image) if plainly else image.getexif()
            sideways = exif.get(ORIENTATION_TAG) in SIDEWAYS
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return None
    return (height, width) if sideways else (width, height)


def _metadata_follows(png: Path) -> bool:
    """Whether a PNG has metadata behind its pixels; a chunk is length (4 bytes), name (4), data, sum (4)."""
    with png.open("rb") as file:
        file.seek(PNG_SIGNATURE)
        pixels = False
        while len(start := file.read(8)) == 8:
            length, name = int.from_bytes(start[:4], "big"), start[4:]
            if pixels and name in PNG_METADATA:
                return True
            pixels = pixels or name == b"IDAT"
            file.seek(length + 4, os.SEEK_CUR)
    return False


@lru_cache(maxsize=REMEMBERED)
def _sha256(path: Path, stamp: Stamp) -> str:
    return file_sha256(path)
