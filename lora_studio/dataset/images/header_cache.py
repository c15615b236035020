"""Size and hash of image files, mostly without decoding them, cached until the file changes."""

from __future__ import annotations

import io
import os
from contextlib import suppress
from pathlib import Path

from PIL import Image

from lora_studio.dataset.buckets import Size
from lora_studio.dataset.images.decode import (
    MAX_BYTES_HERE,
    MAX_PIXELS,
    ORIENTATION_TAG,
    decode,
    file_sha256,
    pillow_formats,
)
from lora_studio.errors import InputError
from lora_studio.files import cached_by_stamp

MAX_CACHED = 100_000  # files
SWAPPED_ORIENTATIONS = (5, 6, 7, 8)  # EXIF orientations whose upright image has width and height swapped
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
PNG_METADATA = (b"eXIf", b"iTXt", b"tEXt", b"zTXt")  # chunks that may hold the orientation
MIN_DECODED_SIDE = 64  # px: a JPEG is decoded at a reduced size, which is faster


@cached_by_stamp(maxsize=MAX_CACHED)
def upright_size(path: Path) -> Size | None:
    """Return width and height by the image's header and EXIF orientation; None if it is unreadable or too large.

    A file above MAX_BYTES_HERE is not opened; `readable_size` decodes it within limits.

    Raises OSError if the file does not exist.
    """
    if path.stat().st_size > MAX_BYTES_HERE:
        return None
    try:
        with Image.open(path, formats=pillow_formats()) as image:
            width, height = image.size
            if width * height > MAX_PIXELS:
                return None
            if image.format == "TIFF":  # Pillow returns its upright size
                return width, height
            exif = _png_exif(path, image) if image.format == "PNG" else image.getexif()
            swapped = exif.get(ORIENTATION_TAG) in SWAPPED_ORIENTATIONS
    except Exception:  # broken headers and EXIF raise anything from SyntaxError to struct.error
        return None
    return (height, width) if swapped else (width, height)


def readable_size(path: Path, *, decoded: bool = False) -> Size:
    """Return an image's upright size by its header or, if that cannot be read, by decoding the image.

    With `decoded` the header is not trusted. Raises InputError if the image cannot be decoded, OSError if the file does
    not exist.
    """
    found = (None if decoded else upright_size(path)) or _decoded_size(path)
    if isinstance(found, InputError):
        raise InputError(found.message, found.remedy, code=found.code)
    return found


@cached_by_stamp(maxsize=MAX_CACHED)
def _decoded_size(path: Path) -> Size | InputError:
    try:
        return decode(path, min_side=MIN_DECODED_SIDE).size
    except InputError as error:
        return error


@cached_by_stamp(maxsize=MAX_CACHED)
def is_transparent(path: Path) -> bool:
    """Return whether any pixel of an image is transparent; an image without an alpha channel is not decoded.

    Raises InputError if the image cannot be decoded, OSError if the file does not exist.
    """
    if path.stat().st_size <= MAX_BYTES_HERE:
        with suppress(Exception), Image.open(path, formats=pillow_formats()) as image:  # decode reports what is wrong
            if not image.has_transparency_data:
                return False
    return decode(path, min_side=MIN_DECODED_SIDE).transparent


@cached_by_stamp(maxsize=MAX_CACHED)
def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file's bytes in hex; raises OSError if it cannot be read."""
    return file_sha256(path)


def _png_exif(path: Path, image: Image.Image) -> Image.Exif:
    """Return a PNG's EXIF. For metadata behind the pixels Pillow would decode these, a hundred times as slow."""
    kept, behind = [PNG_SIGNATURE], False
    with path.open("rb") as file:
        file.seek(len(PNG_SIGNATURE))
        pixels = False
        while len(start := file.read(8)) == 8:  # a chunk is length (4 bytes), name (4), data, CRC (4)
            length, name = int.from_bytes(start[:4], "big"), start[4:]
            if name in (b"IHDR", b"IEND", *PNG_METADATA):
                kept.append(start + file.read(length + 4))
                behind = behind or (pixels and name in PNG_METADATA)
            else:
                pixels = pixels or name == b"IDAT"
                file.seek(length + 4, os.SEEK_CUR)
    if not behind:
        return Image.Image.getexif(image)
    with Image.open(io.BytesIO(b"".join(kept)), formats=["PNG"]) as metadata:
        return Image.Image.getexif(metadata)
