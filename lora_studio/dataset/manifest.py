"""What is known about the images of a dataset: scan.json, the result of the last scan, and the user's marks.

scan.json is derived and can be rebuilt by a scan. Its paths are relative to the dataset folder, so that a project can
be renamed, moved and copied. Only images that are unchanged since the scan are taken from it.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Collection, Iterable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Self

from pydantic import TypeAdapter, ValidationError

from lora_studio.dataset.buckets import Focus, Size
from lora_studio.dataset.curate import Proposal, proposals
from lora_studio.dataset.duplicates.find import DuplicateGroup
from lora_studio.dataset.duplicates.similarity import Diversity, Features
from lora_studio.dataset.images.decode import ImageInfo
from lora_studio.dataset.images.header_cache import sha256_of, upright_size
from lora_studio.dataset.marks import LEGACY_FILE, Marks, load_marks
from lora_studio.dataset.scan import ScanReport, with_similar
from lora_studio.files import cached_by_stamp, file_stamp, is_racy, write_bytes
from lora_studio.workspace.project import records_folder

SCAN_FILE = "scan.json"

Stamp = tuple[int, int]  # time of change in ns and size in bytes: both survive when a project is copied
_RACY = 0  # instead of the time of change: it shows no later change, so the content must be compared


@dataclass(frozen=True, eq=False)
class StoredScan:
    """The content of scan.json: a report with relative paths, and the stamp of each image when the scan began."""

    report: ScanReport
    stamps: dict[str, Stamp]


_ADAPTER = TypeAdapter(StoredScan)


@dataclass(frozen=True)
class Manifest:
    """What is known about the images of `folder` that are unchanged since the last scan.

    `infos` is by path; `groups` are the groups of duplicates, each with two existing images at least.
    """

    folder: Path
    infos: dict[Path, ImageInfo]
    groups: list[DuplicateGroup]
    marks: Marks
    scan: StoredScan | None = field(compare=False, repr=False)

    @classmethod
    def of(cls, folder: Path) -> Self:
        """Load the manifest of a dataset: a project's, one of its sets, or any other folder with images."""
        records = records_folder(folder)
        in_set = folder.resolve().parent.parent == records
        return cls.load(records, folder.parent if in_set else folder)

    @classmethod
    def load(cls, records: Path, folder: Path) -> Self:
        """Load the manifest of the dataset `folder` from the scan and the marks that the folder `records` has.

        A scan or marks that are missing or damaged are taken as none.
        """
        return cls._of(folder, load_scan(records), load_marks(records))

    @classmethod
    def of_scan(cls, folder: Path, report: ScanReport, stamps: dict[Path, Stamp], marks: Marks | None = None) -> Self:
        """Return the manifest of a scan; `stamps` are those of `scan_stamps`, taken before it."""
        relative = _with_paths(report, lambda path: path.relative_to(folder))
        by_name = {path.relative_to(folder).as_posix(): stamp for path, stamp in stamps.items()}
        return cls._of(folder, StoredScan(relative, by_name), marks or Marks())

    @classmethod
    def _of(cls, folder: Path, scan: StoredScan | None, marks: Marks) -> Self:
        if scan is None:
            return cls(folder, {}, [], marks, None)
        unchanged = bytes(_is_unchanged(folder, info, scan) for info in scan.report.images)
        infos, groups = _existing(folder, scan, unchanged)
        return cls(folder, infos, groups, marks, scan)

    def refreshed(self, records: Path, images: Collection[Path]) -> Manifest | None:
        """Return what `load` would, after `images` were added, removed or changed; None if there was another scan."""
        if load_scan(records) is not self.scan:
            return None
        manifest = replace(self, marks=load_marks(records))
        if self.scan is None or not images:
            return manifest
        infos = dict(self.infos)
        for path in images:
            infos.pop(path, None)
        wanted = {path.relative_to(self.folder): path for path in images}
        for info in self.scan.report.images:
            if info.path in wanted and _is_unchanged(self.folder, info, self.scan):
                infos[wanted[info.path]] = info.model_copy(update={"path": wanted[info.path]})
        return replace(manifest, infos=infos, groups=_existing_groups(self.folder, self.scan.report, infos))

    def save_scan(self, records: Path) -> None:
        """Write scan.json into `records` atomically. Raises DiskFullError or InputError."""
        if self.scan is not None:
            write_bytes(records / SCAN_FILE, _ADAPTER.dump_json(self.scan, indent=1) + b"\n")

    def with_features(self, features: Features) -> Manifest:
        """Return this manifest with the groups of similar images and the diversity by a tagger's features."""
        if self.scan is None:
            return self
        scan = replace(self.scan, report=with_similar(self.scan.report, features))
        return Manifest._of(self.folder, scan, self.marks)

    def focus_of(self, image: Path, sha256: str = "") -> Focus | None:
        """Return the focus point of an image, None if its crop is central; raises OSError if it cannot be read.

        `sha256` is its hash if that is known.
        """
        return self.marks.focus.get(sha256 or self.sha256_of(image)) if self.marks.focus else None

    @property
    def duplicates(self) -> list[list[Path]]:
        """The groups of duplicates as the paths of their images, the one to keep first."""
        return [[group.keep, *group.reject] for group in self.groups]

    def size_of(self, image: Path) -> Size | None:
        """Return an image's upright width and height, from its header if it was not scanned; None if unreadable."""
        info = self.infos.get(image)
        if info is None:
            return upright_size(image)
        return (info.width, info.height) if info.readable else None

    def sha256_of(self, image: Path) -> str:
        """Return the hash of an image, from its bytes if it was not scanned; raises OSError if it cannot be read."""
        info = self.infos.get(image)
        return info.sha256 if info is not None and info.sha256 else sha256_of(image)

    @property
    def diversity(self) -> Diversity | None:
        """The diversity of the images when they were compared, with the most similar pairs whose images still exist."""
        found = self.scan.report.diversity if self.scan else None
        if found is None:
            return None
        pairs = [
            pair.model_copy(update={"first": self.folder / pair.first, "second": self.folder / pair.second})
            for pair in found.pairs
        ]
        existing = [pair for pair in pairs if pair.first in self.infos and pair.second in self.infos]
        return found.model_copy(update={"pairs": existing})

    def proposals(self) -> list[Proposal]:
        """Return what to set aside: duplicates and unreadable files, without the images that are marked as kept."""
        if self.scan is None:
            return []
        current = self.scan.report.model_copy(
            update={"images": list(self.infos.values()), "duplicate_groups": self.groups}
        )
        return [item for item in proposals(current) if self.infos[item.path].sha256 not in self.marks.kept]


