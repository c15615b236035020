"""Flaws that a look at the pixels shows: made pictures of which each has one, and whole ones that have none."""

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


def flaws_of(picture: DecodedImage) -> list[Issue]:
    return quality_issues(picture, downscale(picture.image))


def whole() -> Image.Image:
    return photo(3, SIZE)


def drawing() -> Image.Image:
    """A figure on white with a margin, as icons and cut-outs have."""
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
    ImageDraw.Draw(image).text((20, image.height - 30), "WWW.SOME-GALLERY.EXAMPLE_IMAGES", fill="white", font_size=18)
    return image


MADE: dict[str, tuple[Callable[[], Image.Image], str]] = {
    "a photo": (whole, ""),
    "a drawing on white": (drawing, ""),
    "a drawing on black": (lambda: Image.eval(drawing(), lambda value: 255 - value), ""),
    "a plain colour": (lambda: Image.new("RGB", SIZE, (90, 120, 200)), ""),
    "a photo, slightly soft": (lambda: whole().filter(ImageFilter.GaussianBlur(0.7)), ""),
    "a photo as a fair JPEG": (lambda: saved_as(whole(), "JPEG", 75), ""),
    "a blurred photo": (lambda: whole().filter(ImageFilter.GaussianBlur(4)), "blurred"),
    "a blurred drawing": (lambda: drawing().filter(ImageFilter.GaussianBlur(8)), "blurred"),
    "a dark photo": (lambda: ImageEnhance.Brightness(whole()).enhance(0.2), "dark"),
    "a washed-out photo": (lambda: Image.eval(whole(), lambda value: 205 + value // 6), "bright"),
    "a poor JPEG's pixels": (lambda: saved_as(whole(), "JPEG", 15), "compressed"),
    "a letterbox": (lambda: with_bars(whole(), top=50, bottom=50), "border"),
    "a broad white frame": (lambda: ImageOps.expand(whole(), 90, "white"), "border"),
    "a frame": (lambda: with_bars(whole(), top=20, bottom=20, left=20, right=20), "border"),
    "a bar with letters": (lambda: watermarked(whole()), "bar"),
    "a bar at the left": (lambda: with_bars(whole(), left=60), "bar"),
}


@pytest.mark.parametrize("name", MADE)
def test_each_flaw_is_flagged_and_nothing_else(tmp_path: Path, name: str) -> None:
    make, code = MADE[name]
    found = flaws_of(decode(save(make(), tmp_path / "a.png"), min_side=SIDE))
    assert [issue.code for issue in found] == ([code] if code else [])
    assert all(len(issue.message) > 30 for issue in found)


@pytest.mark.parametrize(("quality", "codes"), [(20, ["compressed"]), (45, ["compressed"]), (60, []), (95, [])])
def test_a_jpeg_tells_by_its_tables(tmp_path: Path, quality: int, codes: list[str]) -> None:
    photo(3, (1000, 800)).save(tmp_path / "a.jpg", quality=quality)
    picture = decode(tmp_path / "a.jpg", min_side=SIDE)
    assert picture.image.width < picture.size[0]
    assert [issue.code for issue in flaws_of(picture)] == codes


@pytest.mark.parametrize("quality", [20, 30, 50, 75, 92])
def test_the_quality_that_a_jpeg_was_saved_with(quality: int) -> None:
    file = io.BytesIO()
    Image.new("RGB", (16, 16)).save(file, "JPEG", quality=quality)
    assert jpeg_quality(tuple(Image.open(file).quantization[0])) == pytest.approx(quality, abs=1.5)


def test_the_examples_have_no_flaws() -> None:
    found = {path.name: flaws_of(decode(path, min_side=SIDE)) for path in sorted(EXAMPLE_IMAGES.glob("*.png"))[::2]}
    assert len(found) > 10
    assert not any(found.values())


@given(width=st.integers(1, 40), height=st.integers(1, 40), seed=st.integers(0, 99))
def test_tiny_pictures_do_no_harm(width: int, height: int, seed: int) -> None:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    picture = DecodedImage(Image.fromarray(pixels), (width, height), "PNG", False, False, False, False)
    assert {issue.code for issue in flaws_of(picture)} <= {"blurred", "dark", "bright", "bar", "border"}
