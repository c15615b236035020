from __future__ import annotations

import os
from pathlib import Path

from PIL import Image

from lora_studio.dataset.images.decode import ImageInfo
from lora_studio.dataset.manifest import Manifest, scan_stamps
from lora_studio.dataset.scan import ScanReport, ScanSummary
from lora_studio.planning.folders import count_images
from lora_studio.workspace.project import Home


def save(path: Path, size: tuple[int, int]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, "orange").save(path)


def test_counts_images_from_the_last_scan_unless_they_changed(tmp_path: Path) -> None:
    project = Home(tmp_path).create_project("a")
    images = [project.images_dir / f"{number}.png" for number in range(4)]
    for path in images:
        save(path, (640, 480))
        os.utime(path, (1e9, 1e9))  # not changed just before the scan: its content need not be compared
    (project.images_dir / "0.caption").write_text("ohwx")
    infos = [ImageInfo(path=path, width=512, height=768, sha256=path.stem) for path in images[:3]]
    infos[2] = infos[2].model_copy(update={"width": 0, "height": 0})
    summary = ScanSummary(images=3, readable=2, duplicates=0, issue_counts={}, resolutions=[], issues=[])
    report = ScanReport(images=infos, duplicate_groups=[], summary=summary)
    stamps = scan_stamps(images[:3])
    Manifest.of_scan(project.dataset_dir, report, stamps).save_scan(project.path)
    counts = count_images(project.dataset_dir)
    assert counts.all_sizes() == [(512, 768), (512, 768), (640, 480)]
    assert counts.unreadable == ["2.png"]
    assert counts.without_caption == ["1.png", "3.png"]
    save(images[0], (800, 600))
    os.utime(images[0], (1, 1))
    assert count_images(project.dataset_dir).all_sizes() == [(800, 600), (512, 768), (640, 480)]
