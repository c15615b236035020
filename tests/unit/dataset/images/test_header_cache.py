"""Sizes and hashes of image files without decoding them."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest
from PIL import Image

from lora_studio.dataset.images.decode import image_info
from lora_studio.dataset.images.header_cache import is_transparent, readable_size, sha256_of, upright_size
from lora_studio.errors import InputError

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


@pytest.mark.parametrize("behind", [False, True])
def test_does_not_decode_a_png_for_its_size(tmp_path: Path, behind: bool) -> None:
    """Also if its EXIF is behind its pixels."""
    path = tmp_path / "a.png"
    save(path, orientation=6)
    if behind:
        move_exif_back(path)
    data = path.read_bytes()
    pixels = data.index(b"IDAT") + 4
    path.write_bytes(data[:pixels] + bytes(20) + data[pixels + 20 :])
    assert not image_info(path, min_side=32)[0].readable
    assert upright_size(path) == (64, 96)
    assert readable_size(path) == (64, 96)
    with pytest.raises(InputError) as caught:
        readable_size(path, decoded=True)
    assert caught.value.code == "unreadable"


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_broken_exif_does_not_make_an_image_unreadable(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    Image.new("RGB", (96, 64)).save(path, exif=b"Exif\0\0MM\0*\0\0\0\x08\xff\xff")
    assert image_info(path)[0].readable
    assert readable_size(path) == (96, 64)


def test_an_image_above_the_limit_of_pixels_has_no_size(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    Image.new("1", (20_000, 6_000)).save(path)
    with pytest.warns(Image.DecompressionBombWarning):
        assert upright_size(path) is None
    with pytest.warns(Image.DecompressionBombWarning), pytest.raises(InputError, match="20000 x 6000 px"):
        readable_size(path)


@pytest.mark.parametrize("suffix", [".png", ".webp", ".gif", ".tif"])
@pytest.mark.parametrize("alpha", [0, 255])
def test_transparency_is_that_of_the_decoded_image(tmp_path: Path, suffix: str, alpha: int) -> None:
    path = tmp_path / f"a{suffix}"
    Image.new("RGBA", (16, 16), (200, 0, 0, alpha)).save(path)
    info, _ = image_info(path)
    assert is_transparent(path) is (alpha == 0)
    assert is_transparent(path) is any(issue.code == "alpha" for issue in info.issues)
    Image.new("RGB", (16, 16)).save(path)
    assert not is_transparent(path)


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
