"""dataset.json: what a scan found stays known for the images that are as they were."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from lora_studio.dataset.images.decode import find_images
from lora_studio.dataset.images.header_cache import stamp_of
from lora_studio.dataset.manifest import Manifest
from lora_studio.dataset.scan import scan
from lora_studio.example import EXAMPLE_IMAGES
from lora_studio.workspace.project import Home


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "dataset" / "10_ink"
    folder.mkdir(parents=True)
    for name in ("guitar.png", "guitar-mirrored.png", "umbrella.png"):
        shutil.copy(EXAMPLE_IMAGES / name, folder / name)
    return folder.parent


def scanned(folder: Path, kept: frozenset[str] = frozenset()) -> Manifest:
    stamps = {path: stamp_of(path) for path in find_images(folder)}
    return Manifest.of_scan(folder, scan(folder), stamps, kept)


def test_it_is_read_back_as_it_was_written(folder: Path, tmp_path: Path) -> None:
    made = scanned(folder)
    made.save(tmp_path / "dataset.json")
    read = Manifest.load(tmp_path / "dataset.json", folder)
    assert read.infos == made.infos
    assert read.groups == made.groups
    assert [item.path.name for item in read.proposals()] == ["guitar-mirrored.png"]


def test_marks_are_read_by_another_program_beside_the_same_scan(folder: Path, tmp_path: Path) -> None:
    file, copied = tmp_path / "dataset.json", tmp_path / "copied.json"
    made = scanned(folder)
    image = made.infos[folder / "10_ink" / "umbrella.png"].sha256
    for marked in (made, made.review([image]), made.review([image]).keep(image), made):
        marked.save(file)
        shutil.copy(file, copied)  # what is remembered of `file` is not of its copy
        assert Manifest.load(copied, folder) == marked
        assert Manifest.load(file, folder) == marked


def test_one_image_that_went_changes_it_alone(folder: Path, tmp_path: Path) -> None:
    file, image = tmp_path / "dataset.json", folder / "10_ink" / "guitar.png"
    made = scanned(folder)
    made.save(file)
    aside = image.rename(tmp_path / "guitar.png")
    changed = made.changed(file, [image])
    assert changed == Manifest.load(file, folder)
    assert changed is not None
    assert changed.groups == []
    aside.rename(image)
    assert changed.changed(file, [image]) == made
    scanned(folder).save(file)
    assert made.changed(file, []) is None  # another scan: there is more to look at


def test_it_moves_with_its_folder(folder: Path, tmp_path: Path) -> None:
    scanned(folder).save(tmp_path / "dataset.json")
    moved = folder.rename(tmp_path / "elsewhere")
    read = Manifest.load(tmp_path / "dataset.json", moved)
    assert {path.name for path in read.infos} == {"guitar.png", "guitar-mirrored.png", "umbrella.png"}
    assert read.groups[0].keep == moved / "10_ink" / "guitar.png"


def test_an_image_that_changed_is_not_known(folder: Path, tmp_path: Path) -> None:
    scanned(folder).save(tmp_path / "dataset.json")
    Image.new("RGB", (600, 600)).save(folder / "10_ink" / "umbrella.png")
    read = Manifest.load(tmp_path / "dataset.json", folder)
    assert {path.name for path in read.infos} == {"guitar.png", "guitar-mirrored.png"}


@pytest.mark.parametrize("gone", ["guitar.png", "guitar-mirrored.png"])
def test_a_group_ends_with_its_last_pair(folder: Path, tmp_path: Path, gone: str) -> None:
    scanned(folder).save(tmp_path / "dataset.json")
    (folder / "10_ink" / gone).unlink()
    read = Manifest.load(tmp_path / "dataset.json", folder)
    assert read.groups == []
    assert read.proposals() == []


def test_what_is_marked_to_be_kept_is_not_proposed(folder: Path) -> None:
    made = scanned(folder)
    copy = made.infos[folder / "10_ink" / "guitar-mirrored.png"].sha256
    kept = made.keep(copy)
    assert kept.proposals() == []
    assert kept.keep(copy, kept=False).proposals() == made.proposals()
    assert scanned(folder, kept.kept).proposals() == []


@pytest.mark.parametrize("content", [None, b"", b"{", b'{"report": 3}', b"\xff\xfe"])
def test_a_missing_or_broken_file_is_empty(folder: Path, tmp_path: Path, content: bytes | None) -> None:
    file = tmp_path / "dataset.json"
    if content is not None:
        file.write_bytes(content)
    read = Manifest.load(file, folder)
    assert (read.infos, read.groups, read.proposals()) == ({}, [], [])


def test_sizes_and_hashes_come_from_the_scan_and_else_from_the_files(folder: Path) -> None:
    image, other = folder / "10_ink" / "guitar.png", folder / "10_ink" / "umbrella.png"
    made = scanned(folder)
    told = made.infos[image].model_copy(update={"width": 7, "height": 5, "sha256": "told"})
    known = replace(made, infos={image: told})
    assert (known.size_of(image), known.sha256_of(image)) == ((7, 5), "told")
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
    scanned(project.dataset_dir).save(project.path / "dataset.json")
    scanned(other).save(other / "dataset.json")
    for place, images in (
        (project.dataset_dir, project.images_dir),
        (project.images_dir, project.images_dir),
        (other, other),
    ):
        assert list(Manifest.of(place).infos) == [images / "guitar.png"], place
