"""Setting images aside and putting them back."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import pytest
from PIL import Image

from lora_studio.dataset import curate as module
from lora_studio.dataset.curate import (
    REJECTED_FILE,
    Proposal,
    curate,
    default_rejected_dir,
    reject,
    rejected_images,
    restore_images,
)
from lora_studio.errors import InputError
from lora_studio.workspace.project import Home
from tests.support.scenes import CHANGES, photo, save


def tree(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def proposed(images: Iterable[Path], reason: str) -> list[Proposal]:
    return [Proposal(path=path, reason=reason) for path in images]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two photos, a mirrored copy of one, a torn file, captions."""
    folder = tmp_path / "images"
    save(photo(1), folder / "one.png")
    save(photo(2), folder / "two.png")
    save(CHANGES["mirrored"](photo(1)), folder / "one again.png")
    for name in ("one", "one again"):
        (folder / f"{name}.txt").write_text("ohwx")
    (folder / "torn.png").write_bytes((folder / "two.png").read_bytes()[:500])
    return folder


def test_showing_changes_nothing(folder: Path) -> None:
    before = tree(folder)
    report = curate(folder)
    assert tree(folder) == before
    assert [item.path.name for item in report.proposed] == ["one again.png", "torn.png"]
    assert report.lines()[-1] == "2 images; --apply does it."
    assert "mirrored copy of one.png" in report.lines()[0]


def test_applied_and_restored_everything_is_as_before(folder: Path) -> None:
    before = tree(folder)
    report = curate(folder, apply=True)
    assert [path.name for path in report.rejected] == ["one again.png", "torn.png"]
    assert [name for name in tree(folder) if "/" not in name] == ["one.png", "one.txt", "two.png"]
    aside = report.rejected_dir
    assert (aside / "one again.txt").read_text() == "ohwx"
    assert {entry.image.name: entry.reason for entry in rejected_images(aside)}[
        "one again.png"
    ] == "mirrored copy of one.png"
    back = curate(folder, restore=True)
    assert sorted(path.name for path in back.restored) == ["one again.png", "torn.png"]
    (aside / REJECTED_FILE).unlink()
    assert tree(folder) == before


def test_a_clean_folder_has_nothing_to_do(tmp_path: Path) -> None:
    save(photo(1), tmp_path / "a.png")
    assert curate(tmp_path, apply=True).lines() == ["Nothing to set aside or to put back."]
    assert list(tree(tmp_path)) == ["a.png"]


def test_where_rejects_go(tmp_path: Path, home: Home) -> None:
    project = home.create_project("hero")
    for folder in (project.dataset_dir, project.images_dir):
        assert default_rejected_dir(folder) == project.rejected_dir
    assert default_rejected_dir(tmp_path) == tmp_path / "rejected"
    (tmp_path / "dataset").mkdir()
    assert default_rejected_dir(tmp_path / "dataset") == tmp_path / "dataset" / "rejected"


def test_a_place_that_is_taken_is_not_overwritten(folder: Path) -> None:
    aside = folder / "rejected"
    reject(proposed([folder / "one again.png", folder / "two.png"], "by hand"), aside)
    (folder / "one again.png").write_bytes(b"something new")
    back, kept = restore_images(aside)
    assert [path.name for path in back] == ["two.png"]
    assert [(item.path.name, "in its place" in item.reason) for item in kept] == [("one again.png", True)]
    assert (folder / "one again.png").read_bytes() == b"something new"
    assert not (folder / "one again.txt").exists()
    (folder / "one again.png").unlink()
    assert [path.name for path in restore_images(aside)[0]] == ["one again.png"]
    assert (folder / "one again.txt").read_text() == "ohwx"


def test_some_are_put_back(folder: Path) -> None:
    aside = folder / "rejected"
    reject(proposed([folder / "one.png", folder / "two.png"], "by hand"), aside)
    assert restore_images(aside, [folder / "two.png"]) == ([folder / "two.png"], [])
    assert [entry.image.name for entry in rejected_images(aside)] == ["one.png"]


def test_the_same_name_from_two_sets(tmp_path: Path) -> None:
    paths = [save(photo(seed), tmp_path / f"{seed}_set" / "a.png") for seed in (1, 2)]
    before = tree(tmp_path)
    reject(proposed(paths, "by hand"), tmp_path / "aside")
    assert sorted(path.name for path in (tmp_path / "aside").glob("*.png")) == ["a (1).png", "a.png"]
    restore_images(tmp_path / "aside")
    (tmp_path / "aside" / REJECTED_FILE).unlink()
    assert tree(tmp_path) == before


def test_a_caption_that_another_image_needs_stays(tmp_path: Path) -> None:
    save(photo(1), tmp_path / "a.png")
    save(photo(1), tmp_path / "a.bmp")
    (tmp_path / "a.txt").write_text("shared")
    reject([Proposal(path=tmp_path / "a.bmp", reason="copy")], tmp_path / "aside")
    assert (tmp_path / "a.txt").read_text() == "shared"


