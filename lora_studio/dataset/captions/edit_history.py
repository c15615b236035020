"""The latest edits of a folder's captions, on disk, so that each can be undone and done again after a restart.

`caption_edits/` in the project (for any other folder: in it) holds one file an edit: a line with its name and number of
images, then one line an image with the caption file's content before and after. It is written before any caption is:
whatever happens in between, undoing brings every caption back. `.jsonl` is done, `.undone` was taken back.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path, PurePath
from typing import Any

from filelock import FileLock
from pydantic import BaseModel

from lora_studio.dataset.captions.edits import Change, EditPlan
from lora_studio.dataset.captions.text import caption_bytes, caption_file, decode_text
from lora_studio.errors import InputError, disk_errors
from lora_studio.files import remove_temporary_files, sync_folder, write_many, write_text
from lora_studio.workspace.project import records_folder

MAX_EDITS = 50
FOLDER_NAME = "caption_edits"
DONE_SUFFIX, UNDONE_SUFFIX = ".jsonl", ".undone"
STALE_SECONDS = 60.0  # seconds after which a temporary file is what a process left that was killed


class KeptCaption(BaseModel):
    """An image whose caption stays as it is, and why."""

    image: Path
    reason: str


class EditReport(BaseModel):
    """What was done: `changed` are images, `kept` those that somebody else changed meanwhile."""

    what: str
    changed: list[Path] = []
    kept: list[KeptCaption] = []

    def lines(self) -> list[str]:
        """The report for people."""
        count = len(self.changed)
        kept = [f"{item.image} stays as it is: {item.reason}." for item in self.kept]
        return [*kept, f"{self.what}: {count} {'caption' if count == 1 else 'captions'}."]


class PastEdit(BaseModel):
    """An edit as the list shows it; `time` is seconds since 1970."""

    id: str
    what: str
    time: float
    images: int
    undone: bool


@dataclass(frozen=True)
class _Record:
    """One image of an edit: its path, and its caption file's bytes before and after (None: no file)."""

    image: Path
    before: bytes | None
    after: bytes | None


