"""Curation: set images aside so that each can be restored.

A rejected image is moved into the folder `rejected` with its captions and masks, never deleted. rejected.json in that
folder records each file's origin, the reason and the time, and is written before any file is moved. Whenever the
process is interrupted, each file is in exactly one of the two places of its record, and rejecting and restoring can be
repeated. The paths in rejected.json are relative to it, so that a project can be renamed, moved and copied.
"""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from lora_studio.dataset.captions.extension import known_suffixes
from lora_studio.dataset.change_lock import LOCK_SECONDS, change_lock
from lora_studio.dataset.duplicates.find import DuplicateKind
from lora_studio.dataset.images.decode import is_image_name
from lora_studio.dataset.images.masks import mask_files
from lora_studio.dataset.marks import load_marks
from lora_studio.dataset.scan import Progress, ScanReport, scan
from lora_studio.errors import InputError, disk_errors
from lora_studio.files import sync_folder, write_text
from lora_studio.plurals import format_count
from lora_studio.workspace.project import records_folder

REJECTED_FILE = "rejected.json"


class Move(BaseModel):
    """A file that was moved: its `name` in the rejected folder and its `original` path (relative in rejected.json)."""

    model_config = ConfigDict(frozen=True)

    name: str
    original: Path


class Rejected(BaseModel):
    """An image that was set aside, with captions and masks: `files` has the image first. `time`: s since 1970."""

    model_config = ConfigDict(frozen=True)

    files: list[Move]
    reason: str
    time: float

    @property
    def image(self) -> Path:
        """The path from which the image was moved."""
        return self.files[0].original


class Proposal(BaseModel):
    """An image that curation would set aside, and the reason."""

    model_config = ConfigDict(frozen=True)

    path: Path
    reason: str


class CurationReport(BaseModel):
    """The images that `curate` proposed, rejected or restored; `kept` are those that could not be restored, and why.

    `marked_kept` are images that the scan proposes, but that the user has marked as kept: they are never rejected.
    """

    model_config = ConfigDict(frozen=True)

    folder: Path
    rejected_dir: Path
    proposed: list[Proposal] = []
    rejected: list[Path] = []
    restored: list[Path] = []
    kept: list[Proposal] = []
    marked_kept: list[Proposal] = []

    def lines(self) -> list[str]:
        """Return the report as text, a line per image and a summary."""
        if self.restored or self.kept:
            lines = [f"restored {path}" for path in self.restored]
            lines += [f"not restored {item.path}: {item.reason}" for item in self.kept]
            return [*lines, f"{format_count(len(self.restored), 'image')} restored."]
        marked = [f"marked as kept {item.path}: {item.reason}" for item in self.marked_kept]
        if self.rejected:
            lines = [*marked, *(f"set aside {item.path}: {item.reason}" for item in self.proposed)]
            return [
                *lines,
                f"{format_count(len(self.rejected), 'image')} moved to {self.rejected_dir}; restore with --restore.",
            ]
        if self.proposed:
            lines = [*marked, *(f"would set aside {item.path}: {item.reason}" for item in self.proposed)]
            return [*lines, f"{format_count(len(self.proposed), 'image')} to set aside; apply with --apply."]
        return [*marked, "Nothing to set aside or restore."]


class _Record(BaseModel):
    entries: list[Rejected] = []


