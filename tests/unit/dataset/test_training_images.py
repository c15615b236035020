"""The one reader of a dataset: which images train, how often, which are validated on, and which have captions."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from lora_studio import guide
from lora_studio.dataset.duplicates.find import DuplicateGroup, DuplicateKind
from lora_studio.dataset.images.decode import ImageInfo
from lora_studio.dataset.manifest import Manifest, scan_stamps
from lora_studio.dataset.scan import ScanReport, ScanSummary
from lora_studio.dataset.training_images import (
    DatasetImage,
    DatasetImages,
    RepeatedImage,
    balanced_repeats,
    read_images,
    samples_per_bucket,
)
from lora_studio.errors import InputError
from lora_studio.settings.choices import MaskedLoss
from lora_studio.settings.recipe import Recipe
from lora_studio.workspace.project import ImageSet

LONG_AGO = (1e9, 1e9)  # not changed just before a scan: the content need not be compared


def save(path: Path, size: tuple[int, int], colour: str = "orange") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path)
    os.utime(path, LONG_AGO)
    return path


def info_of(path: Path, width: int, height: int, sha256: str = "") -> ImageInfo:
    return ImageInfo(path=path, width=width, height=height, sha256=sha256 or path.stem)


def save_scan(folder: Path, infos: list[ImageInfo], groups: list[DuplicateGroup] | None = None) -> None:
    """Write the result of a scan into the folder itself, which belongs to no project."""
    summary = ScanSummary(
        images=len(infos), readable=len(infos), duplicates=0, issue_counts={}, resolutions=[], issues=[]
    )
    report = ScanReport(images=infos, duplicate_groups=groups or [], summary=summary)
    Manifest.of_scan(folder, report, scan_stamps([info.path for info in infos])).save_scan(folder)


def repeats_of(images: list[RepeatedImage]) -> dict[str, int]:
    return {f"{image.path.parent.name}/{image.path.name}": repeats for image, repeats in images}


def test_images_of_set_folders_train_as_often_as_these_say(tmp_path: Path) -> None:
    for name in ("5_bird/a.png", "2_saria/a.png", "2_saria/b.jpg", "loose.png", "notes/c.png"):
        save(tmp_path / name, (64, 64))
    found = read_images(tmp_path)
    assert found.outside_sets == [tmp_path / "loose.png"]
    assert (found.total, found.mean_repeats, found.has_own_repeats) == (3, 3, True)
    own = {"2_saria/a.png": 2, "2_saria/b.jpg": 2, "5_bird/a.png": 5}
    assert repeats_of(found.split(Recipe()).training) == own
    assert repeats_of(found.split(Recipe(repeats=7)).training) == dict.fromkeys(own, 7)


def test_a_folder_without_sets_is_one(tmp_path: Path) -> None:
    flat, numbered = save(tmp_path / "images" / "a.png", (64, 64)), save(tmp_path / "4_bird" / "a.png", (64, 64))
    for image, repeats in ((flat, 1), (numbered, 4)):
        found = read_images(image.parent)
        assert found.outside_sets == []
        assert [entry.repeats for entry in found.split(Recipe()).training] == [repeats]


def test_reads_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path / "a.png", (64, 64))
    monkeypatch.chdir(tmp_path)
    assert read_images(Path()).total == 1
    save(tmp_path / "2_saria" / "b.png", (64, 64))
    found = read_images(Path())
    assert ([image.path.name for image in found.images], found.outside_sets) == (["b.png"], [Path("a.png")])


def test_sizes_are_those_of_the_last_scan_unless_images_changed(tmp_path: Path) -> None:
    first, second, _ = (save(tmp_path / f"{number}.png", (640, 480)) for number in range(3))
    save_scan(tmp_path, [info_of(path, 512, 768) for path in (first, second)])
    assert [image.size for image in read_images(tmp_path).images] == [(512, 768), (512, 768), (640, 480)]
    save(first, (800, 600))
    os.utime(first, (1, 1))
    assert [image.size for image in read_images(tmp_path).images] == [(800, 600), (512, 768), (640, 480)]


def test_sizes_are_those_after_exif_rotation(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 8
    Image.new("RGB", (96, 64)).save(tmp_path / "a.jpg", exif=exif)
    assert [image.size for image in read_images(tmp_path).images] == [(64, 96)]


def test_a_hashed_image_is_taken_from_the_scan_only_with_the_same_content(tmp_path: Path) -> None:
    """Both bitmaps have as many bytes and the same time of change, so that stamps do not show the difference."""
    image = save(tmp_path / "a.bmp", (64, 96))
    before = read_images(tmp_path, hash_all=True).images[0]
    save_scan(tmp_path, [info_of(image, 64, 96, before.sha256)])
    assert read_images(tmp_path, hash_all=True).images[0].info is not None
    save(image, (96, 64))
    assert read_images(tmp_path).images[0].size == (64, 96)
    (edited,) = read_images(tmp_path, hash_all=True).images
    assert (edited.size, edited.info) == ((96, 64), None)
    assert edited.sha256 != before.sha256


def test_unreadable_files_are_named_with_the_reason(tmp_path: Path) -> None:
    save(tmp_path / "a.png", (64, 64))
    (tmp_path / "text.png").write_text("no image")
    whole = save(tmp_path / "cut.png", (64, 64)).read_bytes()
    (tmp_path / "cut.png").write_bytes(whole[: len(whole) // 2])
    os.utime(tmp_path / "cut.png", LONG_AGO)
    assert list(read_images(tmp_path).unreadable) == [tmp_path / "text.png"]  # the header of the other is intact
    save_scan(tmp_path, [info_of(tmp_path / "cut.png", 0, 0)])
    found = read_images(tmp_path)
    assert [image.path.name for image in found.images] == ["a.png"]
    assert {path.name for path in found.unreadable} == {"cut.png", "text.png"}
    assert all(path.name in message for path, message in found.unreadable.items())


def test_an_image_that_a_scan_could_not_read_counts_once_it_can_be_read(tmp_path: Path) -> None:
    """The package for its format may have been installed since."""
    image = save(tmp_path / "a.png", (64, 48))
    save_scan(tmp_path, [info_of(image, 0, 0)])
    assert [found.size for found in read_images(tmp_path).images] == [(64, 48)]


def test_an_empty_caption_is_none(tmp_path: Path) -> None:
    for name in "abcd":
        save(tmp_path / f"{name}.png", (64, 64))
    (tmp_path / "a.txt").write_text("ohwx,\n girl\n")
    (tmp_path / "b.caption").write_text("ohwx")
    (tmp_path / "c.txt").write_text(" \n")
    found = read_images(tmp_path)
    assert [image.caption for image in found.images] == ["ohwx, girl", "ohwx", "", ""]
    assert [image.path.name for image in found.without_caption] == ["c.png", "d.png"]


def test_a_missing_folder_is_an_error_and_an_empty_one_is_not(tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        read_images(tmp_path / "nowhere")
    assert caught.value.code == "no_folder"
    assert read_images(tmp_path).total == 0


def test_transparency_is_that_of_the_scan_or_of_the_pixels(tmp_path: Path) -> None:
    Image.new("RGBA", (64, 64), (0, 0, 0, 9)).save(tmp_path / "clear.png")
    Image.new("RGBA", (64, 64), (0, 0, 0, 255)).save(tmp_path / "opaque.png")
    save(tmp_path / "plain.png", (64, 64))
    found = read_images(tmp_path, hash_all=True).images
    assert [image.mask(MaskedLoss.ALPHA) is not None for image in found] == [True, False, False]
    assert [image.mask(MaskedLoss.OFF) for image in found] == [None] * 3
    for path in tmp_path.iterdir():
        os.utime(path, LONG_AGO)
    save_scan(tmp_path, [info_of(image.path, 64, 64, image.sha256) for image in found])  # without an issue
    assert [image.mask(MaskedLoss.ALPHA) for image in read_images(tmp_path, hash_all=True).images] == [None] * 3


@pytest.mark.parametrize("changes", [{}, {"repeats": 3}, {"seed": 7}, {"validation_split": 0.0}])
def test_validation_images_do_not_train_and_regularisation_balances_the_rest(
    tmp_path: Path, changes: dict[str, Any]
) -> None:
    for number in range(12):
        save(tmp_path / "data" / f"{1 + number % 2}_a" / f"{number}.png", (64 + number, 64))
    for number in range(3):
        save(tmp_path / "prior" / f"{number}.png", (64, 64))
    data, prior = read_images(tmp_path / "data"), read_images(tmp_path / "prior")
    recipe = Recipe.parse({"validation_split": 0.25} | changes)
    split = data.split(recipe, prior)
    validation, training = repeats_of(split.validation), repeats_of(split.training)
    assert len(validation) == (3 if recipe.validation_split else 0)
    assert not validation.keys() & training.keys()
    assert training | validation == {
        f"{image.path.parent.name}/{image.path.name}": recipe.repeats or image.image_set.repeats
        for image in data.images
    }
    assert sum(entry.repeats for entry in split.regularization) == sum(training.values())
    hashed = read_images(tmp_path / "data", hash_all=True).split(recipe)
    assert repeats_of(hashed.validation) == validation


def test_assumed_images_are_square_and_are_validated_on_by_their_share() -> None:
    images = DatasetImages.assumed(40, 1024)
    assert (images.total, images.mean_repeats, images.without_caption) == (40, 1, [])
    split = images.split(Recipe(validation_split=0.1, repeats=2))
    assert [entry.image.count for entry in (*split.training, *split.validation)] == [36, 4]
    assert samples_per_bucket(split.training, Recipe()) == {(1024, 1024): 72}


def test_samples_are_counted_per_bucket() -> None:
    sizes = [(1024, 1024), (2000, 2000), (1216, 832)]
    images = [RepeatedImage(DatasetImage(Path(), size, ImageSet(Path(), 1, "")), 2) for size in sizes]
    counted = samples_per_bucket(images, Recipe())
    assert (counted[1024, 1024], counted[1216, 832], counted.total()) == (4, 2, 6)
    assert samples_per_bucket(images, Recipe(enable_bucket=False)) == Counter({(1024, 1024): 6})


def fabricated(count: int, duplicates: list[list[Path]]) -> DatasetImages:
    """Return images that exist only in a manifest with these groups of duplicates."""
    groups = [
        DuplicateGroup(
            keep=keep, reject=rest, kind=DuplicateKind.NEAR, distance=1, reason="near", reasons=["near"] * len(rest)
        )
        for keep, *rest in duplicates
    ]
    manifest = Manifest.of(Path())
    images = [
        DatasetImage(Path(f"{number}.png"), (64, 64), ImageSet(Path(), 1, ""), sha256=f"{number:064x}")
        for number in range(count)
    ]
    return DatasetImages(images, manifest=Manifest(Path(), {}, groups, manifest.marks, None))


def test_suggests_to_split_large_sets_and_keeps_duplicates_on_one_side() -> None:
    few, medium, large = (fabricated(count, []).suggest_split(seed=1) for count in (29, 30, 301))
    assert (few.share, few.held_out) == (0.0, [])
    assert str(guide.MIN_IMAGES_FOR_VALIDATION) in few.why
    assert (medium.share, medium.held_out) == (0.0, [])
    assert medium.why != few.why
    assert (large.share, len(large.held_out)) == (0.1, 30)
    pairs = [[Path(f"{number}.png"), Path(f"{number + 1}.png")] for number in range(0, 300, 2)]
    images = fabricated(301, pairs)
    chosen = set(images.suggest_split(seed=1).held_out)
    assert all(len(chosen & set(pair)) in (0, 2) for pair in pairs)
    run = images.split(Recipe(validation_split=0.1, seed=1)).validation
    assert {entry.image.path for entry in run} == chosen


def walk(own: list[int], samples: int) -> list[int]:
    """Regularisation images as sd-scripts adds them: first all repeats of each, then one more of each in turn."""
    repeats = [0] * len(own)
    added, first = 0, True
    while own and added < samples:
        for index, count in enumerate(own):
            more = count if first else 1
            repeats[index] += more
            added += more
            if added >= samples:
                break
        first = False
    return repeats


@given(own=st.lists(st.integers(1, 12), max_size=12), samples=st.integers(0, 200))
def test_balances_regularisation_images_like_sd_scripts(own: list[int], samples: int) -> None:
    assert balanced_repeats(own, samples) == walk(own, samples)


def test_captions_are_those_with_the_given_extension_alone(tmp_path: Path) -> None:
    for name in "ab":
        save(tmp_path / f"{name}.png", (64, 64))
        (tmp_path / f"{name}.txt").write_text("usual", "utf-8")
    (tmp_path / "a.txt2").write_text("other", "utf-8")
    assert [image.caption for image in read_images(tmp_path).images] == ["usual", "usual"]
    found = read_images(tmp_path, caption_extension=".txt2")
    assert [image.caption for image in found.images] == ["other", ""]
    assert [image.path.name for image in found.without_caption] == ["b.png"]


def test_an_images_extension_is_not_a_captions(tmp_path: Path) -> None:
    save(tmp_path / "a.png", (64, 64))
    with pytest.raises(InputError) as caught:
        read_images(tmp_path, caption_extension=".PNG")
    assert caught.value.code == "caption_extension"
