"""Quality issues: generated images with one issue each, and good ones without any."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageDraw, ImageEnhance, ImageFilter, ImageOps

from lora_studio.dataset.images.decode import DecodedImage, Issue, decode
from lora_studio.dataset.quality import SIDE, downscale, jpeg_quality, quality_issues
from lora_studio.example import EXAMPLE_IMAGES
from tests.support.scenes import photo, save, saved_as

SIZE = (480, 400)


def issues_of(image_file: DecodedImage) -> list[Issue]:
    return quality_issues(image_file, downscale(image_file.image))


def good_photo() -> Image.Image:
    return photo(3, SIZE)


def drawing() -> Image.Image:
    """A figure on white with a margin, like icons and cut-outs."""
    image = Image.new("RGB", SIZE, "white")
    draw = ImageDraw.Draw(image)
    draw.ellipse((130, 60, 340, 340), fill=(190, 60, 60), outline="black", width=6)
    draw.rectangle((210, 40, 250, 200), fill="black")
    return image


def with_bars(image: Image.Image, **sides: int) -> Image.Image:
    draw = ImageDraw.Draw(image := image.copy())
    width, height = image.size
    boxes = {
        "top": lambda size: (0, 0, width, size),
        "bottom": lambda size: (0, height - size, width, height),
        "left": lambda size: (0, 0, size, height),
        "right": lambda size: (width - size, 0, width, height),
    }
    for side, size in sides.items():
        draw.rectangle(boxes[side](size), fill=(12, 12, 12))
    return image


def watermarked(image: Image.Image) -> Image.Image:
    image = with_bars(image, bottom=40)
    ImageDraw.Draw(image).text((20, image.height - 30), "WWW.SOME-GALLERY.EXAMPLE", fill="white", font_size=18)
    return image


CASES: dict[str, tuple[Callable[[], Image.Image], str]] = {
    "a photo": (good_photo, ""),
    "a drawing on white": (drawing, ""),
    "a drawing on black": (lambda: Image.eval(drawing(), lambda value: 255 - value), ""),
    "a plain colour": (lambda: Image.new("RGB", SIZE, (90, 120, 200)), ""),
    "a photo, slightly soft": (lambda: good_photo().filter(ImageFilter.GaussianBlur(0.7)), ""),
    "a photo as a fair JPEG": (lambda: saved_as(good_photo(), "JPEG", 75), ""),
    "a blurred photo": (lambda: good_photo().filter(ImageFilter.GaussianBlur(4)), "blurred"),
    "a blurred drawing": (lambda: drawing().filter(ImageFilter.GaussianBlur(8)), "blurred"),
    "a dark photo": (lambda: ImageEnhance.Brightness(good_photo()).enhance(0.2), "dark"),
    "a washed-out photo": (lambda: Image.eval(good_photo(), lambda value: 205 + value // 6), "bright"),
    "a poor JPEG's pixels": (lambda: saved_as(good_photo(), "JPEG", 15), "compressed"),
    "a letterbox": (lambda: with_bars(good_photo(), top=50, bottom=50), "border"),
    "a broad white frame": (lambda: ImageOps.expand(good_photo(), 90, "white"), "border"),
    "a frame": (lambda: with_bars(good_photo(), top=20, bottom=20, left=20, right=20), "border"),
    "a bar with letters": (lambda: watermarked(good_photo()), "bar"),
    "a bar at the left": (lambda: with_bars(good_photo(), left=60), "bar"),
}


@pytest.mark.parametrize("name", CASES)
def test_flags_the_one_issue_of_each_image(tmp_path: Path, name: str) -> None:
    make, code = CASES[name]
    found = issues_of(decode(save(make(), tmp_path / "a.png"), min_side=SIDE))
    assert [issue.code for issue in found] == ([code] if code else [])
    assert all(len(issue.message) > 30 for issue in found)


@pytest.mark.parametrize(("quality", "codes"), [(20, ["compressed"]), (45, ["compressed"]), (60, []), (95, [])])
def test_flags_low_jpeg_quality_by_the_quantization_table(tmp_path: Path, quality: int, codes: list[str]) -> None:
    photo(3, (1000, 800)).save(tmp_path / "a.jpg", quality=quality)
    image_file = decode(tmp_path / "a.jpg", min_side=SIDE)
    assert image_file.image.width < image_file.size[0]
    assert [issue.code for issue in issues_of(image_file)] == codes


@pytest.mark.parametrize("quality", [20, 30, 50, 75, 92])
def test_estimates_the_quality_of_a_jpeg(quality: int) -> None:
    file = io.BytesIO()
    Image.new("RGB", (16, 16)).save(file, "JPEG", quality=quality)
    assert jpeg_quality(tuple(Image.open(file).quantization[0])) == pytest.approx(quality, abs=1.5)


def test_flags_no_example_image() -> None:
    found = {path.name: issues_of(decode(path, min_side=SIDE)) for path in sorted(EXAMPLE_IMAGES.glob("*.png"))[::2]}
    assert len(found) > 10
    assert not any(found.values())


@given(width=st.integers(1, 40), height=st.integers(1, 40), seed=st.integers(0, 99))
def test_accepts_tiny_images(width: int, height: int, seed: int) -> None:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    image_file = DecodedImage(Image.fromarray(pixels), (width, height), "PNG", False, False, False, False)
    assert {issue.code for issue in issues_of(image_file)} <= {"blurred", "dark", "bright", "bar", "border"}
