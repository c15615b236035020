"""Thousands of small synthetic images with captions, and the result of a scan of them that is written, not computed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from lora_studio.dataset.duplicates.find import DuplicateGroup, DuplicateKind
from lora_studio.dataset.images.decode import ImageInfo, file_sha256, find_images
from lora_studio.dataset.manifest import Manifest, scan_stamps
from lora_studio.dataset.scan import ScanReport, ScanSummary
from lora_studio.workspace.project import Project

COPIES = 20  # every 20th image is a duplicate


def make_images(folder: Path, number: int) -> None:
    """Write different images, each of a few soft spots, with captions."""
    source = np.random.default_rng(0)
    for index in range(number):
        if index % COPIES != COPIES - 1:
            spots = source.integers(0, 256, (6, 6, 3), dtype=np.uint8)
            image = Image.fromarray(spots).resize((96, 96), Image.Resampling.BICUBIC)
        image.save(folder / f"{index:05d}.png")
        (folder / f"{index:05d}.txt").write_text(f"ohwx, thing {index % 100}, round", "utf-8")


def write_scan(project: Project) -> None:
    """Write the result of a scan that found the duplicates and nothing else."""
    infos, groups = [], []
    images = find_images(project.dataset_dir)
    for path in images:
        infos.append(ImageInfo(path=path, width=96, height=96, sha256=file_sha256(path)))
        if len(infos) % COPIES == 0:
            groups.append(
                DuplicateGroup(
                    keep=infos[-2].path,
                    reject=[path],
                    kind=DuplicateKind.EXACT,
                    distance=0,
                    reason="exact duplicate",
                    reasons=["exact duplicate"],
                )
            )
    summary = ScanSummary(
        images=len(infos), readable=len(infos), duplicates=len(groups), issue_counts={}, resolutions=[], issues=[]
    )
    report = ScanReport(images=infos, duplicate_groups=groups, summary=summary)
    Manifest.of_scan(project.dataset_dir, report, scan_stamps(images)).save_scan(project.path)
