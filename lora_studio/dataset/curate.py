"""Setting images aside, so that everything can be put back.

A rejected image and its captions are moved into a folder of rejects, never deleted. What is there, where it was, why
and when stands in a manifest beside it, which is written before a file is moved: whatever happens in between, each file
is in exactly one of the two places that its record names, and both moving and putting back can simply be repeated.
The manifest names places relative to itself, so that a project can be renamed, moved and copied.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from lora_studio.dataset.captions import SUFFIXES
from lora_studio.dataset.duplicates import DuplicateKind
from lora_studio.dataset.images import is_image_name
from lora_studio.dataset.scan import Progress, ScanReport, scan
from lora_studio.errors import InputError, disk_errors
from lora_studio.files import sync_folder, write_text
from lora_studio.project import records_folder

MANIFEST = "rejected.json"


class Move(BaseModel):
    """One file: `name` in the folder of rejects, `original` where it came from (absolute; in the manifest relative)."""

    model_config = ConfigDict(frozen=True)

    name: str
    original: Path


class Rejected(BaseModel):
    """One image set aside, with its captions: `files` has the image first. `time` is seconds since 1970."""

    model_config = ConfigDict(frozen=True)

    files: list[Move]
    reason: str
    time: float

    @property
    def image(self) -> Path:
        """Where the image was."""
        return self.files[0].original


class Proposal(BaseModel):
    """An image that would be set aside, and why."""

    model_config = ConfigDict(frozen=True)

    path: Path
    reason: str


class CurationReport(BaseModel):
    """What `curate` proposes, did, or put back. `kept` names files that could not be put back, with the reason."""

    model_config = ConfigDict(frozen=True)

    folder: Path
    rejected_dir: Path
    proposed: list[Proposal] = []
    rejected: list[Path] = []
    restored: list[Path] = []
    kept: list[Proposal] = []

    def lines(self) -> list[str]:
        """The report for people, a line for each image and one to sum up."""
        if self.restored or self.kept:
            lines = [f"put back {path}" for path in self.restored]
            lines += [f"not put back {item.path}: {item.reason}" for item in self.kept]
            return [*lines, f"{len(self.restored)} images are back."]
        if self.rejected:
            lines = [f"set aside {item.path}: {item.reason}" for item in self.proposed]
            return [*lines, f"{len(self.rejected)} images are in {self.rejected_dir}; --restore puts them back."]
        if self.proposed:
            lines = [f"would set aside {item.path}: {item.reason}" for item in self.proposed]
            return [*lines, f"{len(self.proposed)} images; --apply does it."]
        return ["Nothing to set aside or to put back."]


class _Manifest(BaseModel):
    entries: list[Rejected] = []


def curate(
    folder: Path | str,
    *,
    apply: bool = False,
    restore: bool = False,
    rejected_dir: Path | None = None,
    on_progress: Progress | None = None,
) -> CurationReport:
    """Show what a scan proposes to set aside, do it (`apply`), or put everything back (`restore`).

    Proposed are the copies of every duplicate group and unreadable files. `rejected_dir` is, by default, `rejected`
    beside the dataset folder of a project, else `rejected` in `folder`. Raises InputError for a folder without images
    (unless restoring) or a manifest that cannot be read.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"There is no folder {str(folder)!r}.", "Give a folder with images.", code="no_folder")
    aside = rejected_dir or default_rejected_dir(folder)
    if restore:
        back, kept = restore_images(aside)
        return CurationReport(folder=folder, rejected_dir=aside, restored=back, kept=kept)
    proposed = proposals(scan(folder, on_progress=on_progress))
    moved = []
    if apply:
        for item in proposed:
            moved += reject([item.path], aside, item.reason)
    return CurationReport(folder=folder, rejected_dir=aside, proposed=proposed, rejected=moved)


def default_rejected_dir(folder: Path) -> Path:
    """`rejected` of the project whose dataset `folder` is (or is a set of), else `rejected` in the folder."""
    return records_folder(folder) / "rejected"


def proposals(report: ScanReport) -> list[Proposal]:
    """What a scan's report proposes to set aside, each image once; similar images are for a person to judge."""
    found = {}
    for group in report.duplicate_groups:
        if group.kind is DuplicateKind.SIMILAR:
            continue
        for path, reason in zip(group.reject, group.reasons, strict=True):
            found[path] = f"{reason} of {group.keep.name}"
    for info in report.images:
        for issue in info.issues:
            if issue.code == "unreadable":
                found[info.path] = issue.message
    return [Proposal(path=path, reason=reason) for path, reason in sorted(found.items())]


