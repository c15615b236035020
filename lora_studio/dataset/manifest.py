"""dataset.json: what the last scan of a project's dataset found, so that it need not be looked at anew each time.

Derived, except for `kept`, images that a curator looked at and decided to keep whatever the scan says, and `reviewed`,
images whose caption somebody read: both by content, so that they outlive a name and a scan. Paths are relative to the
dataset folder, so that a project may be renamed or copied.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

from pydantic import BaseModel, ValidationError

from lora_studio.dataset.curate import Proposal, proposals
from lora_studio.dataset.duplicates import DuplicateGroup
from lora_studio.dataset.images import ImageInfo
from lora_studio.dataset.scan import ScanReport
from lora_studio.files import write_text

MANIFEST = "dataset.json"  # beside the dataset folder of a project

Stamp = tuple[int, int]  # time of the last change in ns, length in bytes


class _Stored(BaseModel):
    report: ScanReport | None = None
    stamps: dict[str, Stamp] = {}
    kept: list[str] = []
    reviewed: list[str] = []


def stamp_of(path: Path) -> Stamp:
    """What changes when a file does; raises OSError if it is gone."""
    stat = path.stat()
    return stat.st_mtime_ns, stat.st_size


@dataclass(frozen=True)
class Manifest:
    """What is known about the images of `folder`: only about those that are as they were when scanned.

    `infos` is by path, `groups` has copies that are still there (never fewer than two images), `kept` are SHA-256 of
    images to keep.
    """

    folder: Path
    infos: dict[Path, ImageInfo]
    groups: list[DuplicateGroup]
    kept: frozenset[str]
    stored: _Stored

    @classmethod
    def load(cls, file: Path, folder: Path) -> Self:
        """Read `file`; one that is missing or broken is an empty manifest, as it can be made again."""
        try:
            stored = _Stored.model_validate_json(file.read_bytes())
        except (OSError, ValidationError):
            stored = _Stored()
        return cls._of(folder, stored)

    @classmethod
    def of_scan(
        cls,
        folder: Path,
        report: ScanReport,
        stamps: dict[Path, Stamp],
        kept: frozenset[str],
        reviewed: frozenset[str] = frozenset(),
    ) -> Self:
        """A manifest of a scan; `stamps` were taken before it."""
        return cls._of(
            folder,
            _Stored(
                report=_with_paths(report, lambda path: path.relative_to(folder)),
                stamps={path.relative_to(folder).as_posix(): stamp for path, stamp in stamps.items()},
                kept=sorted(kept),
                reviewed=sorted(reviewed),
            ),
        )

    @classmethod
    def _of(cls, folder: Path, stored: _Stored) -> Self:
        if stored.report is None:
            return cls(folder, {}, [], frozenset(stored.kept), stored)
        report = _with_paths(stored.report, lambda path: folder / path)
        infos = {}
        for info in report.images:
            stamp = stored.stamps.get(info.path.relative_to(folder).as_posix())
            try:
                if stamp == stamp_of(info.path):
                    infos[info.path] = info
            except OSError:
                continue
        groups = [left for group in report.duplicate_groups if (left := _left(group, infos))]
        return cls(folder, infos, groups, frozenset(stored.kept), stored)

    def save(self, file: Path) -> None:
        """Write it atomically."""
        write_text(file, self.stored.model_dump_json(indent=1) + "\n")

    def keep(self, sha256: str, *, kept: bool = True) -> Manifest:
        """This manifest with an image marked as one to keep, or no longer."""
        marked = self.kept | {sha256} if kept else self.kept - {sha256}
        return Manifest._of(self.folder, self.stored.model_copy(update={"kept": sorted(marked)}))

    @property
    def reviewed(self) -> frozenset[str]:
        """SHA-256 of the images whose caption somebody read."""
        return frozenset(self.stored.reviewed)

    def review(self, hashes: Iterable[str], *, reviewed: bool = True) -> Manifest:
        """This manifest with images ticked as reviewed, or no longer."""
        marked = self.reviewed | set(hashes) if reviewed else self.reviewed - set(hashes)
        return replace(self, stored=self.stored.model_copy(update={"reviewed": sorted(marked)}))

    def proposals(self) -> list[Proposal]:
        """What there is to set aside: copies and unreadable files, without those that were marked to be kept."""
        report = self.stored.report
        if report is None:
            return []
        current = report.model_copy(update={"images": list(self.infos.values()), "duplicate_groups": self.groups})
        return [item for item in proposals(current) if self.infos[item.path].sha256 not in self.kept]


def _left(group: DuplicateGroup, infos: dict[Path, ImageInfo]) -> DuplicateGroup | None:
    """The group without images that are gone; None if no copy is left, or nothing that they are copies of."""
    copies = [(path, reason) for path, reason in zip(group.reject, group.reasons, strict=True) if path in infos]
    if not copies or group.keep not in infos:
        return None
    return group.model_copy(
        update={"reject": [path for path, _ in copies], "reasons": [reason for _, reason in copies]}
    )


def _with_paths(report: ScanReport, change: Callable[[Path], Path]) -> ScanReport:
    return report.model_copy(
        update={
            "images": [info.model_copy(update={"path": change(info.path)}) for info in report.images],
            "duplicate_groups": [
                group.model_copy(update={"keep": change(group.keep), "reject": [change(path) for path in group.reject]})
                for group in report.duplicate_groups
            ],
        }
    )
