"""The import of files, folders and zips into a dataset."""

from __future__ import annotations

import errno
import os
import re
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from PIL import Image

from lora_studio import files
from lora_studio.dataset.curate import Proposal, reject
from lora_studio.dataset.ingest.importers import import_paths
from lora_studio.dataset.ingest.report import ImportReport
from lora_studio.errors import DiskFullError, InputError
from lora_studio.workspace.project import Home
from tests.support.import_sources import draw, pack, png, tree


def test_copies_a_folder_with_captions_and_leaves_it_unchanged(source: Path, images_dir: Path) -> None:
    draw(source / "a.png", 1)
    draw(source / "deep" / "er" / "b.jpg", 2)
    (source / "a.txt").write_bytes("\ufeffhero, café\r\nsmiling".encode())
    (source / "deep" / "er" / "b.caption").write_bytes("naïve hero".encode("latin-1"))
    (source / "notes.md").write_text("no picture")
    (source / ".hidden.png").write_bytes(b"x")
    before = tree(source)
    seen: list[tuple[int, int]] = []
    report = import_paths([source], images_dir, on_progress=lambda done, total: seen.append((done, total)))
    assert tree(source) == before
    assert tree(images_dir.parent.parent) == {
        "dataset/10_hero/a.png": before["a.png"],
        "dataset/10_hero/a.txt": "hero, café smiling".encode(),
        "dataset/10_hero/b.jpg": before["deep/er/b.jpg"],
        "dataset/10_hero/b.txt": "naïve hero".encode(),
    }
    assert report == ImportReport(added=[images_dir / "a.png", images_dir / "b.jpg"], captions=2)
    assert seen == [(1, 2), (2, 2)]


def test_imports_sets_as_sets(source: Path, images_dir: Path) -> None:
    draw(source / "img" / "5_villain" / "a.png", 1)
    draw(source / "img" / "10_hero" / "b.png", 2)
    draw(source / "2024_holidays" / "c.png", 3)
    draw(source / "0_none" / "d.png", 4)
    import_paths([source], images_dir)
    assert list(tree(images_dir.parent)) == ["10_hero/b.png", "10_hero/c.png", "10_hero/d.png", "5_villain/a.png"]


def test_imports_a_folder_that_is_a_set(tmp_path: Path, images_dir: Path) -> None:
    draw(tmp_path / "3_cats" / "a.png")
    import_paths([tmp_path / "3_cats"], images_dir)
    assert list(tree(images_dir.parent)) == ["3_cats/a.png"]


def test_importing_again_adds_only_new_images(source: Path, images_dir: Path) -> None:
    draw(source / "a.png", 1)
    draw(source / "5_villain" / "v.png", 2)
    import_paths([source], images_dir)
    (images_dir / "a.png").rename(images_dir / "renamed.png")
    draw(source / "b.png", 3)
    report = import_paths([source], images_dir)
    assert report.added == [images_dir / "b.png"]
    assert [item.name for item in report.skipped] == ["a.png", "v.png"]
    for item, name in zip(report.skipped, ("renamed.png", "v.png"), strict=True):
        assert name in item.reason
    assert list(tree(images_dir.parent)) == ["10_hero/b.png", "10_hero/renamed.png", "5_villain/v.png"]


def test_imports_a_caption_later_and_never_over_another(source: Path, images_dir: Path) -> None:
    draw(source / "a.png", 1)
    draw(source / "b.png", 2)
    import_paths([source], images_dir)
    (images_dir / "b.txt").write_text("mine")
    (source / "a.txt").write_text("late")
    (source / "b.txt").write_text("theirs")
    assert import_paths([source], images_dir).captions == 1
    assert (images_dir / "a.txt").read_text() == "late"
    assert (images_dir / "b.txt").read_text() == "mine"


def test_does_not_import_rejected_images_again(source: Path, home: Home) -> None:
    project = home.create_project("hero")
    draw(source / "a.png", 1)
    (source / "a.txt").write_text("hero")
    import_paths([source], project.images_dir)
    reject([Proposal(path=project.images_dir / "a.png", reason="blurred")], project.rejected_dir)
    report = import_paths([source], project.images_dir)
    assert (report.added, report.captions) == ([], 0)
    assert "blurred" in report.skipped[0].reason
    assert tree(project.dataset_dir) == {}


