"""Groups of duplicates among images, which image is kept, and the processes that share the work."""

from __future__ import annotations

import itertools
import multiprocessing
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest
from PIL import Image, ImageDraw

from lora_studio.dataset.duplicates.find import (
    VERIFY,
    DuplicateGroup,
    DuplicateKind,
    FingerprintedImage,
    find_duplicates,
)
from lora_studio.dataset.images.decode import find_images
from lora_studio.dataset.scan import scan, scan_image
from lora_studio.errors import StopRequested
from tests.support.scenes import CHANGES, photo, resized, save


def groups(folder: Path) -> list[DuplicateGroup]:
    return scan(folder).duplicate_groups


def found(folder: Path) -> dict[str, set[str]]:
    return {group.keep.name: {path.name for path in group.reject} for group in groups(folder)}


@pytest.mark.parametrize("change", CHANGES)
def test_finds_changed_duplicates_of_photos_and_nothing_else(tmp_path: Path, change: str) -> None:
    for seed in range(3):
        save(photo(seed), tmp_path / f"{seed}.png")
        save(CHANGES[change](photo(seed)), tmp_path / f"copy of {seed}.png")
    pairs = {frozenset((group.keep.name, path.name)) for group in groups(tmp_path) for path in group.reject}
    assert pairs == {frozenset((f"{seed}.png", f"copy of {seed}.png")) for seed in range(3)}