def test_a_crash_between_two_moves_loses_nothing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = tree(folder)
    move, calls = module._move, []

    def crash(source: Path, target: Path) -> None:
        calls.append(source)
        if len(calls) == 2:
            raise OSError("power cut")
        move(source, target)

    monkeypatch.setattr(module, "_move", crash)
    with pytest.raises(OSError, match="power cut"):
        reject([Proposal(path=folder / "one again.png", reason="by hand")], folder / "rejected")
    monkeypatch.undo()
    assert sorted(tree(folder).values()) == sorted(
        [*before.values(), (folder / "rejected" / REJECTED_FILE).read_bytes()]
    )
    restore_images(folder / "rejected")
    (folder / "rejected" / REJECTED_FILE).unlink()
    assert tree(folder) == before


def test_after_a_crash_setting_aside_again_records_each_image_once(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = tree(folder)
    images = sorted(folder.glob("*.png"))
    move, calls = module._move, []

    def crash(source: Path, target: Path) -> None:
        calls.append(source)
        if len(calls) == 3:
            raise OSError("power cut")
        move(source, target)

    aside = folder / "rejected"
    monkeypatch.setattr(module, "_move", crash)
    with pytest.raises(OSError, match="power cut"):
        reject(proposed(images, "first"), aside)
    monkeypatch.undo()
    assert [entry.image.name for entry in rejected_images(aside)] == ["one again.png"]
    reject(proposed(images, "second"), aside)
    assert {entry.image.name: entry.reason for entry in rejected_images(aside)} == {
        "one again.png": "first",
        "one.png": "second",
        "torn.png": "second",
        "two.png": "second",
    }
    restore_images(aside)
    (aside / REJECTED_FILE).unlink()
    assert tree(folder) == before


def test_many_are_recorded_at_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[int] = []
    save_manifest = module._save
    monkeypatch.setattr(
        module, "_save", lambda aside, entries: [written.append(len(entries)), save_manifest(aside, entries)]
    )
    images = sorted(folder.glob("*.png"))
    assert reject(proposed([*images, images[0]], "all"), folder / "rejected") == images
    assert written == [4]


def test_the_last_of_those_that_share_a_caption_takes_it_along(tmp_path: Path) -> None:
    images = [save(photo(1), tmp_path / f"a.{suffix}") for suffix in ("bmp", "png")]
    (tmp_path / "a.txt").write_text("shared")
    before = tree(tmp_path)
    aside = tmp_path / "aside"
    reject(proposed(images, "both"), aside)
    assert not (tmp_path / "a.txt").exists()
    assert {entry.image.name: len(entry.files) for entry in rejected_images(aside)} == {"a.bmp": 1, "a.png": 2}
    restore_images(aside)
    (aside / REJECTED_FILE).unlink()
    assert tree(tmp_path) == before


def test_a_broken_manifest_is_named(folder: Path) -> None:
    (folder / "rejected").mkdir()
    (folder / "rejected" / REJECTED_FILE).write_text("{")
    with pytest.raises(InputError, match=REJECTED_FILE):
        curate(folder, apply=True)
    assert (folder / "one again.png").is_file()


def test_no_folder_and_no_images(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no folder"):
        curate(tmp_path / "gone")
    with pytest.raises(InputError, match="no images"):
        curate(tmp_path)
    assert curate(tmp_path, restore=True).lines() == ["Nothing to set aside or to put back."]


def test_images_that_are_gone_are_passed_over(tmp_path: Path) -> None:
    Image.new("RGB", (9, 9)).save(tmp_path / "a.png")
    assert reject(proposed([tmp_path / "gone.png", tmp_path / "a.png"], "x"), tmp_path / "aside") == [
        tmp_path / "a.png"
    ]


def test_a_copied_and_a_renamed_project_put_back_their_own(home: Home) -> None:
    project = home.create_project("first")
    image = save(photo(1), project.images_dir / "a.png")
    reject([Proposal(path=image, reason="for a test")], project.rejected_dir)
    copy = home.duplicate_project("first", "second")
    renamed = home.rename_project("first", "third")
    for each in (copy, renamed):
        place = each.path / image.relative_to(project.path)
        assert restore_images(each.rejected_dir) == ([place.resolve()], [])
        assert place.is_file()
    assert not project.path.exists()


def test_masks_go_along_and_come_back(tmp_path: Path) -> None:
    folder = tmp_path / "images"
    for name in ("one.png", "one-masklabel.png", "mask/one.webp", "two.png", "mask/two.png"):
        save(photo(1), folder / name)
    before = tree(folder)
    aside = tmp_path / "rejected"
    reject(proposed([folder / "one.png"], "blurred"), aside)
    assert sorted(tree(folder)) == ["mask/two.png", "two.png"]
    assert sorted(set(tree(aside)) - {REJECTED_FILE}) == ["one-mask.webp", "one-masklabel.png", "one.png"]
    restore_images(aside)
    assert tree(folder) == before
