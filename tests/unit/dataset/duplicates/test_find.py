"""Finding copies, and telling them from pictures that are only alike."""

from __future__ import annotations

import itertools
import multiprocessing
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from lora_studio.dataset.duplicates.candidates import MAX_DISTANCE, MAX_NEIGHBOURS, candidate_pairs
from lora_studio.dataset.duplicates.find import DuplicateGroup, DuplicateKind, FingerprintedImage, find_duplicates
from lora_studio.dataset.duplicates.fingerprints import VIEW_PAIRS, Fingerprint, fingerprint
from lora_studio.dataset.images.decode import find_images
from lora_studio.dataset.scan import scan, scan_image
from tests.support.scenes import CHANGES, photo, resized, save


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


def prints_of(hashes: NDArray[np.uint64], mirrored: NDArray[np.uint64]) -> list[Fingerprint]:
    one = fingerprint(photo(1, (96, 96)))
    return [
        Fingerprint(plain, turned, one.thumbnail, one.content_box)
        for plain, turned in zip(hashes, mirrored, strict=True)
    ]


def every_pair(prints: list[Fingerprint]) -> set[tuple[int, int, int, int]]:
    """What is near, pair by pair and bit by bit."""
    found = set()
    for (first, one), (second, other) in itertools.combinations(enumerate(prints), 2):
        for turned, hashes in enumerate((one.hashes, one.mirrored_hashes)):
            bits = [int.from_bytes((hashes[view] ^ other.hashes[seen]).tobytes()) for view, seen in VIEW_PAIRS]
            if (distance := min(map(int.bit_count, bits))) <= MAX_DISTANCE:
                found.add((first, second, distance, turned))
    return found


@settings(max_examples=30, deadline=None)
@given(number=st.integers(2, 40), flips=st.integers(0, 40), seed=st.integers(0, 1000), workers=st.integers(1, 3))
def test_the_pairs_are_those_that_counting_bits_finds(number: int, flips: int, seed: int, workers: int) -> None:
    source = np.random.default_rng(seed)
    hashes = source.integers(0, 2**63, (max(1, number // 3), 3, 2), dtype=np.uint64)[
        source.integers(0, max(1, number // 3), number)
    ]
    for _ in range(flips):
        hashes ^= np.uint64(1) << source.integers(0, 64, hashes.shape, dtype=np.uint64)
    prints = prints_of(hashes, hashes[source.permutation(number)])
    pairs = candidate_pairs(prints, workers=workers)
    assert len(pairs) == len({tuple(pair) for pair in pairs.tolist()})
    assert {tuple(pair) for pair in pairs.tolist()} == every_pair(prints)


def test_of_thousands_of_hashes_the_pairs_are_found_and_no_others() -> None:
    source = np.random.default_rng(0)
    hashes, turned = source.integers(0, 2**63, (2, 9_000, 3, 2), dtype=np.uint64)
    hashes[8_900] = hashes[17] ^ np.uint64(1)
    turned[500] = hashes[8_500]
    hashes[299] = hashes[300] ^ np.uint64(3)
    prints = prints_of(hashes, turned)
    alone, shared = (candidate_pairs(prints, workers=workers) for workers in (1, 3))
    assert alone.tolist() == shared.tolist() == [[17, 8_900, 2, 0], [299, 300, 4, 0], [500, 8_500, 0, 1]]


def test_of_many_that_are_near_the_nearest_are_proposed() -> None:
    number = MAX_NEIGHBOURS + 4
    hashes = np.zeros((number, 3, 2), np.uint64)
    hashes[:, :, 0] = ((np.uint64(1) << np.arange(number, dtype=np.uint64)) - np.uint64(1))[:, None]
    pairs = candidate_pairs(prints_of(hashes, ~hashes))
    assert [pair for pair in pairs.tolist() if pair[0] == 0] == [
        [0, far, far, 0] for far in range(1, MAX_NEIGHBOURS + 1)
    ]


def test_comparing_hashes_ends_with_what_the_progress_raises() -> None:
    hashes = np.random.default_rng(0).integers(0, 2**63, (20_000, 3, 2), dtype=np.uint64)
    told: list[int] = []

    def stop(done: int, total: int) -> None:
        told.append(done)
        raise Stopped

    with pytest.raises(Stopped):
        candidate_pairs(prints_of(hashes, hashes), on_progress=stop, workers=2)
    assert told == [256]


class Stopped(Exception):
    """The user pressed Stop."""


@pytest.fixture
def children() -> Callable[[], set[BaseProcess]]:
    """The processes that were started since the test began and are alive."""
    before = set(multiprocessing.active_children())
    return lambda: set(multiprocessing.active_children()) - before


@pytest.fixture(scope="module")
def entries(tmp_path_factory: pytest.TempPathFactory) -> list[FingerprintedImage]:
    """Scenes with changed copies, among them broken files, which are no entries."""
    folder = tmp_path_factory.mktemp("copies")
    for seed, (number, change) in itertools.product(range(4), enumerate(CHANGES.values())):
        save(change(photo(seed, (240, 200))), folder / f"{seed}-{number}.png")
    (folder / "torn.png").write_bytes((folder / "0-0.png").read_bytes()[:300])
    (folder / "text.jpg").write_text("no image")
    looked = [scan_image(path) for path in find_images(folder)]
    assert sum(entry is None for _, entry in looked) == 2
    return [entry for _, entry in looked if entry is not None]


def test_other_processes_find_what_one_finds(
    entries: list[FingerprintedImage], children: Callable[[], set[BaseProcess]]
) -> None:
    told: list[tuple[str, int, int]] = []
    alone = find_duplicates(entries)
    shared = find_duplicates(entries, workers=2, min_process_pairs=1, report_progress=lambda *now: told.append(now))
    assert shared == alone
    assert {path for group in alone for path in group.reject}
    looks = [(done, total) for phase, done, total in told if phase == "Looking closely at likely copies"]
    assert [done for done, _ in looks] == sorted({done for done, _ in looks})
    assert looks[-1][0] == looks[-1][1] > 32
    assert not children()


def test_few_pairs_are_not_worth_other_processes(
    entries: list[FingerprintedImage], children: Callable[[], set[BaseProcess]]
) -> None:
    running: list[int] = []
    find_duplicates(entries, workers=2, report_progress=lambda *now: running.append(len(children())))
    assert running
    assert not any(running)


def test_what_a_process_does_not_come_to_as_it_dies_is_done_by_this_one(
    entries: list[FingerprintedImage], children: Callable[[], set[BaseProcess]]
) -> None:
    killed: list[BaseProcess] = []

    def kill(phase: str, done: int, total: int) -> None:
        if phase == "Looking closely at likely copies" and not killed:
            killed.extend(children())
            for child in killed:
                child.kill()

    shared = find_duplicates(entries, workers=2, min_process_pairs=1, report_progress=kill)
    assert killed
    assert shared == find_duplicates(entries)


def test_stopping_ends_the_other_processes(
    entries: list[FingerprintedImage], children: Callable[[], set[BaseProcess]]
) -> None:
    running: list[int] = []

    def stop(phase: str, done: int, total: int) -> None:
        if phase == "Looking closely at likely copies":
            running.append(len(children()))
            raise Stopped

    with pytest.raises(Stopped):
        find_duplicates(entries, workers=2, min_process_pairs=1, report_progress=stop)
    assert running == [2]
    assert not children()