@dataclass(frozen=True)
class CaptionHistory:
    """The edits of the captions below `root`."""

    root: Path

    @classmethod
    def of(cls, folder: Path) -> CaptionHistory:
        """The history of a dataset folder, or of one of its sets."""
        return cls(records_folder(folder))

    @property
    def folder(self) -> Path:
        """Where it is kept."""
        return self.root / FOLDER_NAME

    @property
    def can_undo(self) -> bool:
        """Whether there is an edit to undo."""
        return bool(self._files(DONE_SUFFIX))

    def edits(self) -> list[PastEdit]:
        """All that is known, the latest first."""
        return [self._heading(file) for file in reversed(self._files())]

    def apply(self, plan: EditPlan) -> EditReport:
        """Carry out a plan; what was undone before cannot be done again after it.

        A caption that is not as the plan says is kept. Raises DiskFullError or InputError: what was written up to then
        can be undone.
        """
        report = EditReport(what=plan.what)
        with self._locked():
            records = []
            for change in plan.changes:
                if reason := _conflict(change):
                    report.kept.append(KeptCaption(image=change.image, reason=reason))
                    continue
                file = caption_file(change.image)
                before = file.read_bytes() if file.is_file() else None
                records.append(_Record(change.image, before, change.after.encode()))
            if records:
                self._record(plan.what, records)
                _write([(caption_file(record.image), record.after) for record in records])
            report.changed = [record.image for record in records]
        return report

    def undo(self) -> EditReport:
        """Take the latest edit back; a caption that changed since is kept. Raises InputError if there is none."""
        with self._locked_entries(DONE_SUFFIX, "There is no edit to undo.", "Edit captions first.") as done:
            report = self._restore("Undone: ", done[-1], back=True)
            self._rename(done[-1], UNDONE_SUFFIX)
        return report

    def redo(self) -> EditReport:
        """Do again what was undone last; raises InputError if there is nothing."""
        with self._locked_entries(UNDONE_SUFFIX, "There is no edit to do again.", "Undo one first.") as undone:
            # Done first, so that what is written of it can be undone whatever happens.
            return self._restore("Done again: ", self._rename(undone[0], DONE_SUFFIX), back=False)

    def _restore(self, said: str, file: Path, *, back: bool) -> EditReport:
        """Bring the captions of a recorded edit to what they were before (`back`) or after it."""
        report = EditReport(what=said + self._heading(file).what)
        todo = []
        for record in self._records(file):
            old, new = (record.after, record.before) if back else (record.before, record.after)
            caption = caption_file(record.image)
            now = caption.read_bytes() if caption.is_file() else None
            if now == new:
                continue
            if not record.image.is_file():
                report.kept.append(KeptCaption(image=record.image, reason="the image is no longer there"))
            elif now != old:
                report.kept.append(KeptCaption(image=record.image, reason="it was changed since by somebody else"))
            else:
                todo.append((caption, new))
                report.changed.append(record.image)
        _write(todo)
        return report

    def _record(self, what: str, records: Sequence[_Record]) -> None:
        real = {folder: folder.resolve() for folder in {record.image.parent for record in records}}
        lines = [_line(self.root, real[record.image.parent] / record.image.name, record) for record in records]
        with disk_errors(self.folder):
            files = self._files()
            for file in [*self._files(UNDONE_SUFFIX), *self._files(DONE_SUFFIX)[: 1 - MAX_EDITS]]:
                file.unlink()
        number = max(time.time_ns(), *(int(file.stem) + 1 for file in files)) if files else time.time_ns()
        heading = json.dumps({"what": what, "time": time.time(), "images": len(lines)})
        write_text(self.folder / f"{number}{DONE_SUFFIX}", "\n".join([heading, *lines]) + "\n")

    def _files(self, *suffixes: str) -> list[Path]:
        """The files of edits, oldest first."""
        wanted = suffixes or (DONE_SUFFIX, UNDONE_SUFFIX)
        found = self.folder.iterdir() if self.folder.is_dir() else iter(())
        return sorted(
            (path for path in found if path.suffix in wanted and path.stem.isdecimal()), key=lambda path: int(path.stem)
        )

    def _heading(self, file: Path) -> PastEdit:
        with self._readable(file), file.open(encoding="utf-8") as lines:
            value = json.loads(lines.readline())
            return PastEdit(id=file.stem, undone=file.suffix == UNDONE_SUFFIX, **value)

    def _records(self, file: Path) -> Iterator[_Record]:
        with self._readable(file), file.open(encoding="utf-8") as lines:
            for line in islice(lines, 1, None):
                yield self._read(json.loads(line))

    def _read(self, value: dict[str, Any]) -> _Record:
        place = PurePath(value["image"])
        if place.is_absolute() or ".." in place.parts:
            raise ValueError(f"{value['image']!r} lies elsewhere")
        before, after = value["before"], value["after"]
        return _Record(
            self.root / place,
            None if before is None else str(before).encode(value["encoding"]),
            None if after is None else str(after).encode(),
        )

    def _rename(self, file: Path, suffix: str) -> Path:
        with disk_errors(file):
            turned = file.rename(file.with_suffix(suffix))
            sync_folder(self.folder)
        return turned

    @contextmanager
    def _locked_entries(self, suffix: str, missing: str, remedy: str) -> Iterator[list[Path]]:
        """The records of that kind, oldest first, for nobody else meanwhile; raises InputError if there are none."""
        if not self._files(suffix):
            raise InputError(missing, remedy, code="no_edit")
        with self._locked():
            if not (files := self._files(suffix)):
                raise InputError(missing, remedy, code="no_edit")
            yield files

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """One process and thread at a time."""
        with disk_errors(self.folder):
            self.folder.mkdir(exist_ok=True)
            lock = FileLock(self.folder / ".lock")
        with lock:
            yield

    @contextmanager
    def _readable(self, file: Path) -> Iterator[None]:
        try:
            yield
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InputError(
                f"The record of an edit {file} cannot be read: {error}.", "Delete it; it is lost.", code="edit_record"
            ) from error


def _conflict(change: Change) -> str:
    """Why a planned change cannot be made; empty if it can."""
    if not change.image.is_file():
        return "the image is no longer there"
    data = caption_bytes(change.image)
    now = None if data is None else decode_text(data).strip()
    return "" if now == change.before else "it was changed meanwhile by somebody else"


def _write(files: Sequence[tuple[Path, bytes | None]]) -> None:
    """Bring files to these contents, each whole at every moment; those with None are removed."""
    if len(files) > 1:
        for folder in {file.parent for file, _ in files}:
            remove_temporary_files(folder, older_than=STALE_SECONDS)
    write_many({file: data for file, data in files if data is not None})
    for file in (file for file, data in files if data is None):
        with disk_errors(file):
            file.unlink(missing_ok=True)


def _line(root: Path, image: Path, record: _Record) -> str:
    """A record as JSON in ASCII, as names and captions need not be text: bytes that are none read as Latin-1.

    `image` is its image by the real name of the folder.
    """
    if not image.is_relative_to(root):
        raise InputError(
            f"{record.image} is a link to {image}, outside of the dataset.", "Copy it into the dataset.", code="outside"
        )
    encoding, before = "utf-8", None
    if record.before is not None:
        try:
            before = record.before.decode()
        except UnicodeDecodeError:
            encoding, before = "latin-1", record.before.decode("latin-1")
    after = None if record.after is None else record.after.decode()
    place = image.relative_to(root).as_posix()
    return json.dumps({"image": place, "before": before, "encoding": encoding, "after": after})