def curate(
    folder: Path | str,
    *,
    apply: bool = False,
    restore: bool = False,
    rejected_dir: Path | None = None,
    on_progress: Progress | None = None,
) -> CurationReport:
    """Return the images that a scan proposes to set aside, set them aside (`apply`), or restore all (`restore`).

    Proposed are the duplicates of every group and unreadable files, without the images that are marked as kept in
    marks.json. `rejected_dir` defaults to `rejected` beside the
    dataset folder of a project, else `rejected` in `folder`. Raises InputError if the folder has no images (unless
    restoring) or rejected.json cannot be read.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"There is no folder {str(folder)!r}.", "Give a folder with images.", code="no_folder")
    rejected_dir = rejected_dir or default_rejected_dir(folder)
    if restore:
        restored, kept = restore_images(rejected_dir)
        return CurationReport(folder=folder, rejected_dir=rejected_dir, restored=restored, kept=kept)
    report = scan(folder, on_progress=on_progress)
    hashes = load_marks(records_folder(folder)).kept
    marked = {info.path for info in report.images if info.sha256 in hashes}
    found = proposals(report)
    proposed = [item for item in found if item.path not in marked]
    moved = reject(proposed, rejected_dir) if apply else []
    return CurationReport(
        folder=folder,
        rejected_dir=rejected_dir,
        proposed=proposed,
        rejected=moved,
        marked_kept=[item for item in found if item.path in marked],
    )


def default_rejected_dir(folder: Path) -> Path:
    """Return the folder `rejected` of the project that `folder` is the dataset or a set of, else `folder/rejected`."""
    return records_folder(folder) / "rejected"


def proposals(report: ScanReport) -> list[Proposal]:
    """Return the images that a scan proposes to set aside, each once; similar images are left for the user to judge."""
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


def reject(proposed: Iterable[Proposal], rejected_dir: Path) -> list[Path]:
    """Move images with their captions and masks into `rejected_dir` and return the images that were moved.

    If another image has the same stem, and so the same caption, captions and masks stay. Images that no longer exist
    are skipped. Raises InputError or DiskFullError; files that were not moved by then are where they were.
    """
    existing = {item.path: item for item in proposed if item.path.is_file()}
    if not existing:
        return []
    with disk_errors(rejected_dir):
        rejected_dir.mkdir(parents=True, exist_ok=True)
    with disk_errors(rejected_dir), change_lock(rejected_dir.parent, seconds=LOCK_SECONDS):
        # Another program may have moved some of them meanwhile.
        existing = {path: item for path, item in existing.items() if path.is_file()}
        names = _Names(rejected_dir)
        # Entries whose files were never moved, because of a power loss, are recorded again.
        moved = [entry for entry in _load(rejected_dir).entries if any(file.name in names for file in entry.files)]
        entries = [_new_entry(item, names) for item in existing.values()]
        _save(rejected_dir, [*moved, *entries])
        moves = [(file.original, rejected_dir / file.name) for entry in entries for file in entry.files]
        for source, target in moves:
            _move(source, target)
        _sync(moves)
    return list(existing)


def rejected_images(rejected_dir: Path) -> list[Rejected]:
    """Return the images in a rejected folder, the latest first; raises InputError if rejected.json cannot be read."""
    return [entry for entry in reversed(_load(rejected_dir).entries) if (rejected_dir / entry.files[0].name).is_file()]


def restore_images(rejected_dir: Path, images: Sequence[Path] | None = None) -> tuple[list[Path], list[Proposal]]:
    """Move images, captions and masks back to their original paths: all, or only the images of these paths.

    Returns the images that were restored, and those that stay because another file has their path, with the reason.
    Raises InputError or DiskFullError.
    """
    if not (rejected_dir / REJECTED_FILE).exists():
        return [], []
    with disk_errors(rejected_dir), change_lock(rejected_dir.parent, seconds=LOCK_SECONDS):
        return _restore(rejected_dir, None if images is None else {_absolute(image) for image in images})


def _restore(rejected_dir: Path, wanted: set[Path] | None) -> tuple[list[Path], list[Proposal]]:
    restored, kept, remaining = [], [], []
    moves: list[tuple[Path, Path]] = []
    for entry in _load(rejected_dir).entries:
        if wanted is not None and entry.image not in wanted:
            remaining.append(entry)
            continue
        waiting = [file for file in entry.files if (rejected_dir / file.name).is_file()]
        taken = [file.original for file in waiting if file.original.exists()]
        if taken:
            kept.append(Proposal(path=entry.image, reason=f"another file is called {taken[0].name!r}"))
            remaining.append(entry)
            continue
        with disk_errors(entry.image):
            # The caption first: a restored image always has its caption.
            for file in reversed(waiting):
                file.original.parent.mkdir(parents=True, exist_ok=True)
                moves.append((rejected_dir / file.name, file.original))
                _move(*moves[-1])
        if waiting:
            restored.append(entry.image)
    _sync(moves)
    _save(rejected_dir, remaining)
    return restored, kept


class _Names:
    """Free names in a rejected folder, and which images share a stem in the folders that images are moved from.

    Each folder is listed once. Images that will be moved count as moved.
    """

    def __init__(self, rejected_dir: Path) -> None:
        self._taken = {path.name.casefold() for path in rejected_dir.iterdir()}
        self._images: dict[Path, Counter[str]] = {}

    def __contains__(self, name: str) -> bool:
        return name.casefold() in self._taken

    def reserve(self, stem: str, suffixes: Sequence[str]) -> str:
        """Return `stem`, numbered if necessary, such that no file has its name with one of the suffixes; reserve it."""
        number, free = 0, stem
        while any(free + suffix in self for suffix in suffixes):
            number += 1
            free = f"{stem} ({number})"
        self._taken.update((free + suffix).casefold() for suffix in suffixes)
        return free

    def remove_image(self, image: Path) -> bool:
        """Count an image as moved; return whether another image of the same stem stays in its folder."""
        images = self._images.get(image.parent)
        if images is None:
            with os.scandir(image.parent) as found:
                names = [file.name for file in found if is_image_name(file.name) and file.is_file()]
            images = self._images[image.parent] = Counter(name.rpartition(".")[0] for name in names)
        images[image.stem] -= 1
        return images[image.stem] > 0


def _new_entry(proposed: Proposal, names: _Names) -> Rejected:
    image = _absolute(proposed.path)
    shared = names.remove_image(image)
    endings = {image: image.suffix}
    if not shared:
        suffixes = known_suffixes(image.parent)
        endings |= {file: suffix for suffix in suffixes if (file := image.with_suffix(suffix)).is_file()}
        endings |= {file: _mask_ending(file, image) for file in mask_files(image)}
    stem = names.reserve(image.stem, list(endings.values()))
    files = [Move(name=stem + ending, original=file) for file, ending in endings.items()]
    return Rejected(files=files, reason=proposed.reason, time=time.time())


def _mask_ending(mask: Path, image: Path) -> str:
    """Return what follows the stem in the name of an image's mask in the rejected folder, which has no subfolders."""
    return mask.name.removeprefix(image.stem) if mask.parent == image.parent else f"-{mask.parent.name}{mask.suffix}"


