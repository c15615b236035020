"""scan.json: the result of a scan is used again for images that are unchanged."""

from __future__ import annotations

import json
import os
import shutil
import time
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from lora_studio.dataset.images.decode import find_images
from lora_studio.dataset.manifest import SCAN_FILE, Manifest, load_scan, scan_stamps
from lora_studio.dataset.marks import LEGACY_FILE, MARKS_FILE, Marks, change_marks, save_marks
from lora_studio.dataset.scan import scan
from lora_studio.example import EXAMPLE_IMAGES
from lora_studio.workspace.project import Home


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "dataset" / "10_ink"
    folder.mkdir(parents=True)
    for name in ("guitar.png", "guitar-mirrored.png", "umbrella.png"):
        shutil.copy(EXAMPLE_IMAGES / name, folder / name)
        os.utime(folder / name, (1e9, 1e9))
    return folder.parent


def scanned(folder: Path) -> Manifest:
    stamps = scan_stamps(find_images(folder))
    return Manifest.of_scan(folder, scan(folder), stamps)


def names(manifest: Manifest) -> set[str]:
    return {path.name for path in manifest.infos}


def test_a_scan_is_read_back_as_it_was_written(folder: Path, tmp_path: Path) -> None:
    made = scanned(folder)
    made.save_scan(tmp_path)
    read = Manifest.load(tmp_path, folder)
    assert read == made
    assert [item.path.name for item in read.proposals()] == ["guitar-mirrored.png"]


def test_marks_leave_the_scan_file_as_it_is(folder: Path, tmp_path: Path) -> None:
    made = scanned(folder)
    made.save_scan(tmp_path)
    before = (tmp_path / SCAN_FILE).read_bytes()
    image = made.infos[folder / "10_ink" / "umbrella.png"].sha256
    reviewed = Marks().with_reviewed([(image, "")])
    for marks in (reviewed, reviewed.with_kept([image]), Marks()):
        save_marks(tmp_path, marks)
        marked = replace(made, marks=marks)
        assert Manifest.load(tmp_path, folder) == marked
        assert made.refreshed(tmp_path, []) is None, "it was not loaded from scan.json"
        assert Manifest.load(tmp_path, folder).refreshed(tmp_path, []) == marked
    assert (tmp_path / SCAN_FILE).read_bytes() == before


def test_a_refreshed_manifest_lacks_the_image_that_was_removed(folder: Path, tmp_path: Path) -> None:
    image = folder / "10_ink" / "guitar.png"
    scanned(folder).save_scan(tmp_path)
    loaded = Manifest.load(tmp_path, folder)
    aside = image.rename(tmp_path / "guitar.png")
    refreshed = loaded.refreshed(tmp_path, [image])
    assert refreshed == Manifest.load(tmp_path, folder)
    assert refreshed is not None
    assert refreshed.groups == []
    aside.rename(image)
    assert refreshed.refreshed(tmp_path, [image]) == loaded


def test_another_scan_is_not_refreshed(folder: Path, tmp_path: Path) -> None:
    scanned(folder).save_scan(tmp_path)
    loaded = Manifest.load(tmp_path, folder)
    (folder / "10_ink" / "umbrella.png").unlink()
    scanned(folder).save_scan(tmp_path)
    assert loaded.refreshed(tmp_path, []) is None


def test_the_same_content_gives_the_same_scan_object(folder: Path, tmp_path: Path) -> None:
    scanned(folder).save_scan(tmp_path)
    first = load_scan(tmp_path)
    assert load_scan(tmp_path) is first, "while scan.json is racy"
    os.utime(tmp_path / SCAN_FILE, (1e9, 1e9))
    assert load_scan(tmp_path) is first


def test_a_scan_moves_with_its_folder(folder: Path, tmp_path: Path) -> None:
    scanned(folder).save_scan(tmp_path)
    moved = folder.rename(tmp_path / "elsewhere")
    read = Manifest.load(tmp_path, moved)
    assert names(read) == {"guitar.png", "guitar-mirrored.png", "umbrella.png"}
    assert read.groups[0].keep == moved / "10_ink" / "guitar.png"


def test_an_image_that_changed_is_left_out(folder: Path, tmp_path: Path) -> None:
    scanned(folder).save_scan(tmp_path)
    Image.new("RGB", (600, 600)).save(folder / "10_ink" / "umbrella.png")
    assert names(Manifest.load(tmp_path, folder)) == {"guitar.png", "guitar-mirrored.png"}


def test_an_image_that_changed_just_before_the_scan_is_compared_by_content(folder: Path, tmp_path: Path) -> None:
    image = folder / "10_ink" / "umbrella.png"
    os.utime(image, ns=(written := time.time_ns(), written))
    scanned(folder).save_scan(tmp_path)
    assert names(Manifest.load(tmp_path, folder)) == {"guitar.png", "guitar-mirrored.png", "umbrella.png"}
    data = bytearray(image.read_bytes())
    data[-20] ^= 1
    image.write_bytes(data)
    os.utime(image, ns=(written, written))  # within one tick of a coarse clock
    assert names(Manifest.load(tmp_path, folder)) == {"guitar.png", "guitar-mirrored.png"}


