"""The scan of a folder."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
from PIL import Image

from lora_studio.dataset import scan as module
from lora_studio.dataset.duplicates.find import CHOOSE, COMPARE_HASHES, VERIFY
from lora_studio.dataset.scan import scan
from lora_studio.errors import InputError
from tests.support.scenes import CHANGES, photo, save


def test_reports_the_images_of_all_sets(tmp_path: Path) -> None:
    save(photo(1, (640, 520)), tmp_path / "10_hero" / "a.png")
    save(photo(2, (640, 520)), tmp_path / "10_hero" / "b.jpg")
    save(CHANGES["resized to 50%"](photo(1, (640, 520))), tmp_path / "5_more" / "a.png")
    (tmp_path / "5_more" / "text.png").write_text("no image")
    save(photo(3), tmp_path / "not a set" / "c.png")
    seen: list[tuple[int, int]] = []
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    phases: list[str] = []
    report = scan(tmp_path, on_progress=lambda done, total: seen.append((done, total)), on_phase=phases.append)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    assert [(image.path.relative_to(tmp_path).as_posix(), image.width, image.height) for image in report.images] == [
        ("10_hero/a.png", 640, 520),
        ("10_hero/b.jpg", 640, 520),
        ("5_more/a.png", 320, 260),
        ("5_more/text.png", 0, 0),
    ]
    assert report.images[0].sha256 == hashlib.sha256((tmp_path / "10_hero" / "a.png").read_bytes()).hexdigest()
    (group,) = report.duplicate_groups
    assert (group.keep, group.reject) == (tmp_path / "10_hero" / "a.png", [tmp_path / "5_more" / "a.png"])
    summary = report.summary
    assert (summary.images, summary.readable, summary.duplicates) == (4, 3, 1)
    assert summary.issue_counts == {"too_small": 1, "unreadable": 1}
    assert [(item.width, item.height, item.count) for item in summary.resolutions] == [(640, 520, 2), (320, 260, 1)]
    assert [issue.code for issue in summary.issues] == ["mixed_resolutions"]
    for size in ("320 x 260", "640 x 520"):
        assert size in summary.issues[0].message
    assert seen[:4] == [(done, 4) for done in range(1, 5)]
    assert phases == [COMPARE_HASHES, VERIFY, CHOOSE]


def test_images_of_one_size_give_no_mixed_resolutions(tmp_path: Path) -> None:
    for index in range(2):
        Image.new("RGB", (600, 600), (90 * index, 9, 9)).save(tmp_path / f"{index}.png")
    assert scan(tmp_path).summary.issues == []


def test_the_number_of_workers_does_not_change_the_report(tmp_path: Path) -> None:
    for seed in range(5):
        save(photo(seed % 3), tmp_path / f"{seed}.png")
    assert scan(tmp_path, workers=1) == scan(tmp_path, workers=4)


def test_an_exception_in_a_callback_stops_the_scan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for seed in range(40):
        save(photo(seed, (64, 64)), tmp_path / f"{seed:02d}.png")
    read: list[Path] = []
    scan_image = module.scan_image
    monkeypatch.setattr(module, "scan_image", lambda path: [read.append(path), scan_image(path)][1])

    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        scan(tmp_path, on_progress=stop, workers=2)
    assert len(read) < 40


def test_scans_a_folder_of_unreadable_files(tmp_path: Path) -> None:
    (tmp_path / "a.png").touch()
    report = scan(tmp_path)
    assert (report.summary.readable, report.duplicate_groups) == (0, [])


def test_refuses_a_folder_that_is_empty_or_missing(tmp_path: Path) -> None:
    for folder, code in ((tmp_path, "no_images"), (tmp_path / "gone", "no_folder")):
        with pytest.raises(InputError) as caught:
            scan(folder)
        assert caught.value.code == code