def _move(source: Path, target: Path) -> None:
    if target.exists():
        raise InputError(f"{target} already exists.", "Move it away, then try again.", code="exists")
    source.replace(target)


def _sync(moves: Sequence[tuple[Path, Path]]) -> None:
    """Flush the folders that files were moved between to disk, the targets first."""
    targets, sources = ([paths[side].parent for paths in moves] for side in (1, 0))
    for folder in dict.fromkeys([*targets, *sources]):
        sync_folder(folder)


def _absolute(file: Path) -> Path:
    """Return the absolute path of a file with links in its folder resolved; the file may be a link itself."""
    return file.parent.resolve() / file.name


def _load(rejected_dir: Path) -> _Record:
    file = rejected_dir / REJECTED_FILE
    try:
        record = _Record.model_validate_json(file.read_bytes())
    except FileNotFoundError:
        return _Record()
    except (OSError, ValidationError) as error:
        raise InputError(
            f"{file} cannot be read: {error}", "Move the files beside it back by hand, then delete it.", code="manifest"
        ) from error
    home = rejected_dir.resolve()
    return _Record(entries=_with_paths(record.entries, lambda path: Path(os.path.normpath(home / path))))


def _save(rejected_dir: Path, entries: Sequence[Rejected]) -> None:
    home = rejected_dir.resolve()
    relative = _with_paths(entries, lambda path: Path(os.path.relpath(path, home)))
    write_text(rejected_dir / REJECTED_FILE, _Record(entries=relative).model_dump_json(indent=1) + "\n")


def _with_paths(entries: Sequence[Rejected], change: Callable[[Path], Path]) -> list[Rejected]:
    """Return the entries with every original path changed."""
    return [
        entry.model_copy(
            update={"files": [file.model_copy(update={"original": change(file.original)}) for file in entry.files]}
        )
        for entry in entries
    ]
