"""dataset.json: what the last scan of a project's dataset found, so that it need not be looked at anew each time.

Derived, except for `kept`, images that a curator looked at and decided to keep whatever the scan says, and `reviewed`,
images whose caption somebody read: both by content, so that they outlive a name and a scan. Paths are relative to the
dataset folder, so that a project may be renamed or copied.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import NamedTuple, Self, TypeVar

from pydantic import BaseModel, ValidationError

from lora_studio.dataset.buckets import Size
from lora_studio.dataset.curate import Proposal, proposals
from lora_studio.dataset.duplicates.find import DuplicateGroup
from lora_studio.dataset.duplicates.similarity import Diversity, Features
from lora_studio.dataset.images.decode import ImageInfo
from lora_studio.dataset.images.header_cache import Stamp, sha256_of, upright_size
from lora_studio.dataset.scan import ScanReport, with_similar
from lora_studio.files import write_atomic
from lora_studio.workspace.project import records_folder

MANIFEST = "dataset.json"  # beside the dataset folder of a project

Content = TypeVar("Content")


class _Stored(BaseModel):
    report: ScanReport | None = None
    stamps: dict[str, Stamp] = {}
    kept: list[str] = []
    reviewed: list[str] = []


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
    def of(cls, folder: Path) -> Self:
        """What is known about a dataset: a project's, one of its sets, or any other folder."""
        records = records_folder(folder)
        in_set = folder.resolve().parent.parent == records
        return cls.load(records / MANIFEST, folder.parent if in_set else folder)

    @classmethod
    def load(cls, file: Path, folder: Path) -> Self:
        """Read `file`; one that is missing or broken is an empty manifest, as it can be made again."""
        return cls._of(folder, _read(file))

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
        there = [info for info in stored.report.images if _unchanged(folder, info.path, stored)]
        found = _found.get(folder)
        if found is None or found.report is not stored.report or found.there != there:
            infos = {(path := folder / info.path): info.model_copy(update={"path": path}) for info in there}
            found = _Found(stored.report, there, infos, _groups(folder, stored.report, infos))
            _remember(_found, folder, found)
        return cls(folder, found.infos, found.groups, frozenset(stored.kept), stored)

    def changed(self, file: Path, images: Collection[Path]) -> Manifest | None:
        """What `load` gives after these images came, went or changed; None if `file` has another scan by now."""
        stored, report = _read(file), self.stored.report
        if stored.report is not report or stored.stamps is not self.stored.stamps:
            return None
        manifest = replace(self, kept=frozenset(stored.kept), stored=stored)
        if report is None or not images:
            return manifest
        infos = dict(self.infos)
        for path in images:
            infos.pop(path, None)
        wanted = {path.relative_to(self.folder): path for path in images}
        for info in report.images:
            if info.path in wanted and _unchanged(self.folder, info.path, stored):
                infos[wanted[info.path]] = info.model_copy(update={"path": wanted[info.path]})
        return replace(manifest, infos=infos, groups=_groups(self.folder, report, infos))

    def save(self, file: Path) -> None:
        """Write it atomically."""

        def fill(temporary: Path) -> None:
            temporary.write_bytes(_as_json(self.stored))
            _remember(_files, file, _File(_identity(temporary), self.stored))

        write_atomic(file, fill)

    def keep(self, sha256: str, *, kept: bool = True) -> Manifest:
        """This manifest with an image marked as one to keep, or no longer."""
        marked = self.kept | {sha256} if kept else self.kept - {sha256}
        return replace(self, kept=marked, stored=self.stored.model_copy(update={"kept": sorted(marked)}))

    @property
    def duplicates(self) -> list[list[Path]]:
        """The groups as the paths of their images, the one to keep first."""
        return [[group.keep, *group.reject] for group in self.groups]

    def size_of(self, image: Path) -> Size | None:
        """An image's upright width and height, from its header if it was not scanned; None if it is unreadable."""
        info = self.infos.get(image)
        if info is None:
            return upright_size(image)
        return (info.width, info.height) if info.readable else None

    def sha256_of(self, image: Path) -> str:
        """The hash of an image, from its bytes if it was not scanned; raises OSError if they cannot be read."""
        info = self.infos.get(image)
        return info.sha256 if info is not None and info.sha256 else sha256_of(image)

    @cached_property
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


def _unchanged(folder: Path, name: Path, stored: _Stored) -> bool:
    """Whether an image is there as it was when it was scanned."""
    try:
        stat = os.stat(f"{folder}/{name}")  # noqa: PTH116 - 10,000 paths take a tenth of a second to build
    except (OSError, ValueError):
        return False
    return stored.stamps.get(name.as_posix()) == (stat.st_mtime_ns, stat.st_size)


def _groups(folder: Path, report: ScanReport, infos: dict[Path, ImageInfo]) -> list[DuplicateGroup]:
    return [left for group in report.duplicate_groups if (left := _left(_placed(group, folder), infos))]


class _File(NamedTuple):
    """A file's content while its time of change, length and inode are these; nothing that is made of it changes it."""

    identity: tuple[int, int, int]
    stored: _Stored


class _Found(NamedTuple):
    """What a report comes to while of its images these are there; nothing that is made of it changes it."""

    report: ScanReport
    there: list[ImageInfo]
    infos: dict[Path, ImageInfo]
    groups: list[DuplicateGroup]


_files: dict[Path, _File] = {}
_found: dict[Path, _Found] = {}  # by dataset folder
KNOWN = 4  # the latest of both, so many of each, are remembered


def _identity(file: Path) -> tuple[int, int, int]:
    stat = file.stat()
    return stat.st_mtime_ns, stat.st_size, stat.st_ino


def _read(file: Path) -> _Stored:
    """What a file holds; what was read or written before is the same object while the file is the same."""
    try:
        identity = _identity(file)
        known = _files.get(file)
        if known is not None and known.identity == identity:
            return known.stored
        stored = _Stored.model_validate_json(file.read_bytes())
    except (OSError, ValidationError):
        return _Stored()
    _remember(_files, file, _File(identity, stored))
    return stored


def _remember(store: dict[Path, Content], place: Path, content: Content) -> None:
    store.pop(place, None)
    for oldest in list(store)[: 1 - KNOWN]:
        store.pop(oldest, None)
    store[place] = content


class _Scanned(NamedTuple):
    """The large part of a file, and its text."""

    report: ScanReport | None
    stamps: dict[str, Stamp]
    text: str


_latest = _Scanned(None, {}, "")


def _as_json(stored: _Stored) -> bytes:
    """A file's content. A mark leaves what was scanned as it is: its text is made once for many marks."""
    global _latest
    scanned = _latest
    if stored.report is not scanned.report or stored.stamps is not scanned.stamps or not scanned.text:
        text = stored.model_dump_json(include={"report", "stamps"}, indent=1)
        scanned = _latest = _Scanned(stored.report, stored.stamps, text.removesuffix("\n}"))
    marks = stored.model_dump_json(include={"kept", "reviewed"}, indent=1).removeprefix("{")
    return f"{scanned.text},{marks}\n".encode()


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