def load_scan(records: Path) -> StoredScan | None:
    """Return the scan in the folder `records`, None if there is none or it is damaged.

    While the content of scan.json stays the same, so does the object that is returned.
    """
    for name in (SCAN_FILE, LEGACY_FILE):
        try:
            return _read_scan(records / name)
        except FileNotFoundError:
            continue
        except OSError:
            return None
    return None


@cached_by_stamp(maxsize=4)
def _read_scan(file: Path) -> StoredScan | None:
    return _parsed(file.read_bytes())


@lru_cache(maxsize=2)
def _parsed(data: bytes) -> StoredScan | None:
    """Return the scan in a file's content; cached as well, as 10,000 images take 0.2 s and a new scan.json is racy."""
    try:
        return _ADAPTER.validate_json(data)
    except ValidationError:
        return None


def scan_stamps(images: Iterable[Path]) -> dict[Path, Stamp]:
    """Return the stamps of images, to be taken before a scan; images that no longer exist are left out."""
    now = time.time_ns()
    stamps = {}
    for path in images:
        with suppress(OSError):
            stamp = file_stamp(path)
            changed, size, *_ = stamp
            stamps[path] = (_RACY if is_racy(stamp, now) else changed, size)
    return stamps


def _is_unchanged(folder: Path, info: ImageInfo, scan: StoredScan) -> bool:
    """Return whether an image of a scan exists and is as it was then."""
    try:
        stat = os.stat(f"{folder}/{info.path}")  # noqa: PTH116 - 10,000 paths take a tenth of a second to build
    except (OSError, ValueError):
        return False
    stored = scan.stamps.get(info.path.as_posix())
    if stored == (_RACY, stat.st_size):
        with suppress(OSError):
            return sha256_of(folder / info.path) == info.sha256
    return stored == (stat.st_mtime_ns, stat.st_size)


@lru_cache(maxsize=4)
def _existing(folder: Path, scan: StoredScan, unchanged: bytes) -> tuple[dict[Path, ImageInfo], list[DuplicateGroup]]:
    """Return the images of a scan whose flag in `unchanged` is 1, by path, and their groups; no caller changes them."""
    images = [info for info, flag in zip(scan.report.images, unchanged, strict=True) if flag]
    infos = {(path := folder / info.path): info.model_copy(update={"path": path}) for info in images}
    return infos, _existing_groups(folder, scan.report, infos)


def _existing_groups(folder: Path, report: ScanReport, infos: dict[Path, ImageInfo]) -> list[DuplicateGroup]:
    groups = (_with_group_paths(group, lambda path: folder / path) for group in report.duplicate_groups)
    return [left for group in groups if (left := _existing_group(group, infos))]


def _existing_group(group: DuplicateGroup, infos: dict[Path, ImageInfo]) -> DuplicateGroup | None:
    """Return the group without images that no longer exist; None if fewer than two are left, or not the one to keep."""
    left = [(path, reason) for path, reason in zip(group.reject, group.reasons, strict=True) if path in infos]
    if not left or group.keep not in infos:
        return None
    return group.model_copy(update={"reject": [path for path, _ in left], "reasons": [reason for _, reason in left]})


def _with_group_paths(group: DuplicateGroup, change: Callable[[Path], Path]) -> DuplicateGroup:
    return group.model_copy(update={"keep": change(group.keep), "reject": [change(path) for path in group.reject]})


def _with_paths(report: ScanReport, change: Callable[[Path], Path]) -> ScanReport:
    """Return the report with every path changed."""
    pairs = [
        pair.model_copy(update={"first": change(pair.first), "second": change(pair.second)})
        for pair in (report.diversity.pairs if report.diversity else [])
    ]
    return report.model_copy(
        update={
            "images": [info.model_copy(update={"path": change(info.path)}) for info in report.images],
            "duplicate_groups": [_with_group_paths(group, change) for group in report.duplicate_groups],
            "diversity": report.diversity and report.diversity.model_copy(update={"pairs": pairs}),
        }
    )
