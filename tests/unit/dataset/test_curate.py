"""Setting images aside and restoring them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from PIL import Image

from lora_studio.dataset import curate as module
from lora_studio.dataset.change_lock import change_lock
from lora_studio.dataset.curate import (
    REJECTED_FILE,
    Proposal,
    curate,
    default_rejected_dir,
    reject,
    rejected_images,
    restore_images,
)
from lora_studio.dataset.marks import Marks, save_marks
from lora_studio.dataset.scan import scan
from lora_studio.errors import InputError
from lora_studio.files import write_text
from lora_studio.workspace.project import Home
from tests.support.scenes import CHANGES, photo, save


def tree(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def proposed(images: Iterable[Path], reason: str) -> list[Proposal]:
    return [Proposal(path=path, reason=reason) for path in images]


def crash_at_move(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """Let the move of the given number (from 1) of an image, caption or mask fail."""
    replace, moves = Path.replace, []

    def crash(source: Path, target: Path) -> Path:
        if not source.name.startswith("."):  # a temporary file
            moves.append(source)
            if len(moves) == number:
                raise OSError("power cut")
        return replace(source, target)

    monkeypatch.setattr(Path, "replace", crash)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two photos, a mirrored duplicate of one, a truncated file, captions."""
    folder = tmp_path / "images"
    save(photo(1), folder / "one.png")
    save(photo(2), folder / "two.png")
    save(CHANGES["mirrored"](photo(1)), folder / "one again.png")
    for name in ("one", "one again"):
        (folder / f"{name}.txt").write_text("ohwx")
    (folder / "torn.png").write_bytes((folder / "two.png").read_bytes()[:500])
    return folder


def test_without_apply_nothing_changes(folder: Path) -> None:
    before = tree(folder)
    report = curate(folder)
    assert tree(folder) == before
    assert [item.path.name for item in report.proposed] == ["one again.png", "torn.png"]
    assert "2 images" in report.lines()[-1]
    assert "one.png" in report.proposed[0].reason


@pytest.mark.parametrize("in_project", [False, True])
def test_images_marked_as_kept_are_not_set_aside(folder: Path, tmp_path: Path, in_project: bool) -> None:
    records = folder
    if in_project:
        project = Home(tmp_path / "home").create_project("ink")
        folder = shutil.copytree(folder, project.images_dir, dirs_exist_ok=True)
        records = project.path
    marked = next(info for info in scan(folder).images if info.path.name == "one again.png")
    save_marks(records, Marks().with_kept([marked.sha256], kept=True))
    report = curate(folder, apply=True)
    assert [path.name for path in report.rejected] == ["torn.png"]
    assert [item.path for item in report.marked_kept] == [folder / "one again.png"]
    assert any("one again.png" in line for line in report.lines())
    assert (folder / "one again.png").is_file()
    assert not any("one again.png" in line for line in curate(folder, restore=True).lines())


def test_apply_and_restore_give_back_every_file(folder: Path) -> None:
    before = tree(folder)
    report = curate(folder, apply=True)
    assert [path.name for path in report.rejected] == ["one again.png", "torn.png"]
    assert [name for name in tree(folder) if "/" not in name] == ["one.png", "one.txt", "two.png"]
    aside = report.rejected_dir
    assert (aside / "one again.txt").read_text() == "ohwx"
    assert {entry.image.name: entry.reason for entry in rejected_images(aside)} == {
        item.path.name: item.reason for item in report.proposed
    }
    back = curate(folder, restore=True)
    assert sorted(path.name for path in back.restored) == ["one again.png", "torn.png"]
    (aside / REJECTED_FILE).unlink()
    assert tree(folder) == before


def test_a_clean_folder_has_no_proposals(tmp_path: Path) -> None:
    save(photo(1), tmp_path / "a.png")
    report = curate(tmp_path, apply=True)
    assert (report.proposed, report.rejected, len(report.lines())) == ([], [], 1)
    assert list(tree(tmp_path)) == ["a.png"]


def test_the_rejected_folder_is_beside_the_dataset_of_a_project(tmp_path: Path, home: Home) -> None:
    project = home.create_project("hero")
    for folder in (project.dataset_dir, project.images_dir):
        assert default_rejected_dir(folder) == project.rejected_dir
    assert default_rejected_dir(tmp_path) == tmp_path / "rejected"
    (tmp_path / "dataset").mkdir()
    assert default_rejected_dir(tmp_path / "dataset") == tmp_path / "dataset" / "rejected"


def test_restoring_never_overwrites_a_file(folder: Path) -> None:
    aside = folder / "rejected"
    reject(proposed([folder / "one again.png", folder / "two.png"], "by hand"), aside)
    (folder / "one again.png").write_bytes(b"something new")
    back, kept = restore_images(aside)
    assert [path.name for path in back] == ["two.png"]
    assert [item.path.name for item in kept] == ["one again.png"]
    assert "one again.png" in kept[0].reason
    assert (folder / "one again.png").read_bytes() == b"something new"
    assert not (folder / "one again.txt").exists()
    (folder / "one again.png").unlink()
    assert [path.name for path in restore_images(aside)[0]] == ["one again.png"]
    assert (folder / "one again.txt").read_text() == "ohwx"