def test_does_not_import_the_rejected_folder_of_a_source(source: Path, images_dir: Path) -> None:
    draw(source / "a.png", 1)
    draw(source / "b.png", 2)
    reject([Proposal(path=source / "b.png", reason="blurred")], source / "rejected")
    assert import_paths([source], images_dir).added == [images_dir / "a.png"]


def test_numbers_an_image_whose_name_is_taken(source: Path, images_dir: Path) -> None:
    draw(images_dir / "a.png", 1)
    (images_dir / "A (2).txt").write_text("a caption without an image")
    draw(source / "A.jpg", 2)
    draw(source / "more" / "a.png", 3)
    (source / "more" / "a.txt").write_text("third")
    before = tree(images_dir)
    report = import_paths([source], images_dir)
    assert [path.name for path in report.added] == ["A (3).jpg", "a (4).png"]
    assert (images_dir / "a (4).txt").read_text() == "third"
    assert before.items() <= tree(images_dir).items()


def test_reports_broken_files_and_imports_the_others(source: Path, images_dir: Path) -> None:
    draw(source / "good.png", 1)
    whole = draw(source / "torn.jpg", 2, (400, 300)).read_bytes()
    (source / "torn.jpg").write_bytes(whole[: len(whole) // 2])
    (source / "text.png").write_text("this is not an image")
    (source / "phone.heic").write_bytes(b"\0\0\0\x18ftypheic")
    (source / "good.txt").write_bytes(b"x" * (2 << 20))
    report = import_paths([source], images_dir)
    assert [path.name for path in report.added] == ["good.png"]
    assert {item.name: item.code for item in report.refused if item.name != "phone.heic"} == {
        "good.txt": "caption",
        "text.png": "unreadable",
        "torn.jpg": "unreadable",
    }
    assert len(report.refused) == 4
    for item in report.refused:
        assert item.name in item.message
        assert item.remedy
    assert list(tree(images_dir.parent)) == ["10_hero/good.png"]


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root can read every file")
def test_reports_a_file_without_read_permission(source: Path, images_dir: Path) -> None:
    draw(source / "a.png", 1).chmod(0)
    assert import_paths([source], images_dir).refused[0].code == "unreadable"


def test_corrects_a_wrong_suffix(source: Path, images_dir: Path) -> None:
    draw(source / "a.jpg").rename(source / "a.PNG")
    report = import_paths([source], images_dir)
    assert report.added == [images_dir / "a.jpg"]
    (note,) = report.notes
    for text in ("a.PNG", "JPEG", "a.jpg"):
        assert text in note


def test_single_files_get_their_captions(source: Path, images_dir: Path) -> None:
    one = draw(source / "upload 1" / "a.png", 1)
    (source / "upload 2").mkdir()
    (source / "upload 2" / "a.txt").write_text("from elsewhere")
    two = draw(source / "b.png", 2)
    (source / "b.txt").write_text("from beside")
    (source / "lonely.txt").write_text("?")
    report = import_paths([one, source / "upload 2" / "a.txt", two, source / "lonely.txt"], images_dir)
    assert (images_dir / "a.txt").read_text() == "from elsewhere"
    assert (images_dir / "b.txt").read_text() == "from beside"
    assert [(item.name, item.code) for item in report.refused] == [("lonely.txt", "caption_without_image")]


def test_imports_a_zip_with_sets_and_captions(tmp_path: Path, images_dir: Path) -> None:
    entries = {
        "set/10_hero/a.png": png(tmp_path, 1),
        "set/10_hero/a.txt": "café".encode("latin-1"),
        "set\\4_more\\b.png": png(tmp_path, 2),
        "__MACOSX/set/10_hero/._a.png": b"junk",
        "set/loose.png": png(tmp_path, 3),
        "set/liar.png": b"plain text",
    }
    report = import_paths([pack(tmp_path / "x.zip", entries)], images_dir)
    assert tree(images_dir.parent) == {
        "10_hero/a.png": entries["set/10_hero/a.png"],
        "10_hero/a.txt": "café".encode(),
        "10_hero/loose.png": entries["set/loose.png"],
        "4_more/b.png": entries["set\\4_more\\b.png"],
    }
    assert [item.name for item in report.refused] == ["set/liar.png"]
    assert len(import_paths([tmp_path / "x.zip"], images_dir).skipped) == 3


def test_makes_names_safe(tmp_path: Path, images_dir: Path) -> None:
    names = ['<img src=x onerror="alert(1)">.png', "con.png", "a\nb.png", "漢" * 300 + ".png"]
    archive = pack(tmp_path / "x.zip", {name: png(tmp_path, index) for index, name in enumerate(names)})
    report = import_paths([archive], images_dir)
    assert sorted(path.name for path in report.added) == sorted(
        ["_img src=x onerror=_alert(1)__.png", "_con.png", "a_b.png", "漢" * 66 + ".png"]
    )


@pytest.mark.skipif(os.name != "posix", reason="other systems have Unicode names")
def test_imports_a_name_that_is_not_valid_unicode(source: Path, images_dir: Path) -> None:
    draw(source / os.fsdecode(b"caf\xe9.png"))
    (source / os.fsdecode(b"torn\xe9.png")).write_bytes(b"not an image")
    report = import_paths([source], images_dir)
    assert report.added == [images_dir / "caf?.png".replace("?", "_")]
    assert report.refused[0].name == "torn?.png"
    assert report.model_dump_json()


def test_reports_all_problems_of_the_sources_before_writing(source: Path, images_dir: Path) -> None:
    (source / "no.zip").write_text("not a zip")
    (source / "empty").mkdir()
    good = draw(source / "a.png")
    with pytest.raises(InputError) as caught:
        import_paths([source / "no.zip", source / "empty", source / "gone", good], images_dir)
    assert caught.value.code == "sources"
    assert len(caught.value.message.splitlines()) == 3
    for name in ("no.zip", "empty", "gone"):
        assert name in caught.value.message
    assert not images_dir.exists()


def test_a_full_disk_leaves_complete_files(source: Path, images_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    draw(source / "a.png", 1)
    draw(source / "b.png", 2)
    syncs = iter([None, OSError(errno.ENOSPC, "No space left on device")])

    def sync(descriptor: int) -> None:
        if (error := next(syncs)) is not None:
            raise error

    monkeypatch.setattr(files.os, "fsync", sync)
    monkeypatch.setattr(files, "sync_folder", lambda folder: None)
    with pytest.raises(DiskFullError, match=r"b\.png"):
        import_paths([source], images_dir)
    assert tree(images_dir.parent) == {"10_hero/a.png": (source / "a.png").read_bytes()}
    monkeypatch.undo()
    assert import_paths([source], images_dir).added == [images_dir / "b.png"]


def test_takes_another_name_if_a_concurrent_import_has_it(
    source: Path, images_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    draw(source / "a.png", 1)
    copy = shutil.copyfile

    def meanwhile(*paths: Path) -> None:
        copy(*paths)
        if not (images_dir / "a.png").exists():
            (images_dir / "a.png").write_bytes(b"theirs")

    monkeypatch.setattr(shutil, "copyfile", meanwhile)
    assert import_paths([source], images_dir).added == [images_dir / "a (2).png"]
    assert (images_dir / "a.png").read_bytes() == b"theirs"


def test_imports_masks_with_their_images(source: Path, images_dir: Path, tmp_path: Path) -> None:
    """Masks are named as in OneTrainer or are in a folder `mask`; equal masks are not taken for duplicates."""
    for name in ("a", "b", "c"):
        draw(source / f"{name}.png", ord(name))
    for name in ("a-masklabel.png", "b-masklabel.png", "mask/c.png"):
        (source / name).parent.mkdir(exist_ok=True)
        Image.new("L", (40, 30), 255).save(source / name)
    draw(images_dir / "a.png", 7)
    packed = pack(tmp_path / "all.zip", tree(source))
    expected = {"a.png", "a (2).png", "b.png", "c.png"} | {f"{n}-masklabel.png" for n in ("a (2)", "b", "c")}
    report = import_paths([source], images_dir)
    assert {path.name for path in images_dir.iterdir()} == expected
    assert (len(report.added), report.masks, report.skipped) == (3, 3, [])
    for again in ([source], [packed], sorted(source.glob("*.png"))):
        report = import_paths(again, images_dir)
        assert (report.added, report.masks, len(report.skipped), report.refused) == ([], 0, 3, [])
    assert {path.name for path in images_dir.iterdir()} == expected
    chosen = import_paths([source / "b-masklabel.png"], images_dir)
    assert [(item.name, item.code) for item in chosen.refused] == [("b-masklabel.png", "mask_without_image")]


def test_a_folder_called_mask_without_its_images_contains_images(source: Path, images_dir: Path) -> None:
    draw(source / "mask" / "a.png", 1)
    assert [path.name for path in import_paths([source], images_dir).added] == ["a.png"]


def test_imports_images_outside_set_folders_into_the_given_set(source: Path, images_dir: Path) -> None:
    draw(source / "5_cat" / "a.png", 1)
    draw(source / "b.png", 2)
    draw(source / "c.png", 3)
    report = import_paths([source], images_dir)
    assert sorted(tree(images_dir.parent)) == ["10_hero/b.png", "10_hero/c.png", "5_cat/a.png"]
    (note,) = report.notes
    assert "2 images" in note
    assert "10_hero" in note


def test_the_report_counts_what_was_imported(source: Path, images_dir: Path) -> None:
    draw(source / "a.png", 1)
    (source / "a.txt").write_text("one")
    (source / "broken.png").write_text("not an image")
    assert re.findall(r"\d+", import_paths([source], images_dir).lines()[-1]) == ["1", "1", "1"]
    assert re.findall(r"\d+", import_paths([source], images_dir).lines()[-1]) == ["0", "1", "1"]


class Killed(BaseException):
    """Ends an import as abruptly as a signal does: nothing of the studio catches it."""


@pytest.mark.parametrize("call", ["fsync", "link", "replace", "unlink"])
@pytest.mark.parametrize("number", range(4))
def test_an_image_is_complete_or_absent_wherever_an_import_ends(
    source: Path, images_dir: Path, monkeypatch: pytest.MonkeyPatch, call: str, number: int
) -> None:
    for name, shade in (("a.png", 1), ("b.png", 2)):
        draw(source / name, shade)
        (source / name).with_suffix(".txt").write_text(f"caption of {name}")
    expected = {f"10_hero/{name}": data for name, data in tree(source).items()}
    plain, calls = getattr(os, call), iter(range(100))

    def killed(*args: object, **kwargs: object) -> object:
        if next(calls) == number:
            raise Killed
        return plain(*args, **kwargs)

    monkeypatch.setattr(os, call, killed)
    try:
        import_paths([source], images_dir)
        was_killed = False
    except Killed:
        was_killed = True
    monkeypatch.undo()
    seen = {name: data for name, data in tree(images_dir.parent).items() if not name.startswith("10_hero/.")}
    assert seen.items() <= expected.items()
    assert was_killed or number > 0
    import_paths([source], images_dir)
    assert {name: data for name, data in tree(images_dir.parent).items() if ".tmp" not in name} == expected


def test_an_import_takes_up_no_name_that_another_one_wrote(
    source: Path, images_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without hard links, as on FAT, an existing file is not replaced either."""

    def refused(*args: object, **kwargs: object) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", refused)
    test_takes_another_name_if_a_concurrent_import_has_it(source, images_dir, monkeypatch)


def test_two_imports_of_the_same_images_add_each_once(source: Path, images_dir: Path) -> None:
    for shade in range(12):
        draw(source / f"{shade}.png", shade)
    with ThreadPoolExecutor(2) as pool:
        reports = list(pool.map(lambda _: import_paths([source], images_dir), range(2)))
    assert tree(images_dir) == tree(source)
    assert sorted(len(report.added) for report in reports) == [0, 12]
    assert sorted(len(report.skipped) for report in reports) == [0, 12]


def test_what_a_killed_import_left_is_removed(source: Path, images_dir: Path) -> None:
    draw(source / "a.png", 1)
    left = draw(images_dir / ".import-killed" / "b.png", 2)
    temporary = images_dir / ".c.png.x1.tmp.png"
    temporary.write_bytes(b"half")
    os.utime(temporary, (0, 0))
    import_paths([source], images_dir)
    assert not left.parent.exists()
    assert tree(images_dir) == tree(source)
