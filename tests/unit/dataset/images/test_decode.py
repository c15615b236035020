"""Decoding images, their issues, thumbnails."""

from __future__ import annotations

import hashlib
import shutil
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms, ImageDraw

from lora_studio.dataset.images import decode as images
from lora_studio.dataset.images.decode import decode, find_images, image_info, read_image, thumbnail
from lora_studio.errors import InputError


def scene(size: tuple[int, int] = (640, 560)) -> Image.Image:
    image = Image.new("RGB", size, (30, 120, 200))
    draw = ImageDraw.Draw(image)
    draw.ellipse((20, 30, size[0] // 2, size[1] // 2), fill=(250, 210, 30))
    draw.rectangle((size[0] // 2, size[1] // 2, size[0] - 40, size[1] - 10), fill=(200, 20, 60))
    return image


def codes(path: Path) -> list[str]:
    return [issue.code for issue in image_info(path)[0].issues]


def difference(a: Image.Image, b: Image.Image) -> float:
    assert a.size == b.size
    return float(np.abs(np.asarray(a, dtype=float) - np.asarray(b, dtype=float)).mean())


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp", ".bmp", ".gif", ".tif", ".avif"])
def test_every_format_decodes_to_the_same_image(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    scene().save(path)
    assert difference(read_image(path), scene()) < 3
    info, _ = image_info(path)
    assert (info.width, info.height, info.issues) == (640, 560, [])
    assert info.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture
def heic(tmp_path: Path) -> Path:
    """An image as a phone writes it."""
    pytest.importorskip("pillow_heif").register_heif_opener()
    path = tmp_path / "phone.heic"
    scene().save(path, quality=95)
    return path


def test_decodes_heic_if_its_package_is_installed(heic: Path) -> None:
    assert difference(read_image(heic), scene()) < 3
    info, decoded = image_info(heic)
    assert decoded is not None
    assert (info.width, info.height, decoded.format, info.issues) == (640, 560, "HEIF", [])
    assert codes(heic.rename(heic.with_suffix(".jpg"))) == ["wrong_extension"]


def test_names_the_package_that_heic_needs(heic: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "find_spec", lambda name: None)
    images.pillow_formats.cache_clear()
    try:
        assert find_images(heic.parent) == [heic]
        with pytest.raises(InputError) as error:
            read_image(heic)
    finally:
        images.pillow_formats.cache_clear()
    assert error.value.code == "heif"
    assert "pip install pillow-heif" in error.value.remedy


@pytest.mark.parametrize("suffix", [".jpg", ".tif", ".png", ".webp"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_applied(tmp_path: Path, suffix: str, orientation: int) -> None:
    back = {
        1: None,
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }[orientation]
    stored = scene() if back is None else scene().transpose(back)
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / f"a{suffix}"
    stored.save(path, exif=exif, quality=95)
    info, decoded = image_info(path)
    assert (info.width, info.height) == (640, 560)
    assert decoded is not None
    assert difference(decoded.image, scene()) < 3


def test_transparency_is_composited_on_white(tmp_path: Path) -> None:
    image = Image.new("RGBA", (600, 600), (255, 0, 0, 255))
    image.paste((0, 0, 0, 0), (0, 0, 300, 600))
    image.save(tmp_path / "a.png")
    read = read_image(tmp_path / "a.png")
    assert read.getpixel((10, 10)) == (255, 255, 255)
    assert read.getpixel((500, 10)) == (255, 0, 0)
    assert codes(tmp_path / "a.png") == ["alpha"]


def test_an_opaque_alpha_channel_gives_no_issue(tmp_path: Path) -> None:
    scene().convert("RGBA").save(tmp_path / "a.png")
    assert codes(tmp_path / "a.png") == []


def test_palette_transparency_is_composited_on_white(tmp_path: Path) -> None:
    image = Image.new("P", (600, 600), 0)
    image.putpalette([0, 0, 0, 255, 0, 0])
    image.paste(1, (300, 0, 600, 600))
    image.save(tmp_path / "a.png", transparency=0)
    assert read_image(tmp_path / "a.png").getpixel((1, 1)) == (255, 255, 255)
    assert codes(tmp_path / "a.png") == ["alpha"]


def png_of_16_bits(pixels: np.ndarray) -> bytes:
    """Encode a 16-bit RGB PNG; pixels [H, W, 3]."""
    height, width, _ = pixels.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def test_16_bits_are_scaled_and_not_clipped(tmp_path: Path) -> None:
    grey = np.linspace(0, 65535, 520 * 520).reshape(520, 520).astype(np.uint16)
    Image.fromarray(grey).save(tmp_path / "grey.png")
    (tmp_path / "rgb.png").write_bytes(png_of_16_bits(np.repeat(grey[..., None], 3, axis=2)))
    for name in ("grey.png", "rgb.png"):
        assert np.abs(np.asarray(read_image(tmp_path / name), dtype=float)[..., 1] - grey / 257.0).max() <= 1
        assert codes(tmp_path / name) == ["deep_color"]


def test_cmyk_is_converted(tmp_path: Path) -> None:
    scene().convert("CMYK").save(tmp_path / "a.jpg", quality=95)
    assert difference(read_image(tmp_path / "a.jpg"), scene()) < 5
    assert codes(tmp_path / "a.jpg") == ["cmyk"]


def test_decodes_the_first_frame_of_an_animation(tmp_path: Path) -> None:
    scene().save(tmp_path / "a.gif", save_all=True, append_images=[Image.new("RGB", (640, 560), "black")] * 2)
    assert difference(read_image(tmp_path / "a.gif"), scene()) < 3
    assert codes(tmp_path / "a.gif") == ["animated"]


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((511, 600), ["too_small"]),
        ((512, 512), []),
        ((512, 1024), []),
        ((1025, 512), ["extreme_aspect"]),
        ((200, 900), ["too_small", "extreme_aspect"]),
    ],
)
def test_flags_small_and_extreme_sizes(tmp_path: Path, size: tuple[int, int], expected: list[str]) -> None:
    Image.new("RGB", size, "teal").save(tmp_path / "a.png")
    assert codes(tmp_path / "a.png") == expected


def test_flags_a_wrong_suffix(tmp_path: Path) -> None:
    scene().save(tmp_path / "a.jpg")
    (tmp_path / "a.jpg").rename(tmp_path / "a.png")
    info, image = image_info(tmp_path / "a.png")
    assert [issue.code for issue in info.issues] == ["wrong_extension"]
    assert "JPEG" in info.issues[0].message
    assert ".png" in info.issues[0].message
    assert image is not None


def broken_files(folder: Path) -> list[Path]:
    scene().save(folder / "whole.png")
    scene().save(folder / "whole.jpg")
    for suffix in (".png", ".jpg"):
        data = (folder / f"whole{suffix}").read_bytes()
        (folder / f"torn{suffix}").write_bytes(data[: len(data) // 2])
        (folder / f"whole{suffix}").unlink()
    (folder / "empty.webp").touch()
    (folder / "text.png").write_text("this is not an image")
    (folder / "postscript.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 600 600\n%%EndComments\n")
    return sorted(folder.iterdir())


def test_reports_broken_files_by_name(tmp_path: Path) -> None:
    for path in broken_files(tmp_path):
        with pytest.raises(InputError, match=path.name) as caught:
            read_image(path)
        assert (caught.value.code, bool(caught.value.remedy)) == ("unreadable", True)
        info, image = image_info(path, min_side=64)
        assert image is None
        assert (info.width, info.readable, [issue.code for issue in info.issues]) == (0, False, ["unreadable"])
        assert info.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


def test_reports_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"gone\.png"):
        read_image(tmp_path / "gone.png")
    assert codes(tmp_path / "gone.png") == ["unreadable"]


def test_refuses_a_decompression_bomb_before_decoding_it(tmp_path: Path) -> None:
    side = 10_001
    row = b"\0" * (side // 8 + 2)
    packed = zlib.compressobj(9)
    data = b"".join(packed.compress(row) for _ in range(side)) + packed.flush()

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    bomb = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")
    (tmp_path / "bomb.png").write_bytes(bomb)
    assert len(bomb) < 100_000
    with (
        pytest.warns(Image.DecompressionBombWarning),
        pytest.raises(InputError, match=r"bomb\.png.*10001 x 10001 px"),
    ):
        read_image(tmp_path / "bomb.png")


def test_a_jpeg_is_decoded_at_reduced_size(tmp_path: Path) -> None:
    scene((1600, 1200)).save(tmp_path / "a.jpg")
    decoded = decode(tmp_path / "a.jpg", min_side=64)
    assert decoded.size == (1600, 1200)
    assert decoded.image.size == (200, 150)


def srgb_profile() -> bytes:
    return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def test_an_embedded_profile_is_applied(tmp_path: Path) -> None:
    # sRGB with the primaries of red and blue swapped, under another name.
    swapped = srgb_profile().replace(b"rXYZ", b"tmp.").replace(b"bXYZ", b"rXYZ").replace(b"tmp.", b"bXYZ")
    swapped = swapped.replace("sRGB".encode("utf-16-be"), "odd ".encode("utf-16-be"))
    Image.new("RGB", (600, 600), (10, 200, 60)).save(tmp_path / "a.png", icc_profile=swapped)
    assert read_image(tmp_path / "a.png").getpixel((5, 5)) == pytest.approx((60, 200, 10), abs=2)


def test_ignores_useless_profiles(tmp_path: Path) -> None:
    lab = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
    for profile in (lab, b"no profile", srgb_profile()):
        Image.new("RGB", (600, 600), (10, 200, 30)).save(tmp_path / "a.png", icc_profile=profile)
        assert read_image(tmp_path / "a.png").getpixel((5, 5)) == (10, 200, 30)


def test_finds_images_in_a_folder_and_its_sets(tmp_path: Path) -> None:
    for name in ("b.png", "a.JPG", ".hidden.png", "notes.txt", "10_cat/c.webp", "10_cat/deep/d.png", "other/e.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    found = [str(path.relative_to(tmp_path)) for path in find_images(tmp_path)]
    assert found == ["a.JPG", "b.png", "10_cat/c.webp"]
    with pytest.raises(InputError) as caught:
        find_images(tmp_path / "nowhere")
    assert caught.value.code == "no_folder"


def test_thumbnails_are_named_by_content(tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    scene((1600, 1200)).save(tmp_path / "<img src=x onerror=alert(1)>.jpg")
    source = next(tmp_path.glob("*.jpg"))
    first = thumbnail(source, cache)
    assert first.name == f"{hashlib.sha256(source.read_bytes()).hexdigest()}-256.webp"
    with Image.open(first) as made:
        assert (made.format, made.size) == ("WEBP", (256, 192))
        assert difference(made.convert("RGB"), scene((1600, 1200)).resize((256, 192))) < 6
    assert thumbnail(source, cache, 64).name.endswith("-64.webp")
    before = first.stat().st_mtime_ns
    assert thumbnail(source, cache) == first
    assert first.stat().st_mtime_ns == before
    shutil.rmtree(cache)
    assert thumbnail(source, cache) == first
    assert first.exists()
    assert sorted(path.name for path in cache.iterdir()) == [first.name]


def test_makes_no_thumbnail_of_a_broken_file(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_text("not an image")
    with pytest.raises(InputError, match=r"a\.png"):
        thumbnail(tmp_path / "a.png", tmp_path / "cache")
    assert not list(tmp_path.glob("cache/*"))