def test_restores_only_the_given_images(folder: Path) -> None:
    aside = folder / "rejected"
    reject(proposed([folder / "one.png", folder / "two.png"], "by hand"), aside)
    assert restore_images(aside, [folder / "two.png"]) == ([folder / "two.png"], [])
    assert [entry.image.name for entry in rejected_images(aside)] == ["one.png"]


def test_images_of_the_same_name_get_numbers(tmp_path: Path) -> None:
    paths = [save(photo(seed), tmp_path / f"{seed}_set" / "a.png") for seed in (1, 2)]
    before = tree(tmp_path)
    reject(proposed(paths, "by hand"), tmp_path / "aside")
    assert sorted(path.name for path in (tmp_path / "aside").glob("*.png")) == ["a (1).png", "a.png"]
    restore_images(tmp_path / "aside")
    (tmp_path / "aside" / REJECTED_FILE).unlink()
    assert tree(tmp_path) == before


def test_a_caption_that_another_image_shares_stays(tmp_path: Path) -> None:
    save(photo(1), tmp_path / "a.png")
    save(photo(1), tmp_path / "a.bmp")
    (tmp_path / "a.txt").write_text("shared")
    reject([Proposal(path=tmp_path / "a.bmp", reason="copy")], tmp_path / "aside")
    assert (tmp_path / "a.txt").read_text() == "shared"


def test_a_crash_between_two_moves_loses_nothing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = tree(folder)
    crash_at_move(monkeypatch, 2)
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
    aside = folder / "rejected"
    crash_at_move(monkeypatch, 3)
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


def test_all_images_are_recorded_in_one_write(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[str] = []
    monkeypatch.setattr(module, "write_text", lambda path, text: [written.append(text), write_text(path, text)])
    images = sorted(folder.glob("*.png"))
    assert reject(proposed([*images, images[0]], "all"), folder / "rejected") == images
    assert [len(json.loads(text)["entries"]) for text in written] == [4]


def test_a_shared_caption_moves_with_the_last_image(tmp_path: Path) -> None:
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


def test_a_damaged_record_is_reported_and_nothing_moves(folder: Path) -> None:
    (folder / "rejected").mkdir()
    (folder / "rejected" / REJECTED_FILE).write_text("{")
    with pytest.raises(InputError, match=REJECTED_FILE) as caught:
        curate(folder, apply=True)
    assert caught.value.code == "manifest"
    assert (folder / "one again.png").is_file()


def test_refuses_a_folder_that_is_missing_or_empty(tmp_path: Path) -> None:
    for folder, code in ((tmp_path / "gone", "no_folder"), (tmp_path, "no_images")):
        with pytest.raises(InputError) as caught:
            curate(folder)
        assert caught.value.code == code
    assert curate(tmp_path, restore=True).restored == []


def test_missing_images_are_skipped(tmp_path: Path) -> None:
    Image.new("RGB", (9, 9)).save(tmp_path / "a.png")
    assert reject(proposed([tmp_path / "gone.png", tmp_path / "a.png"], "x"), tmp_path / "aside") == [
        tmp_path / "a.png"
    ]


def test_a_duplicated_and_a_renamed_project_restore_their_own_images(home: Home) -> None:
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


def test_masks_move_with_their_image(tmp_path: Path) -> None:
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


def test_two_programs_cannot_change_a_dataset_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = tmp_path / "images"
    images.mkdir()
    image = images / "a.png"
    Image.new("RGB", (8, 8)).save(image)
    found, rejected = [Proposal(path=image, reason="blurred")], images / "rejected"
    monkeypatch.setattr(module, "LOCK_SECONDS", 0.1)
    with change_lock(images), pytest.raises(InputError, match="imports or curates") as caught:
        reject(found, rejected)
    assert caught.value.code == "busy"
    assert image.is_file()
    assert reject(found, rejected) == [image]
    with change_lock(images), pytest.raises(InputError, match="imports or curates"):
        restore_images(rejected)
    assert not image.exists()
    assert restore_images(rejected)[0] == [image]
    assert not list(images.glob(".*"))


def test_images_that_two_programs_set_aside_at_once_are_all_recorded(tmp_path: Path) -> None:
    images = tmp_path / "images"
    images.mkdir()
    paths = [images / f"{number}.png" for number in range(12)]
    for number, path in enumerate(paths):
        Image.new("RGB", (8, 8), (number, 0, 0)).save(path)

    def set_aside(path: Path) -> list[Path]:
        return reject([Proposal(path=path, reason="blurred")], images / "rejected")

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(set_aside, paths))
    assert {entry.image for entry in rejected_images(images / "rejected")} == set(paths)
    assert sorted(restore_images(images / "rejected")[0]) == sorted(paths)
