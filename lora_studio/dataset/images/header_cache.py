"""Size and hash of image files without decoding them, cached until the file changes."""

from __future__ import annotations

import os
from pathlib import Path

from PIL import Image

from lora_studio.dataset.buckets import Size
from lora_studio.dataset.images.decode import ORIENTATION_TAG, file_sha256, pillow_formats
from lora_studio.files import cached_by_stamp

MAX_CACHED = 100_000  # files
SWAPPED_ORIENTATIONS = (5, 6, 7, 8)  # EXIF orientations whose upright image has width and height swapped
PNG_SIGNATURE = 8  # bytes
PNG_METADATA = (b"eXIf", b"iTXt", b"tEXt", b"zTXt")  # chunks that may hold the orientation


@cached_by_stamp(maxsize=MAX_CACHED)
def upright_size(path: Path) -> Size | None:
    """Return width and height by the image's header and EXIF orientation; None if there is no readable header.

    Raises OSError if the file does not exist.
    """
    try:
        with Image.open(path, formats=pillow_formats()) as image:
            width, height = image.size
            if image.format == "TIFF":  # Pillow returns its upright size
                return width, height
            # For the metadata behind a PNG's pixels Pillow decodes all of them, which takes a hundred times as long.
            plainly = image.format == "PNG" and not _metadata_follows(path)
            exif = Image.Image.getexif(image) if plainly else image.getexif()
            swapped = exif.get(ORIENTATION_TAG) in SWAPPED_ORIENTATIONS
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return None
    return (height, width) if swapped else (width, height)


@cached_by_stamp(maxsize=MAX_CACHED)
def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file's bytes in hex; raises OSError if it cannot be read."""
    return file_sha256(path)


def _metadata_follows(png: Path) -> bool:
    """Return whether a PNG has metadata behind its pixels; a chunk is length (4 bytes), name (4), data, CRC (4)."""
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
