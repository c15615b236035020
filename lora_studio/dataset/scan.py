"""Scan a folder of images: size, hash and quality issues of each image, and groups of duplicates. Reads only."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Collection
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from lora_studio.dataset.duplicates.find import (
    DuplicateGroup,
    DuplicateKind,
    FingerprintedImage,
    ReportProgress,
    find_duplicates,
)
from lora_studio.dataset.duplicates.fingerprints import fingerprint
from lora_studio.dataset.duplicates.pools import cancel_on_exit
from lora_studio.dataset.duplicates.similarity import Diversity, Features, compare_features
from lora_studio.dataset.images.decode import ImageInfo, Issue, find_images, image_info
from lora_studio.dataset.quality import SIDE, downscale, quality_issues
from lora_studio.errors import InputError

Progress = Callable[[int, int], None]
FeaturesOf = Callable[[Collection[str]], Features]


class Resolution(BaseModel):
    """An image size in pixels, and the number of images that have it."""

    model_config = ConfigDict(frozen=True)

    width: int
    height: int
    count: int


class ScanSummary(BaseModel):
    """Counts over the whole folder. `issue_counts` is by code; `issues` are about the dataset as a whole."""

    model_config = ConfigDict(frozen=True)

    images: int
    readable: int
    duplicates: int
    issue_counts: dict[str, int]
    resolutions: list[Resolution]
    issues: list[Issue]


class ScanReport(BaseModel):
    """The result of a scan: the images in order of name, groups of duplicates, and a summary.

    If the images have been tagged, the groups include those of similar images, and `diversity` is set.
    """

    model_config = ConfigDict(frozen=True)

    images: list[ImageInfo]
    duplicate_groups: list[DuplicateGroup]
    summary: ScanSummary
    diversity: Diversity | None = None


def scan(
    folder: Path | str,
    *,
    on_progress: Progress | None = None,
    on_phase: Callable[[str], None] = lambda phase: None,
    workers: int | None = None,
    features_of: FeaturesOf = lambda sha256s: {},
) -> ScanReport:
    """Scan every image in `folder` and in its `N_name` subfolders with `workers` threads (default: one per core).

    Each image is decoded once. `on_progress(done, total)` is called with the progress of the current phase, which is
    reading the images at first; `on_phase` is called with the name of each later phase. `features_of` returns a
    tagger's features for those of the given hashes that have been tagged. An exception from a callback ends the scan.
    Raises InputError if there is no folder or no image.
    """
    folder = Path(folder)
    paths = find_images(folder)
    if not paths:
        raise InputError(
            f"There are no images in {str(folder)!r}.",
            "Give a folder with PNG, JPEG, WebP, BMP, GIF, TIFF or AVIF files, or with subfolders named like 10_name.",
            code="no_images",
        )
    progress = on_progress or (lambda done, total: None)
    workers = workers or os.cpu_count() or 1
    infos, entries = [], []
    with cancel_on_exit(ThreadPoolExecutor(workers)) as pool:
        for done, (info, entry) in enumerate(pool.map(scan_image, paths), 1):
            infos.append(info)
            if entry is not None:
                entries.append(entry)
            progress(done, len(paths))
    report_progress = _PhaseProgress(on_phase, progress)
    groups = find_duplicates(entries, report_progress=report_progress, workers=workers)
    report = ScanReport(images=infos, duplicate_groups=groups, summary=_summary(infos, groups))
    return with_similar(report, features_of({info.sha256 for info in infos}), report_progress=report_progress)


def with_similar(
    report: ScanReport, features: Features, *, report_progress: ReportProgress = lambda phase, done, total: None
) -> ScanReport:
    """Return the report with the groups of similar images and the diversity computed from a tagger's features."""
    groups = [group for group in report.duplicate_groups if group.kind is not DuplicateKind.SIMILAR]
    duplicates = {path for group in groups for path in group.reject}
    similar, diversity = compare_features(report.images, features, duplicates, report_progress)
    return report.model_copy(update={"duplicate_groups": [*groups, *similar], "diversity": diversity})


class _PhaseProgress:
    """Passes progress of the form (phase, done, total) on to a scan's two callbacks."""

    def __init__(self, on_phase: Callable[[str], None], on_progress: Progress) -> None:
        self.on_phase, self.on_progress, self.phase = on_phase, on_progress, ""

    def __call__(self, phase: str, done: int, total: int) -> None:
        if phase != self.phase:
            self.phase = phase
            self.on_phase(phase)
        if total:
            self.on_progress(done, total)


def scan_image(path: Path) -> tuple[ImageInfo, FingerprintedImage | None]:
    """Return an image's size, hash and issues, and its fingerprint, None if it is unreadable. Never raises."""
    info, picture = image_info(path, min_side=SIDE)
    if picture is None:
        return info, None
    small = downscale(picture.image)
    info = info.model_copy(update={"issues": [*info.issues, *quality_issues(picture, small)]})
    return info, FingerprintedImage(info=info, fingerprint=fingerprint(small), size_bytes=path.stat().st_size)


def _summary(infos: list[ImageInfo], groups: list[DuplicateGroup]) -> ScanSummary:
    sizes = Counter((info.width, info.height) for info in infos if info.readable)
    return ScanSummary(
        images=len(infos),
        readable=sizes.total(),
        duplicates=len({path for group in groups for path in group.reject}),
        issue_counts=dict(sorted(Counter(issue.code for info in infos for issue in info.issues).items())),
        resolutions=[Resolution(width=w, height=h, count=count) for (w, h), count in sizes.most_common()],
        issues=_mixed_resolutions(sizes),
    )


def _mixed_resolutions(sizes: Counter[tuple[int, int]]) -> list[Issue]:
    if len(sizes) < 2:
        return []
    by_area = sorted(sizes, key=lambda size: size[0] * size[1])
    (small_w, small_h), (large_w, large_h) = by_area[0], by_area[-1]
    return [
        Issue(
            code="mixed_resolutions",
            message=f"The images have {len(sizes)} sizes, from {small_w} x {small_h} to {large_w} x {large_h} px. "
            "Aspect-ratio buckets handle different shapes; very different sizes make training harder.",
        )
    ]
