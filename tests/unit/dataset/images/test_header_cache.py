"""Sizes and hashes of image files without decoding them."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest
from PIL import Image

from lora_studio.dataset.images.decode import image_info
from lora_studio.dataset.images.header_cache import sha256_of, upright_size

SUFFIXES = (".jpg", ".png", ".webp", ".tif", ".avif", ".bmp", ".gif")


def save(path: Path, orientation: int = 1) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.linear_gradient("L").resize((96, 64)).convert("RGB").save(path, exif=exif)


def move_exif_back(path: Path) -> None:
    """Move a PNG's EXIF chunk behind its pixels, where some programs write it."""
    data = path.read_bytes()
    start = data.index(b"eXIf") - 4
    chunk = data[start : start + 12 + int.from_bytes(data[start : start + 4], "big")]
    end = data.rindex(b"IEND") - 4
    path.write_bytes(data[:start] + data[start + len(chunk) : end] + chunk + data[end:])


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
@pytest.mark.parametrize("suffix", SUFFIXES)
def test_the_header_size_is_that_of_the_decoded_image(tmp_path: Path, suffix: str, orientation: int) -> None:
    path = tmp_path / f"a{suffix}"
    save(path, orientation)
    info, _ = image_info(path, min_side=32)
    assert upright_size(path) == (info.width, info.height)
    if suffix not in (".bmp", ".gif"):  # they have no EXIF
        assert upright_size(path) == ((64, 96) if orientation > 4 else (96, 64))


def test_reads_the_orientation_of_a_png_behind_its_pixels(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    save(path, orientation=6)
    move_exif_back(path)
    assert path.read_bytes().index(b"eXIf") > path.read_bytes().index(b"IDAT")
    assert upright_size(path) == (64, 96)


def test_does_not_decode_a_png_without_metadata_behind_its_pixels(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    save(path)
    data = path.read_bytes()
    pixels = data.index(b"IDAT") + 4
    path.write_bytes(data[:pixels] + bytes(20) + data[pixels + 20 :])
    assert not image_info(path, min_side=32)[0].readable
    assert upright_size(path) == (96, 64)


@pytest.mark.parametrize("content", [b"", b"not an image", b"\x89PNG\r\n\x1a\n"])
def test_returns_no_size_for_a_file_that_is_not_an_image(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.png").write_bytes(content)
    assert upright_size(tmp_path / "a.png") is None


def test_reads_a_changed_file_again(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    save(path)
    assert upright_size(path) == (96, 64)
    before = sha256_of(path)
    Image.new("RGB", (8, 9)).save(path)
    os.utime(path, (1, 1))
    assert upright_size(path) == (8, 9)
    assert sha256_of(path) == hashlib.sha256(path.read_bytes()).hexdigest() != before