def reject(images: Iterable[Path], rejected_dir: Path, reason: str) -> list[Path]:
    """Move images with their captions into `rejected_dir`; returns the images that were moved.

    An image whose caption belongs to another image too (the same stem) leaves the caption there. Images that are gone
    already are passed over. Raises InputError or DiskFullError; what was not moved then is where it was.
    """
    moved = []
    with disk_errors(rejected_dir):
        rejected_dir.mkdir(parents=True, exist_ok=True)
        for image in images:
            if not image.is_file():
                continue
            entry = _new_entry(image, rejected_dir, reason)
            manifest = _load(rejected_dir)
            _save(rejected_dir, [*manifest.entries, entry])
            for file in entry.files:
                _move(file.original, rejected_dir / file.name)
            moved.append(image)
    return moved


def rejected(rejected_dir: Path) -> list[Rejected]:
    """What lies in a folder of rejects, the latest first; raises InputError if its manifest cannot be read."""
    return [entry for entry in reversed(_load(rejected_dir).entries) if (rejected_dir / entry.files[0].name).is_file()]


def restore_images(rejected_dir: Path, images: Sequence[Path] | None = None) -> tuple[list[Path], list[Proposal]]:
    """Put images and captions back where they were: all, or those whose original places are in `images`.

    Returns the images that are back, and those that stay because another file has taken their place, with the reason.
    Raises InputError or DiskFullError.
    """
    wanted = None if images is None else {_place(image) for image in images}
    back, kept, remaining = [], [], []
    for entry in _load(rejected_dir).entries:
        if wanted is not None and entry.image not in wanted:
            remaining.append(entry)
            continue
        waiting = [file for file in entry.files if (rejected_dir / file.name).is_file()]
        taken = [file.original for file in waiting if file.original.exists()]
        if taken:
            kept.append(Proposal(path=entry.image, reason=f"there is a file {taken[0].name!r} in its place"))
            remaining.append(entry)
            continue
        with disk_errors(entry.image):
            # The caption first: an image that is back has its caption.
            for file in reversed(waiting):
                file.original.parent.mkdir(parents=True, exist_ok=True)
                _move(rejected_dir / file.name, file.original)
        if waiting:
            back.append(entry.image)
    if (rejected_dir / MANIFEST).exists():
        _save(rejected_dir, remaining)
    return back, kept


def _new_entry(image: Path, rejected_dir: Path, reason: str) -> Rejected:
    image = _place(image)
    with os.scandir(image.parent) as found:
        beside = [file for file in found if file.name.startswith(f"{image.stem}.") and file.name != image.name]
    sharing = any(is_image_name(file.name) and Path(file.name).stem == image.stem and file.is_file() for file in beside)
    captions = [] if sharing else [file for suffix in SUFFIXES if (file := image.with_suffix(suffix)).is_file()]
    stem = _free_stem(image, captions, rejected_dir)
    files = [Move(name=stem + file.suffix, original=file) for file in (image, *captions)]
    return Rejected(files=files, reason=reason, time=time.time())


def _free_stem(image: Path, captions: Sequence[Path], rejected_dir: Path) -> str:
    number = 0
    while True:
        stem = image.stem if not number else f"{image.stem} ({number})"
        if not any(os.path.lexists(rejected_dir / f"{stem}{file.suffix}") for file in (image, *captions)):
            return stem
        number += 1


def _move(source: Path, target: Path) -> None:
    if target.exists():
        raise InputError(f"{target} exists already.", "Move it away, then try again.", code="file_exists")
    source.replace(target)
    sync_folder(target.parent)
    sync_folder(source.parent)


def _place(file: Path) -> Path:
    """The absolute place of a file, which may be a link itself, by its folder's real name."""
    return file.parent.resolve() / file.name


def _load(rejected_dir: Path) -> _Manifest:
    file = rejected_dir / MANIFEST
    try:
        manifest = _Manifest.model_validate_json(file.read_bytes())
    except FileNotFoundError:
        return _Manifest()
    except (OSError, ValidationError) as error:
        raise InputError(
            f"{file} cannot be read: {error}", "Move the files beside it back by hand, then delete it.", code="manifest"
        ) from error
    home = rejected_dir.resolve()
    return _Manifest(entries=_with_places(manifest.entries, lambda place: Path(os.path.normpath(home / place))))


def _save(rejected_dir: Path, entries: Sequence[Rejected]) -> None:
    home = rejected_dir.resolve()
    relative = _with_places(entries, lambda place: Path(os.path.relpath(place, home)))
    write_text(rejected_dir / MANIFEST, _Manifest(entries=relative).model_dump_json(indent=1) + "\n")


def _with_places(entries: Sequence[Rejected], change: Callable[[Path], Path]) -> list[Rejected]:
    """The entries with every original place changed."""
    return [
        entry.model_copy(
            update={"files": [file.model_copy(update={"original": change(file.original)}) for file in entry.files]}
        )
        for entry in entries
    ]