@pytest.mark.parametrize("gone", ["guitar.png", "guitar-mirrored.png"])
def test_a_group_ends_with_its_last_pair(folder: Path, tmp_path: Path, gone: str) -> None:
    scanned(folder).save_scan(tmp_path)
    (folder / "10_ink" / gone).unlink()
    read = Manifest.load(tmp_path, folder)
    assert read.groups == []
    assert read.proposals() == []


def test_an_image_that_is_marked_as_kept_is_not_proposed(folder: Path) -> None:
    made = scanned(folder)
    duplicate = made.infos[folder / "10_ink" / "guitar-mirrored.png"].sha256
    marks = made.marks.with_kept([duplicate])
    assert replace(made, marks=marks).proposals() == []
    assert replace(made, marks=marks.with_kept([duplicate], kept=False)).proposals() == made.proposals()


@pytest.mark.parametrize("content", [None, b"", b"{", b'{"report": 3}', b"\xff\xfe"])
def test_a_missing_or_damaged_scan_is_empty(folder: Path, tmp_path: Path, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / SCAN_FILE).write_bytes(content)
    read = Manifest.load(tmp_path, folder)
    assert (read.infos, read.groups, read.proposals()) == ({}, [], [])


def test_a_scan_that_is_truncated_anywhere_loses_no_mark_and_is_rebuilt(folder: Path, tmp_path: Path) -> None:
    (folder / "10_ink" / "umbrella.png").unlink()
    (folder / "10_ink" / "guitar-mirrored.png").unlink()
    made = replace(scanned(folder), marks=Marks().with_reviewed([("a", "")]))
    made.save_scan(tmp_path)
    save_marks(tmp_path, made.marks)
    whole = (tmp_path / SCAN_FILE).read_bytes()
    for length in range(len(whole.rstrip())):
        (tmp_path / SCAN_FILE).write_bytes(whole[:length])
        read = Manifest.load(tmp_path, folder)
        assert (read.infos, read.marks) == ({}, made.marks), length
    made.save_scan(tmp_path)
    assert Manifest.load(tmp_path, folder) == made


def test_damaged_marks_leave_the_scan_as_it_is(folder: Path, tmp_path: Path) -> None:
    made = scanned(folder)
    made.save_scan(tmp_path)
    (tmp_path / MARKS_FILE).write_text("{")
    assert Manifest.load(tmp_path, folder) == made


def test_a_project_of_an_earlier_version_keeps_its_scan_and_its_marks(folder: Path, tmp_path: Path) -> None:
    made = scanned(folder)
    made.save_scan(tmp_path)
    scan_file = tmp_path / SCAN_FILE
    duplicate = made.infos[folder / "10_ink" / "guitar-mirrored.png"].sha256
    legacy = json.loads(scan_file.read_bytes()) | {"kept": [duplicate], "reviewed": ["a"]}
    scan_file.unlink()
    (tmp_path / LEGACY_FILE).write_text(json.dumps(legacy, indent=1))
    before = (tmp_path / LEGACY_FILE).read_bytes()

    read = Manifest.load(tmp_path, folder)
    assert read.marks == Marks(kept=frozenset({duplicate}), reviewed=frozenset({"a"}))
    assert read == replace(made, marks=read.marks)
    marks = change_marks(tmp_path, lambda marks: marks.with_reviewed([("b", "")]))
    assert Manifest.load(tmp_path, folder) == replace(read, marks=marks)
    scanned(folder).save_scan(tmp_path)
    assert Manifest.load(tmp_path, folder) == replace(read, marks=marks)
    assert (tmp_path / LEGACY_FILE).read_bytes() == before


def test_sizes_and_hashes_come_from_the_scan_and_else_from_the_files(folder: Path) -> None:
    image, other = folder / "10_ink" / "guitar.png", folder / "10_ink" / "umbrella.png"
    made = scanned(folder)
    info = made.infos[image].model_copy(update={"width": 7, "height": 5, "sha256": "scanned"})
    known = replace(made, infos={image: info})
    assert (known.size_of(image), known.sha256_of(image)) == ((7, 5), "scanned")
    assert known.size_of(other) == (made.infos[other].width, made.infos[other].height)
    assert known.sha256_of(other) == made.infos[other].sha256
    broken = folder / "10_ink" / "broken.png"
    broken.write_bytes(other.read_bytes()[:900])
    assert known.size_of(broken) == known.size_of(other), "its header is whole"
    assert scanned(folder).size_of(broken) is None


def test_a_project_one_of_its_sets_and_another_folder_have_their_own_manifest(tmp_path: Path) -> None:
    project = Home(tmp_path / "home").create_project("a")
    other = tmp_path / "10_other"
    for images in (project.images_dir, other):
        images.mkdir(parents=True, exist_ok=True)
        shutil.copy(EXAMPLE_IMAGES / "guitar.png", images / "guitar.png")
    scanned(project.dataset_dir).save_scan(project.path)
    scanned(other).save_scan(other)
    for place, images in (
        (project.dataset_dir, project.images_dir),
        (project.images_dir, project.images_dir),
        (other, other),
    ):
        assert list(Manifest.of(place).infos) == [images / "guitar.png"], place
