"""marks.json: a user's decisions about the images of a dataset, the one record that no scan can rebuild.

Marks are stored by the SHA-256 of the image file, so that they survive renamed files and further scans. That an image
is reviewed holds for the captions that the user has seen: another caption has to be reviewed again.
"""

from __future__ import annotations

import hashlib
import itertools
import logging
from collections.abc import Callable, Iterable
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError, field_serializer

from lora_studio.dataset.buckets import Focus
from lora_studio.errors import InputError, disk_errors
from lora_studio.file_lock import change_file
from lora_studio.files import cached_by_stamp, write_text

MARKS_FILE = "marks.json"
LEGACY_FILE = "dataset.json"  # of earlier versions: marks and scan in one file; read while marks.json does not exist

_log = logging.getLogger(__name__)


class Marks(BaseModel):
    """SHA-256 of the images that curation keeps whatever a scan proposes, and of those whose caption is reviewed.

    `reviewed_captions` has hashes of the captions that were reviewed, by image. A mark of an earlier version has none
    and holds for any caption. `focus` has the points that crops are centred on, by image.
    """

    model_config = ConfigDict(frozen=True)

    kept: frozenset[str] = frozenset()
    reviewed: frozenset[str] = frozenset()
    reviewed_captions: dict[str, frozenset[str]] = {}
    focus: dict[str, Focus] = {}

    @field_serializer("kept", "reviewed")
    def _in_order(self, hashes: frozenset[str]) -> list[str]:
        return sorted(hashes)

    @field_serializer("reviewed_captions")
    def _captions_in_order(self, captions: dict[str, frozenset[str]]) -> dict[str, list[str]]:
        return {image: sorted(hashes) for image, hashes in sorted(captions.items())}

    def is_reviewed(self, sha256: str, caption: str | None) -> bool:
        """Return whether an image is marked as reviewed with this caption."""
        if sha256 not in self.reviewed:
            return False
        return sha256 not in self.reviewed_captions or caption_hash(caption) in self.reviewed_captions[sha256]

    def with_kept(self, hashes: Iterable[str], *, kept: bool = True) -> Marks:
        """Return these marks with images marked as kept, or no longer so."""
        return self.model_copy(update={"kept": self.kept | set(hashes) if kept else self.kept - set(hashes)})

    def with_reviewed(self, captions: Iterable[tuple[str, str | None]]) -> Marks:
        """Return these marks with images marked as reviewed, each given by its hash and the caption that was read."""
        reviewed = dict(self.reviewed_captions)
        for image, caption in captions:
            reviewed[image] = reviewed.get(image, frozenset()) | {caption_hash(caption)}
        return self.model_copy(update={"reviewed": self.reviewed.union(reviewed), "reviewed_captions": reviewed})

    def without_reviewed(self, hashes: Iterable[str]) -> Marks:
        """Return these marks with images no longer marked as reviewed, whatever their caption."""
        removed = frozenset(hashes)
        left = {image: seen for image, seen in self.reviewed_captions.items() if image not in removed}
        return self.model_copy(update={"reviewed": self.reviewed - removed, "reviewed_captions": left})

    def with_focus(self, image: str, focus: Focus | None) -> Marks:
        """Return these marks with the focus point of an image, given by its hash; None removes it.

        Raises InputError for a point outside of the image.
        """
        others = {other: point for other, point in self.focus.items() if other != image}
        if focus is None:
            return self.model_copy(update={"focus": others})
        if not all(0 <= share <= 1 for share in focus):
            raise InputError(
                f"The focus point is {focus.x:g}, {focus.y:g}, which is outside of the image.",
                "Give shares of its width and height from 0 to 1, such as 0.5, 0.2.",
                code="focus",
            )
        return self.model_copy(update={"focus": {**others, image: focus}})


def caption_hash(caption: str | None) -> str:
    """Return the hash of a caption for `Marks`; line breaks and repeated spaces make no difference."""
    return hashlib.sha256(" ".join((caption or "").split()).encode()).hexdigest()[:16]


def load_marks(folder: Path) -> Marks:
    """Return the marks of the project or image folder `folder`; none if its marks.json is missing or damaged.

    A damaged file is reported as a warning of the log, and stays until `save_marks` sets it aside.
    """
    for name in (MARKS_FILE, LEGACY_FILE):
        try:
            return _read(folder / name) or Marks()
        except FileNotFoundError:
            continue
        except OSError as error:
            _log.warning("%s cannot be read, its marks are ignored: %s", folder / name, error.strerror)
            return Marks()
    return Marks()


def change_marks(folder: Path, change: Callable[[Marks], Marks]) -> Marks:
    """Apply a change to the marks in `folder` as they are now, write them, and return them.

    One process at a time does so: marks that another studio sets meanwhile are kept. Raises DiskFullError, InputError.
    """
    with change_file(folder / MARKS_FILE):
        before = load_marks(folder)
        after = change(before)
        if after != before:
            save_marks(folder, after)
    return after


def save_marks(folder: Path, marks: Marks) -> None:
    """Write marks.json atomically; a damaged one is renamed to marks.damaged.json first, never overwritten.

    Raises DiskFullError or InputError.
    """
    file = folder / MARKS_FILE
    if file.exists() and not _is_readable(file):
        aside = _free_name(file)
        with disk_errors(file):
            file.rename(aside)
        _log.warning("%s is damaged and was renamed to %s", file, aside.name)
    write_text(file, marks.model_dump_json(indent=1) + "\n")


def damaged_marks(folder: Path) -> list[Path]:
    """Return the damaged marks files in `folder`: marks.json and those that were set aside."""
    file = folder / MARKS_FILE
    current = [file] if file.exists() and not _is_readable(file) else []
    return [*current, *sorted(folder.glob(f"{file.stem}.damaged*{file.suffix}"))]


@cached_by_stamp(maxsize=16)
def _read(file: Path) -> Marks | None:
    """Return the marks in a file, None if it is damaged."""
    try:
        return Marks.model_validate_json(file.read_bytes())
    except ValidationError:
        _log.warning("%s is damaged, its marks are ignored", file)
        return None


def _is_readable(file: Path) -> bool:
    try:
        return _read(file) is not None
    except OSError:
        return False


def _free_name(file: Path) -> Path:
    """Return a name beside `file` that no file has: marks.damaged.json, marks.damaged-2.json and so on."""
    names = (f"{file.stem}.damaged{'' if number == 1 else f'-{number}'}{file.suffix}" for number in itertools.count(1))
    return next(place for place in map(file.with_name, names) if not place.exists())
