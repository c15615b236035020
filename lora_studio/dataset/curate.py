"""Setting images aside, so that everything can be put back.

A rejected image, its captions and its masks are moved into a folder of rejects, never deleted. What is there, where it
was, why and when stands in a manifest beside it, which is written before a file is moved: whatever happens in between,
each file is in exactly one of the two places that its record names, and both moving and putting back can simply be
repeated. The manifest names places relative to itself, so that a project can be renamed, moved and copied.
"""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from lora_studio.dataset.captions.text import CAPTION_SUFFIXES
from lora_studio.dataset.duplicates.find import DuplicateKind
from lora_studio.dataset.images.decode import is_image_name
from lora_studio.dataset.images.masks import mask_files
from lora_studio.dataset.scan import Progress, ScanReport, scan
from lora_studio.errors import InputError, disk_errors
from lora_studio.files import sync_folder, write_text
from lora_studio.workspace.project import records_folder

REJECTED_FILE = "rejected.json"


class Move(BaseModel):
    """One file: `name` in the folder of rejects, `original` where it came from (absolute; in the manifest relative)."""

    model_config = ConfigDict(frozen=True)

    name: str
    original: Path


class Rejected(BaseModel):
    """One image set aside, with its captions and masks: `files` has the image first. `time` is seconds since 1970."""

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
    moved = reject(proposed, aside) if apply else []
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


def reject(proposed: Iterable[Proposal], rejected_dir: Path) -> list[Path]:
    """Move images with their captions and masks into `rejected_dir`; returns the images that were moved.

    An image whose caption belongs to another image too (the same stem) leaves caption and masks there. Images that are
    gone already are passed over. Raises InputError or DiskFullError; what was not moved then is where it was.
    """
    there = {item.path: item for item in proposed if item.path.is_file()}
    if not there:
        return []
    with disk_errors(rejected_dir):
        rejected_dir.mkdir(parents=True, exist_ok=True)
        names = _Names(rejected_dir)
        # What was recorded and then not moved, as the power was cut, is recorded anew.
        known = [entry for entry in _load(rejected_dir).entries if any(file.name in names for file in entry.files)]
        entries = [_new_entry(item, names) for item in there.values()]
        _save(rejected_dir, [*known, *entries])
        moves = [(file.original, rejected_dir / file.name) for entry in entries for file in entry.files]
        for source, target in moves:
            _move(source, target)
        _sync(moves)
    return list(there)


def rejected_images(rejected_dir: Path) -> list[Rejected]:
    """What lies in a folder of rejects, the latest first; raises InputError if its manifest cannot be read."""
    return [entry for entry in reversed(_load(rejected_dir).entries) if (rejected_dir / entry.files[0].name).is_file()]


def restore_images(rejected_dir: Path, images: Sequence[Path] | None = None) -> tuple[list[Path], list[Proposal]]:
    """Put images, captions and masks back where they were: all, or those whose original places are in `images`.

    Returns the images that are back, and those that stay because another file has taken their place, with the reason.
    Raises InputError or DiskFullError.
    """
    wanted = None if images is None else {_place(image) for image in images}
    back, kept, remaining = [], [], []
    moves: list[tuple[Path, Path]] = []
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
                moves.append((rejected_dir / file.name, file.original))
                _move(*moves[-1])
        if waiting:
            back.append(entry.image)
    _sync(moves)
    if (rejected_dir / REJECTED_FILE).exists():
        _save(rejected_dir, remaining)
    return back, kept


class _Names:
    """The names that are free in a folder of rejects, and who shares a caption in the folders that images come from.

    Each folder is listed once. Images that are to be moved count as moved.
    """

    def __init__(self, rejected_dir: Path) -> None:
        self._taken = {path.name.casefold() for path in rejected_dir.iterdir()}
        self._images: dict[Path, Counter[str]] = {}

    def __contains__(self, name: str) -> bool:
        return name.casefold() in self._taken

    def take(self, stem: str, suffixes: Sequence[str]) -> str:
        """A stem that leaves no name with these suffixes twice; they are taken from now on."""
        number, free = 0, stem
        while any(free + suffix in self for suffix in suffixes):
            number += 1
            free = f"{stem} ({number})"
        self._taken.update((free + suffix).casefold() for suffix in suffixes)
        return free

    def leave(self, image: Path) -> bool:
        """Count an image as moved; whether another image stays there that has the same stem."""
        images = self._images.get(image.parent)
        if images is None:
            with os.scandir(image.parent) as found:
                names = [file.name for file in found if is_image_name(file.name) and file.is_file()]
            images = self._images[image.parent] = Counter(name.rpartition(".")[0] for name in names)
        images[image.stem] -= 1
        return images[image.stem] > 0


def _new_entry(proposed: Proposal, names: _Names) -> Rejected:
    image = _place(proposed.path)
    shared = names.leave(image)
    endings = {image: image.suffix}
    if not shared:
        endings |= {file: suffix for suffix in CAPTION_SUFFIXES if (file := image.with_suffix(suffix)).is_file()}
        endings |= {file: _mask_ending(file, image) for file in mask_files(image)}
    stem = names.take(image.stem, list(endings.values()))
    files = [Move(name=stem + ending, original=file) for file, ending in endings.items()]
    return Rejected(files=files, reason=proposed.reason, time=time.time())


def _mask_ending(mask: Path, image: Path) -> str:
    """What follows the image's stem in the name of its mask among the rejects, where masks have no folder."""
    return mask.name.removeprefix(image.stem) if mask.parent == image.parent else f"-{mask.parent.name}{mask.suffix}"


def _move(source: Path, target: Path) -> None:
    if target.exists():
        raise InputError(f"{target} exists already.", "Move it away, then try again.", code="file_exists")
    source.replace(target)


def _sync(moves: Sequence[tuple[Path, Path]]) -> None:
    """Flush the folders that files were moved between, those that they came to first."""
    targets, sources = ([paths[side].parent for paths in moves] for side in (1, 0))
    for folder in dict.fromkeys([*targets, *sources]):
        sync_folder(folder)


def _place(file: Path) -> Path:
    """The absolute place of a file, which may be a link itself, by its folder's real name."""
    return file.parent.resolve() / file.name


def _load(rejected_dir: Path) -> _Manifest:
    file = rejected_dir / REJECTED_FILE
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
    write_text(rejected_dir / REJECTED_FILE, _Manifest(entries=relative).model_dump_json(indent=1) + "\n")


def _with_places(entries: Sequence[Rejected], change: Callable[[Path], Path]) -> list[Rejected]:
    """The entries with every original place changed."""
    return [
        entry.model_copy(
            update={"files": [file.model_copy(update={"original": change(file.original)}) for file in entry.files]}
        )
        for entry in entries
    ]