def test_identical_files_and_identical_pixels_are_exact_duplicates(tmp_path: Path) -> None:
    save(photo(1), tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes((tmp_path / "a.png").read_bytes())
    save(photo(1), tmp_path / "a copy.bmp")
    exact = {path.name: reason for group in groups(tmp_path) for path, reason in _rejects(group)}
    assert {group.kind for group in groups(tmp_path)} == {DuplicateKind.EXACT}
    assert exact == {"b.png": "exact duplicate", "a copy.bmp": "pixel-identical duplicate"}


def _rejects(group: DuplicateGroup) -> list[tuple[Path, str]]:
    return list(zip(group.reject, group.reasons, strict=True))


def test_respects_the_exif_orientation(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    photo(2).transpose(Image.Transpose.ROTATE_90).save(tmp_path / "turned.jpg", exif=exif, quality=95)
    save(photo(2), tmp_path / "upright.png")
    assert found(tmp_path) == {"upright.png": {"turned.jpg"}}


def test_keeps_the_largest_then_the_sharpest_image(tmp_path: Path) -> None:
    save(resized(photo(3), 0.8), tmp_path / "small.png")
    save(photo(3), tmp_path / "whole.png")
    save(resized(resized(photo(3), 0.3), 1 / 0.3), tmp_path / "soft.png")
    assert found(tmp_path) == {"whole.png": {"small.png", "soft.png"}}


def test_keeps_a_lossless_original_before_a_jpeg_with_more_bytes(tmp_path: Path) -> None:
    drawing = Image.new("RGB", (600, 600), "white")
    ImageDraw.Draw(drawing).ellipse((100, 150, 400, 500), fill="black")
    ImageDraw.Draw(drawing).rectangle((300, 60, 520, 240), fill="black")
    save(drawing, tmp_path / "drawn.png")
    drawing.save(tmp_path / "a.jpg", quality=100)
    assert (tmp_path / "a.jpg").stat().st_size > (tmp_path / "drawn.png").stat().st_size
    assert found(tmp_path) == {"drawn.png": {"a.jpg"}}


def test_of_equal_images_keeps_a_captioned_one_then_the_shorter_name(tmp_path: Path) -> None:
    for name in ("hero.png", "hero (1).png", "hero copy.png"):
        save(photo(4), tmp_path / name)
    assert list(found(tmp_path)) == ["hero.png"]
    (tmp_path / "hero copy.txt").write_text("ohwx")
    assert list(found(tmp_path)) == ["hero copy.png"]


@pytest.mark.parametrize(
    ("change", "reasons"),
    [
        ("mirrored", {"mirrored duplicate"}),
        ("resized to 50%", {"resized duplicate"}),
        ("10% cropped", {"cropped duplicate"}),
        ("brightened 15%", {"brightened duplicate", "darkened duplicate"}),  # either may be the one that is kept
        ("JPEG 60", {"re-encoded duplicate"}),
    ],
)
def test_reasons_name_the_change(tmp_path: Path, change: str, reasons: set[str]) -> None:
    save(photo(5), tmp_path / "whole.png")
    save(CHANGES[change](photo(5)), tmp_path / "changed.png")
    (group,) = groups(tmp_path)
    assert group.kind is DuplicateKind.NEAR
    assert set(group.reasons) <= reasons


def figure(arm: int, size: int = 600) -> Image.Image:
    """Draw one character in one of several poses."""
    image = Image.new("RGB", (size, size), (235, 235, 240))
    draw = ImageDraw.Draw(image)
    draw.ellipse((230, 80, 370, 220), fill=(240, 200, 170))
    draw.rectangle((250, 220, 350, 420), fill=(200, 40, 60))
    for side in (-1, 1):
        end = (300 + side * (60 + 25 * arm), 420 - 60 * ((arm * (2 + side)) % 6))
        draw.line((300 + side * 45, 240, *end), fill=(240, 200, 170), width=26)
        draw.line((300 + side * 25, 420, 300 + side * (25 + 12 * arm), 570), fill=(40, 40, 90), width=34)
    return image


def test_poses_of_one_character_are_not_duplicates(tmp_path: Path) -> None:
    for arm in range(6):
        save(figure(arm), tmp_path / f"{arm}.png")
    assert found(tmp_path) == {}


def test_images_of_one_colour_each_are_not_duplicates(tmp_path: Path) -> None:
    for colour in ("red", "green", "blue"):
        save(Image.new("RGB", (600, 600), colour), tmp_path / f"{colour}.png")
    assert found(tmp_path) == {}


def test_a_chain_of_small_changes_does_not_join_different_images(tmp_path: Path) -> None:
    steps = 8
    first, last = photo(6), photo(7)
    for step in range(steps + 1):
        save(Image.blend(first, last, step / steps), tmp_path / f"{step}.png")
    for group in groups(tmp_path):
        numbers = [int(path.stem) for path in (group.keep, *group.reject)]
        assert max(numbers) - min(numbers) < steps / 2 + 1


@pytest.fixture
def children() -> Callable[[], set[BaseProcess]]:
    """Return a function that returns the running processes that were started during the test."""
    before = set(multiprocessing.active_children())
    return lambda: set(multiprocessing.active_children()) - before


@pytest.fixture(scope="module")
def entries(tmp_path_factory: pytest.TempPathFactory) -> list[FingerprintedImage]:
    """Fingerprinted images: scenes with changed copies; broken files among them are left out."""
    folder = tmp_path_factory.mktemp("duplicates")
    for seed, (number, change) in itertools.product(range(4), enumerate(CHANGES.values())):
        save(change(photo(seed, (240, 200))), folder / f"{seed}-{number}.png")
    (folder / "torn.png").write_bytes((folder / "0-0.png").read_bytes()[:300])
    (folder / "text.jpg").write_text("no image")
    scanned = [scan_image(path) for path in find_images(folder)]
    assert sum(entry is None for _, entry in scanned) == 2
    return [entry for _, entry in scanned if entry is not None]


@pytest.mark.slow
def test_several_processes_find_the_same_groups_as_one(
    entries: list[FingerprintedImage], children: Callable[[], set[BaseProcess]]
) -> None:
    reported: list[tuple[str, int, int]] = []
    single = find_duplicates(entries)
    shared = find_duplicates(entries, workers=2, min_process_pairs=1, report_progress=lambda *now: reported.append(now))
    assert shared == single
    assert {path for group in single for path in group.reject}
    verified = [(done, total) for phase, done, total in reported if phase == VERIFY]
    assert [done for done, _ in verified] == sorted({done for done, _ in verified})
    assert verified[-1][0] == verified[-1][1] > 32
    assert not children()


def test_few_pairs_are_compared_in_this_process(
    entries: list[FingerprintedImage], children: Callable[[], set[BaseProcess]]
) -> None:
    running: list[int] = []
    find_duplicates(entries, workers=2, report_progress=lambda *now: running.append(len(children())))
    assert running
    assert not any(running)


@pytest.mark.slow
def test_this_process_does_the_work_of_processes_that_die(
    entries: list[FingerprintedImage], children: Callable[[], set[BaseProcess]]
) -> None:
    killed: list[BaseProcess] = []

    def kill(phase: str, done: int, total: int) -> None:
        if phase == VERIFY and not killed:
            killed.extend(children())
            for child in killed:
                child.kill()

    shared = find_duplicates(entries, workers=2, min_process_pairs=1, report_progress=kill)
    assert killed
    assert shared == find_duplicates(entries)


@pytest.mark.slow
def test_a_stop_ends_the_other_processes(
    entries: list[FingerprintedImage], children: Callable[[], set[BaseProcess]]
) -> None:
    running: list[int] = []

    def stop(phase: str, done: int, total: int) -> None:
        if phase == VERIFY:
            running.append(len(children()))
            raise StopRequested

    with pytest.raises(StopRequested):
        find_duplicates(entries, workers=2, min_process_pairs=1, report_progress=stop)
    assert running == [2]
    assert not children()
