"""dataset.json: what the last scan of a project's dataset found, so that it need not be looked at anew each time.

Derived, except for `kept`, images that a curator looked at and decided to keep whatever the scan says, and `reviewed`,
images whose caption somebody read: both by content, so that they outlive a name and a scan. Paths are relative to the
dataset folder, so that a project may be renamed or copied.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Self

from pydantic import BaseModel, ValidationError

from lora_studio.dataset.curate import Proposal, proposals
from lora_studio.dataset.duplicates import DuplicateGroup
from lora_studio.dataset.images import ImageInfo
from lora_studio.dataset.scan import ScanReport, with_similar
from lora_studio.dataset.similarity import Diversity, Features
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
            stored = _parsed(file, stamp_of(file))
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
        infos = {}
        place = os.fspath(folder)
        for info in stored.report.images:
            name = info.path.as_posix()
            stamp = stored.stamps.get(name)
            try:
                stat = os.stat(f"{place}/{name}")  # noqa: PTH116 - 10,000 paths take a tenth of a second to build
            except (OSError, ValueError):
                continue
            if stamp == (stat.st_mtime_ns, stat.st_size):
                path = folder / info.path
                infos[path] = info.model_copy(update={"path": path})
        groups = [left for group in stored.report.duplicate_groups if (left := _left(_placed(group, folder), infos))]
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

    def compared(self, features: Features) -> Manifest:
        """This manifest with groups of similar images and the diversity as a tagger's features have them."""
        report = self.stored.report
        if report is None:
            return self
        return Manifest._of(self.folder, self.stored.model_copy(update={"report": with_similar(report, features)}))

    @property
    def diversity(self) -> Diversity | None:
        """How varied the images were when they were compared, and the most alike pairs of those that are there."""
        found = self.stored.report.diversity if self.stored.report else None
        if found is None:
            return None
        pairs = [
            pair.model_copy(update={"first": self.folder / pair.first, "second": self.folder / pair.second})
            for pair in found.pairs
        ]
        there = [pair for pair in pairs if pair.first in self.infos and pair.second in self.infos]
        return found.model_copy(update={"pairs": there})

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


@lru_cache(maxsize=4)
def _parsed(file: Path, stamp: Stamp) -> _Stored:
    """A file as it is while it has that stamp; nothing that is made of it changes it."""
    return _Stored.model_validate_json(file.read_bytes())


def _placed(group: DuplicateGroup, folder: Path) -> DuplicateGroup:
    return group.model_copy(update={"keep": folder / group.keep, "reject": [folder / path for path in group.reject]})


def _with_paths(report: ScanReport, change: Callable[[Path], Path]) -> ScanReport:
    return report.model_copy(
        update={
            "images": [info.model_copy(update={"path": change(info.path)}) for info in report.images],
            "duplicate_groups": [
                group.model_copy(update={"keep": change(group.keep), "reject": [change(path) for path in group.reject]})
                for group in report.duplicate_groups
            ],
            "diversity": report.diversity
            and report.diversity.model_copy(
                update={
                    "pairs": [
                        pair.model_copy(update={"first": change(pair.first), "second": change(pair.second)})
                        for pair in report.diversity.pairs
                    ]
                }
            ),
        }
    )
