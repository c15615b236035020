"""Looking at a folder of images: what each is, what is wrong with it, which are copies. Reads only."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from lora_studio.dataset.duplicates import DuplicateGroup, Entry, find_duplicates
from lora_studio.dataset.fingerprints import DECODE_SIDE, fingerprint
from lora_studio.dataset.images import ImageInfo, Issue, find_images, image_info
from lora_studio.errors import InputError

Progress = Callable[[int, int], None]


class Resolution(BaseModel):
    """How many images have one size, in pixels."""

    model_config = ConfigDict(frozen=True)

    width: int
    height: int
    count: int


class ScanSummary(BaseModel):
    """Counts over the whole folder. `issue_counts` is by code, `issues` are about the dataset as a whole."""

    model_config = ConfigDict(frozen=True)

    images: int
    readable: int
    duplicates: int
    issue_counts: dict[str, int]
    resolutions: list[Resolution]
    issues: list[Issue]


class ScanReport(BaseModel):
    """What a scan found: the images in order of name, groups of copies, and a summary."""

    model_config = ConfigDict(frozen=True)

    images: list[ImageInfo]
    duplicate_groups: list[DuplicateGroup]
    summary: ScanSummary


def scan(folder: Path | str, *, on_progress: Progress | None = None, workers: int | None = None) -> ScanReport:
    """Look at every image of `folder` and of its `N_name` subfolders, in `workers` threads (default: one a core).

    `on_progress(done, total)` is called as images are read. Raises InputError if there is no folder or no image.
    """
    folder = Path(folder)
    paths = find_images(folder)
    if not paths:
        raise InputError(
            f"There are no images in {str(folder)!r}.",
            "Give a folder with PNG, JPEG, WebP, BMP, GIF, TIFF or AVIF files, or with subfolders named like 10_name.",
            code="no_images",
        )
    infos, entries = [], []
    with ThreadPoolExecutor(workers or os.cpu_count() or 1) as pool:
        for done, (info, entry) in enumerate(pool.map(_look, paths), 1):
            infos.append(info)
            if entry is not None:
                entries.append(entry)
            if on_progress:
                on_progress(done, len(paths))
    groups = find_duplicates(entries)
    return ScanReport(images=infos, duplicate_groups=groups, summary=_summary(infos, groups))


def _look(path: Path) -> tuple[ImageInfo, Entry | None]:
    info, image = image_info(path, at_least=DECODE_SIDE)
    if image is None:
        return info, None
    return info, Entry(info=info, print=fingerprint(image), size_bytes=path.stat().st_size)


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
            "Aspect-ratio buckets take care of shapes; very different sizes confuse training.",
        )
    ]
