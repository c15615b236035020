"""Rotate and crop images so that every change can be undone.

The original is copied into the folder `originals` of the dataset's records before an image is changed for the first
time, with its masks. edits.json there has the edits of each image; an image is always made from its original by all of
its edits, so that several of them lose no more quality than one. An image that another program has changed since is
taken as a new original; its earlier original stays in the folder.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from PIL import Image
from pydantic import BaseModel, ConfigDict, ValidationError, field_validator

from lora_studio.dataset.buckets import Focus
from lora_studio.dataset.change_lock import LOCK_SECONDS, change_lock
from lora_studio.dataset.images.decode import decode, file_sha256
from lora_studio.dataset.images.header_cache import sha256_of
from lora_studio.dataset.images.masks import mask_files
from lora_studio.dataset.marks import Marks, change_marks
from lora_studio.errors import InputError, disk_errors
from lora_studio.files import write_bytes, write_text
from lora_studio.workspace.project import records_folder

ORIGINALS = "originals"
EDITS_FILE = "edits.json"
MIN_CROPPED_SIDE = 64  # px
Box = tuple[float, float, float, float]
# How each format is written: nothing is lost, except by JPEG, whose full colour resolution is kept.
SAVE_OPTIONS: dict[str, dict[str, Any]] = {
    "PNG": {},
    "BMP": {},
    "WEBP": {"lossless": True},
    "JPEG": {"quality": 95, "subsampling": 0},
}
WITH_ALPHA = ("PNG", "WEBP")
_TURNS = {
    90: Image.Transpose.ROTATE_270,  # Pillow's are counter-clockwise
    180: Image.Transpose.ROTATE_180,
    270: Image.Transpose.ROTATE_90,
}


class ImageEdit(BaseModel):
    """A clockwise turn by `rotate` degrees, or a crop to the box (left, top, right, bottom) in shares of the sides."""

    model_config = ConfigDict(frozen=True)

    rotate: Literal[0, 90, 180, 270] = 0
    crop: Box = (0.0, 0.0, 1.0, 1.0)

    @field_validator("crop")
    @classmethod
    def _inside(cls, box: Box) -> Box:
        left, top, right, bottom = box
        if not (0 <= left < right <= 1 and 0 <= top < bottom <= 1):
            raise ValueError("is not a box within the image, such as 0.1, 0, 0.9, 1")
        return box

    def apply(self, image: Image.Image) -> Image.Image:
        """Return an image after the edit; raise InputError if less than MIN_CROPPED_SIDE px would be left."""
        if self.rotate:
            return image.transpose(_TURNS[self.rotate])
        width, height = image.size
        left, top, right, bottom = self.crop
        box = round(left * width), round(top * height), round(right * width), round(bottom * height)
        size = box[2] - box[0], box[3] - box[1]
        if min(size) < min(MIN_CROPPED_SIDE, *image.size):
            raise InputError(
                f"The crop leaves {size[0]} x {size[1]} px.",
                f"Keep at least {MIN_CROPPED_SIDE} px on each side.",
                code="crop_small",
            )
        return image.crop(box)

    def move(self, focus: Focus) -> Focus | None:
        """Return where a point of the image is after the edit; None if it is cropped away."""
        x, y = focus
        left, top, right, bottom = self.crop
        turned = {0: (x, y), 90: (1 - y, x), 180: (1 - x, 1 - y), 270: (y, 1 - x)}[self.rotate]
        x, y = (turned[0] - left) / (right - left), (turned[1] - top) / (bottom - top)
        return Focus(x, y) if 0 <= x <= 1 and 0 <= y <= 1 else None


class _File(BaseModel):
    """An image or mask: its path from the records, the name of its original, and the hashes that edits gave it."""

    path: Path
    original: str
    written: list[str] = []


class _Entry(BaseModel):
    files: list[_File]  # the image first
    edits: list[ImageEdit] = []


class _Record(BaseModel):
    entries: list[_Entry] = []


def edits_of(dataset: Path, image: Path) -> list[ImageEdit]:
    """Return the edits of an image of a dataset, the first one first; none if it is as it was imported."""
    records = records_folder(dataset)
    entry = _find(_load(records), records, image)
    return list(entry.edits) if entry else []


def edit_image(dataset: Path, image: Path, edit: ImageEdit) -> None:
    """Rotate or crop an image and its masks; marks and the focus point stay with it.

    Raises InputError for a format that cannot be written, an unreadable image or a crop that is too small, and
    DiskFullError; the image is then as it was.
    """
    records = records_folder(dataset)
    with change_lock(records, seconds=LOCK_SECONDS):
        record = _load(records)
        entry = _find(record, records, image) or _new_entry(records, image)
        others = [other for other in record.entries if other.files[0].path != entry.files[0].path]
        _write(records, others, entry, [*entry.edits, edit], edit)


def undo_image_edit(dataset: Path, image: Path, *, all_edits: bool = False) -> None:
    """Undo the last edit of an image, or all of them, which brings back its original file; raise InputError without."""
    records = records_folder(dataset)
    with change_lock(records, seconds=LOCK_SECONDS):
        record = _load(records)
        entry = _find(record, records, image)
        if entry is None or not entry.edits:
            raise InputError(
                f"{image.name} has no edit to undo.",
                "Only changes made here can be undone, and only until another program changes the file.",
                code="no_image_edit",
            )
        others = [other for other in record.entries if other is not entry]
        _write(records, others, entry, [] if all_edits else entry.edits[:-1])


def _write(
    records: Path, others: Sequence[_Entry], entry: _Entry, edits: list[ImageEdit], added: ImageEdit | None = None
) -> None:
    """Make the files of an entry from their originals by these edits, and record that before they are overwritten."""
    contents = {file.path: _made(records / ORIGINALS / file.original, edits) for file in entry.files}
    files = [
        file.model_copy(update={"written": [*file.written[-1:], _sha256(contents[file.path])]}) for file in entry.files
    ]
    image = records / files[0].path
    before = file_sha256(image)
    changed = _Entry(files=files, edits=edits)
    _save(records, [*others, changed])
    if added is not None:
        _carry_marks(records, before, files[0].written[-1], added)
    for file in reversed(files):  # the image last: masks without it are found again by another try
        write_bytes(records / file.path, contents[file.path])
    if not edits:
        _save(records, others)
        for file in files:
            (records / ORIGINALS / file.original).unlink(missing_ok=True)


def _made(original: Path, edits: Sequence[ImageEdit]) -> bytes:
    """Return the content of an original after some edits, in its own format; without any, the same bytes."""
    if not edits:
        with disk_errors(original):
            return original.read_bytes()
    decoded = decode(original, with_alpha=True)
    options = SAVE_OPTIONS.get(decoded.format)
    if options is None:
        raise InputError(
            f"{decoded.format} images cannot be changed here.", "Convert it to PNG first.", code="edit_format"
        )
    image = decoded.image
    if decoded.alpha is not None and decoded.format in WITH_ALPHA:
        image = image.copy()
        image.putalpha(decoded.alpha)
    for edit in edits:
        image = edit.apply(image)
    stream = io.BytesIO()
    image.save(stream, decoded.format, **options)
    return stream.getvalue()


def _new_entry(records: Path, image: Path) -> _Entry:
    """Copy an image and its masks into the folder of originals, and return an entry without edits."""
    folder = records / ORIGINALS
    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    files = []
    for path in (image, *mask_files(image)):
        with disk_errors(path):
            content = path.read_bytes()
        sha256 = _sha256(content)
        name = f"{path.stem}-{sha256[:16]}{path.suffix}"
        write_bytes(folder / name, content)
        files.append(_File(path=_relative(records, path), original=name, written=[sha256]))
    return _Entry(files=files)


def _carry_marks(records: Path, old: str, new: str, edit: ImageEdit) -> None:
    """Give the edited image the marks of the image before, which are by content."""
    change_marks(records, lambda marks: _with_marks_of(marks, old, new, edit))


def _with_marks_of(marks: Marks, old: str, new: str, edit: ImageEdit) -> Marks:
    focus = marks.focus.get(old)
    moved = edit.move(focus) if focus else None
    return Marks(
        kept=marks.kept | {new} if old in marks.kept else marks.kept,
        reviewed=marks.reviewed | {new} if old in marks.reviewed else marks.reviewed,
        reviewed_captions={
            **marks.reviewed_captions,
            **({new: marks.reviewed_captions[old]} if old in marks.reviewed_captions else {}),
        },
        focus={**marks.focus, **({new: moved} if moved else {})},
    )


def _find(record: _Record, records: Path, image: Path) -> _Entry | None:
    """Return the entry of an image that is as its last edit left it."""
    path = _relative(records, image)
    entry = next((entry for entry in record.entries if entry.files[0].path == path), None)
    if entry is None or not image.is_file() or sha256_of(image) not in entry.files[0].written:
        return None
    is_whole = all((records / ORIGINALS / file.original).is_file() for file in entry.files)
    return entry if is_whole else None


def _relative(records: Path, path: Path) -> Path:
    return (path.parent.resolve() / path.name).relative_to(records.resolve())


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _load(records: Path) -> _Record:
    file = records / ORIGINALS / EDITS_FILE
    try:
        return _Record.model_validate_json(file.read_bytes())
    except FileNotFoundError:
        return _Record()
    except (OSError, ValidationError) as error:
        raise InputError(
            f"{file} cannot be read: {error}",
            "Copy the originals beside it back by hand, then delete it.",
            code="manifest",
        ) from error


def _save(records: Path, entries: Sequence[_Entry]) -> None:
    write_text(records / ORIGINALS / EDITS_FILE, _Record(entries=list(entries)).model_dump_json(indent=1) + "\n")
