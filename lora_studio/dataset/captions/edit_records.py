"""The file format of the caption edit history: one file per edit, one line of JSON per image.

The first line is the heading: what was done, when, and the number of images unless the edit still grows. Every other
line is one image with the content of its caption file before and after. Lines are ASCII, since names and captions can
be any bytes: content that is not UTF-8 is stored as Latin-1. A last line without a line break is torn: the process was
killed before it changed that caption, so the line is ignored.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

from pydantic import BaseModel, ConfigDict

from lora_studio.errors import InputError, disk_errors


@dataclass(frozen=True)
class CaptionRecord:
    """One image of an edit: its path, and its caption file's bytes before and after (None: no file)."""

    image: Path
    before: bytes | None
    after: bytes | None


class Heading(BaseModel):
    """The first line of an edit; `time` is seconds since 1970.

    `job` identifies the job that records the edit batch by batch; `images` is None for such an edit.
    """

    model_config = ConfigDict(frozen=True)

    what: str
    time: float
    images: int | None = None
    job: str | None = None

    def line(self) -> str:
        """Return the heading as a line of JSON in ASCII."""
        return json.dumps(self.model_dump(exclude_none=True))


def relative_paths(root: Path, images: Iterable[Path]) -> dict[Path, str]:
    """Return each image's path relative to `root` as edits record it; raises InputError for an image elsewhere."""
    images = list(images)
    folders = {folder: _relative_folder(root, folder) for folder in {image.parent for image in images}}
    return {image: (folders[image.parent] / image.name).as_posix() for image in images}


def record_lines(root: Path, records: Sequence[CaptionRecord]) -> list[str]:
    """Return the lines of some images; raises InputError for an image that is not below `root`."""
    paths = relative_paths(root, (record.image for record in records))
    return [_line(paths[record.image], record) for record in records]


def read_heading(file: Path) -> Heading:
    """Return the heading of an edit; raises InputError if it cannot be read."""
    with _readable(file), file.open("rb") as lines:
        return Heading.model_validate(json.loads(lines.readline()))


def count_records(file: Path) -> int:
    """Return the number of images of an edit whose heading does not have it; raises InputError if it cannot be read."""
    with _readable(file), file.open("rb") as lines:
        return sum(line.endswith(b"\n") for line in lines) - 1


def read_records(root: Path, file: Path) -> Iterator[CaptionRecord]:
    """Yield the records of an edit; raises InputError for one that cannot be read or whose path is not below `root`."""
    with _readable(file), file.open(encoding="ascii") as lines:
        lines.readline()
        for line in lines:
            if line.endswith("\n"):
                yield _parsed(root, json.loads(line))


def append_lines(file: Path, lines: Iterable[str]) -> None:
    """Append lines to an edit and flush them to disk; a torn last line is replaced.

    Raises DiskFullError or InputError.
    """
    with disk_errors(file), file.open("rb+") as stream:
        stream.seek(_end_of_last_line(file))
        stream.truncate()
        stream.write("".join(f"{line}\n" for line in lines).encode("ascii"))
        stream.flush()
        os.fsync(stream.fileno())


def merged_records(records: Iterable[CaptionRecord]) -> Mapping[Path, list[CaptionRecord]]:
    """Group records by image, in order: a job that was killed and resumed may have changed a caption twice."""
    by_image: dict[Path, list[CaptionRecord]] = {}
    for record in records:
        by_image.setdefault(record.image, []).append(record)
    return by_image


def _relative_folder(root: Path, folder: Path) -> PurePath:
    """Return a folder's path relative to `root`: its real path, or that of the link if it is one into another place."""
    for real in (folder.resolve(), folder.parent.resolve() / folder.name):
        if real.is_relative_to(root):
            return real.relative_to(root)
    raise InputError(f"{folder} is outside of the dataset {root}.", "Copy its images into the dataset.", code="outside")


def _line(path: str, record: CaptionRecord) -> str:
    encoding, before = "utf-8", None
    if record.before is not None:
        try:
            before = record.before.decode()
        except UnicodeDecodeError:
            encoding, before = "latin-1", record.before.decode("latin-1")
    after = None if record.after is None else record.after.decode()
    return json.dumps({"image": path, "before": before, "encoding": encoding, "after": after})


def _parsed(root: Path, value: dict[str, Any]) -> CaptionRecord:
    path = PurePath(value["image"])
    if path.is_absolute() or ".." in path.parts:
        raise ValueError(f"{value['image']!r} is outside of the dataset")
    before, after = value["before"], value["after"]
    return CaptionRecord(
        root / path,
        None if before is None else str(before).encode(value["encoding"]),
        None if after is None else str(after).encode(),
    )


def _end_of_last_line(file: Path) -> int:
    """Return the offset behind the last line break."""
    block = 1 << 16
    with file.open("rb") as stream:
        end = stream.seek(0, os.SEEK_END)
        while end:
            start = max(0, end - block)
            stream.seek(start)
            if (found := stream.read(end - start).rfind(b"\n")) >= 0:
                return start + found + 1
            end = start
    return 0


@contextmanager
def _readable(file: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"The record of an edit {file} cannot be read: {error}.",
            "Delete the file; this edit can then no longer be undone.",
            code="edit_record",
        ) from error
