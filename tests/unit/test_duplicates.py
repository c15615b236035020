"""Finding copies, and telling them from pictures that are only alike."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from lora_studio.dataset.candidates import candidate_pairs
from lora_studio.dataset.duplicates import DuplicateGroup, DuplicateKind
from lora_studio.dataset.fingerprints import Fingerprint, fingerprint
from lora_studio.dataset.scan import scan
from tests.scenes import CHANGES, photo, resized, save


def groups(folder: Path) -> list[DuplicateGroup]:
    return scan(folder).duplicate_groups


def found(folder: Path) -> dict[str, set[str]]:
    return {group.keep.name: {path.name for path in group.reject} for group in groups(folder)}


@pytest.mark.parametrize("change", CHANGES)
def test_copies_of_photos_are_found_and_no_others(tmp_path: Path, change: str) -> None:
    for seed in range(3):
        save(photo(seed), tmp_path / f"{seed}.png")
        save(CHANGES[change](photo(seed)), tmp_path / f"copy of {seed}.png")
    pairs = {frozenset((group.keep.name, path.name)) for group in groups(tmp_path) for path in group.reject}
    assert pairs == {frozenset((f"{seed}.png", f"copy of {seed}.png")) for seed in range(3)}


def test_identical_files_and_identical_pixels_are_exact(tmp_path: Path) -> None:
    save(photo(1), tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes((tmp_path / "a.png").read_bytes())
    save(photo(1), tmp_path / "a copy.bmp")
    exact = {path.name: reason for group in groups(tmp_path) for path, reason in _rejects(group)}
    assert {group.kind for group in groups(tmp_path)} == {DuplicateKind.EXACT}
    assert exact == {"b.png": "identical file", "a copy.bmp": "identical pixels"}


def _rejects(group: DuplicateGroup) -> list[tuple[Path, str]]:
    return list(zip(group.reject, group.reasons, strict=True))


def test_an_upright_copy_of_a_turned_photo(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    photo(2).transpose(Image.Transpose.ROTATE_90).save(tmp_path / "turned.jpg", exif=exif, quality=95)
    save(photo(2), tmp_path / "upright.png")
    assert found(tmp_path) == {"upright.png": {"turned.jpg"}}


def test_the_largest_is_kept_then_the_sharpest(tmp_path: Path) -> None:
    save(resized(photo(3), 0.8), tmp_path / "small.png")
    save(photo(3), tmp_path / "whole.png")
    save(resized(resized(photo(3), 0.3), 1 / 0.3), tmp_path / "soft.png")
    assert found(tmp_path) == {"whole.png": {"small.png", "soft.png"}}


def test_a_lossless_original_is_kept_before_a_larger_jpeg(tmp_path: Path) -> None:
    drawing = Image.new("RGB", (600, 600), "white")
    ImageDraw.Draw(drawing).ellipse((100, 150, 400, 500), fill="black")
    ImageDraw.Draw(drawing).rectangle((300, 60, 520, 240), fill="black")
    save(drawing, tmp_path / "drawn.png")
    drawing.save(tmp_path / "a.jpg", quality=100)
    assert (tmp_path / "a.jpg").stat().st_size > (tmp_path / "drawn.png").stat().st_size
    assert found(tmp_path) == {"drawn.png": {"a.jpg"}}


def test_of_equals_the_one_with_a_caption_then_the_shorter_name_is_kept(tmp_path: Path) -> None:
    for name in ("hero.png", "hero (1).png", "hero copy.png"):
        save(photo(4), tmp_path / name)
    assert list(found(tmp_path)) == ["hero.png"]
    (tmp_path / "hero copy.txt").write_text("ohwx")
    assert list(found(tmp_path)) == ["hero copy.png"]


@pytest.mark.parametrize(
    ("change", "reasons"),
    [
        ("mirrored", {"mirrored copy"}),
        ("resized to 50%", {"smaller copy"}),
        ("10% cropped", {"cropped copy"}),
        ("brightened 15%", {"brightened copy", "darkened copy"}),  # which of the two is the copy, nobody can tell
        ("JPEG 60", {"re-encoded copy"}),
    ],
)
def test_reasons_say_what_was_done(tmp_path: Path, change: str, reasons: set[str]) -> None:
    save(photo(5), tmp_path / "whole.png")
    save(CHANGES[change](photo(5)), tmp_path / "changed.png")
    (group,) = groups(tmp_path)
    assert group.kind is DuplicateKind.NEAR
    assert set(group.reasons) <= reasons


def figure(arm: int, size: int = 600) -> Image.Image:
    """One character in several poses: what a good dataset holds."""
    image = Image.new("RGB", (size, size), (235, 235, 240))
    draw = ImageDraw.Draw(image)
    draw.ellipse((230, 80, 370, 220), fill=(240, 200, 170))
    draw.rectangle((250, 220, 350, 420), fill=(200, 40, 60))
    for side in (-1, 1):
        end = (300 + side * (60 + 25 * arm), 420 - 60 * ((arm * (2 + side)) % 6))
        draw.line((300 + side * 45, 240, *end), fill=(240, 200, 170), width=26)
        draw.line((300 + side * 25, 420, 300 + side * (25 + 12 * arm), 570), fill=(40, 40, 90), width=34)
    return image


def test_poses_of_one_character_are_no_copies(tmp_path: Path) -> None:
    for arm in range(6):
        save(figure(arm), tmp_path / f"{arm}.png")
    assert found(tmp_path) == {}


def test_plain_pictures_of_unlike_colours_are_no_copies(tmp_path: Path) -> None:
    for colour in ("red", "green", "blue"):
        save(Image.new("RGB", (600, 600), colour), tmp_path / f"{colour}.png")
    assert found(tmp_path) == {}


def test_a_chain_of_small_changes_joins_no_two_that_differ(tmp_path: Path) -> None:
    steps = 8
    first, last = photo(6), photo(7)
    for step in range(steps + 1):
        save(Image.blend(first, last, step / steps), tmp_path / f"{step}.png")
    for group in groups(tmp_path):
        numbers = [int(path.stem) for path in (group.keep, *group.reject)]
        assert max(numbers) - min(numbers) < steps / 2 + 1


def test_thousands_of_hashes_are_compared_in_a_moment() -> None:
    rng = np.random.default_rng(0)
    one = fingerprint(photo(1, (96, 96)))
    hashes = rng.integers(0, 2**63, (2_500, *one.hashes.shape), dtype=np.uint64)
    turned = rng.integers(0, 2**63, hashes.shape, dtype=np.uint64)
    hashes[2_400] = hashes[17] ^ np.uint64(1)
    turned[500] = hashes[2_000]
    prints = [Fingerprint(a, b, one.small, one.content) for a, b in zip(hashes, turned, strict=True)]
    began = time.process_time()
    pairs = candidate_pairs(prints)
    assert time.process_time() - began < 3
    assert {(int(first), int(second), int(mirror)) for first, second, _, mirror in pairs} == {
        (17, 2_400, 0),
        (500, 2_000, 1),
    }
