"""The last 50 edits of a folder's captions, on disk, so that each can be undone and redone after a restart.

`caption_edits/` in the project (for any other folder: in it) holds one file per edit, see `edit_records`. An edit is
recorded before it changes a caption: wherever it is interrupted, undoing it restores every caption. A tagging job
records its edit batch by batch. `.jsonl` files are applied edits, `.undone` files are undone ones.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from enum import Enum
from itertools import count
from pathlib import Path

from filelock import FileLock
from pydantic import BaseModel

from lora_studio.dataset.captions.convert_tagging_undo import has_old_tagging_edits, old_tagging_edits
from lora_studio.dataset.captions.edit_records import (
    CaptionRecord,
    Heading,
    append_lines,
    count_records,
    merged_records,
    read_heading,
    read_records,
    record_lines,
    relative_paths,
)
from lora_studio.dataset.captions.edits import Change, EditPlan
from lora_studio.dataset.captions.text import caption_bytes, caption_file, decode_text
from lora_studio.errors import InputError, StudioError, disk_errors
from lora_studio.files import remove_temporary_files, sync_folder, write_many, write_text
from lora_studio.workspace.project import records_folder

MAX_EDITS = 50
FOLDER_NAME = "caption_edits"
DONE_SUFFIX, UNDONE_SUFFIX = ".jsonl", ".undone"
STALE_SECONDS = 60.0  # older temporary files were left by a process that was killed


class KeptCaption(BaseModel):
    """An image whose caption was not changed, and why."""

    image: Path
    reason: str


class EditReport(BaseModel):
    """Result of an edit: the images whose captions `changed`, and those `kept` because of a change from elsewhere."""

    what: str
    changed: list[Path] = []
    kept: list[KeptCaption] = []

    def lines(self) -> list[str]:
        """Return the report as text."""
        count = len(self.changed)
        kept = [f"{item.image} was not changed: {item.reason}." for item in self.kept]
        return [*kept, f"{self.what}: {count} {'caption' if count == 1 else 'captions'}."]


class PastEdit(BaseModel):
    """An edit in the list of edits; `time` is seconds since 1970."""

    id: str
    what: str
    time: float
    images: int
    undone: bool


class EditState(Enum):
    """Where the edit of a job is in the history: `NEWEST` is the one that `undo` would undo."""

    NONE = "none"
    APPLIED = "applied"
    NEWEST = "newest"
    UNDONE = "undone"


@dataclass(frozen=True)
class CaptionHistory:
    """The edits of the captions below `root`."""

    root: Path

    @classmethod
    def of(cls, folder: Path) -> CaptionHistory:
        """Return the history of a dataset folder, or of one of its sets."""
        history = cls(records_folder(folder))
        history._convert_old_tagging()
        return history

    @property
    def folder(self) -> Path:
        """The folder of the edits' files."""
        return self.root / FOLDER_NAME

    @property
    def can_undo(self) -> bool:
        """True if there is an edit to undo."""
        return bool(self._files(DONE_SUFFIX))

    def edits(self) -> list[PastEdit]:
        """Return all edits, the most recent first."""
        return [self._heading(file) for file in reversed(self._files())]

    def apply(self, plan: EditPlan) -> EditReport:
        """Carry out a plan and discard undone edits, which can no longer be redone.

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
                records.append(CaptionRecord(change.image, _content(change.image), change.after.encode()))
            if records:
                self._record(Heading(what=plan.what, time=time.time(), images=len(records)), records)
                _write({record.image: record.after for record in records})
            report.changed = [record.image for record in records]
        return report

    def edit_of_job(self, what: str, job_folder: Path, *, resume: bool) -> JobEdit:
        """Return an edit that a job records batch by batch; a resumed job continues its own, if it was not undone."""
        edit = JobEdit(self, what, self.job_key(job_folder))
        if resume:
            edit.find_file()
        return edit

    def state_of_job(self, job_folder: Path) -> EditState:
        """Return the state of a job's most recent edit."""
        key = self.job_key(job_folder)
        applied = [_job_of(file) for file in self._files(DONE_SUFFIX)]
        if key in applied:
            return EditState.NEWEST if applied[-1] == key else EditState.APPLIED
        undone = any(_job_of(file) == key for file in self._files(UNDONE_SUFFIX))
        return EditState.UNDONE if undone else EditState.NONE

    def job_key(self, job_folder: Path) -> str:
        """Return the name of a job in the headings of its edits, which stays the same if the project is renamed."""
        path = job_folder.resolve()
        return path.relative_to(self.root).as_posix() if path.is_relative_to(self.root) else str(path)

    def undo(self) -> EditReport:
        """Undo the most recent edit; a caption that was changed since is kept. Raises InputError if there is none."""
        with self._locked_files(DONE_SUFFIX, "There is no edit to undo.", "Edit captions first.") as done:
            report = self._restore("Undone: ", done[-1], back=True)
            self._rename(done[-1], UNDONE_SUFFIX)
        return report

    def redo(self) -> EditReport:
        """Redo the edit that was undone last; raises InputError if there is none."""
        with self._locked_files(UNDONE_SUFFIX, "There is no edit to redo.", "Undo one first.") as undone:
            # Renamed first, so that an interrupted redo can be undone.
            return self._restore("Redone: ", self._rename(undone[0], DONE_SUFFIX), back=False)

    def _restore(self, prefix: str, file: Path, *, back: bool) -> EditReport:
        """Bring the captions of a recorded edit to their content before (`back`) or after it."""
        report = EditReport(what=prefix + self._heading(file).what)
        contents: dict[Path, bytes | None] = {}
        for image, records in merged_records(read_records(self.root, file)).items():
            old = {record.after if back else record.before for record in records}
            new = records[0].before if back else records[-1].after
            now = _content(image)
            if now == new:
                continue
            if not image.is_file():
                report.kept.append(KeptCaption(image=image, reason="the image no longer exists"))
            elif now not in old:
                report.kept.append(KeptCaption(image=image, reason="it was changed after this edit"))
            else:
                contents[image] = new
                report.changed.append(image)
        _write(contents)
        return report

    def _record(self, heading: Heading, records: Sequence[CaptionRecord]) -> Path:
        """Write a new edit; delete undone edits and all but the most recent ones."""
        lines = record_lines(self.root, records)
        with disk_errors(self.folder):
            files = self._files()
            for file in [*self._files(UNDONE_SUFFIX), *self._files(DONE_SUFFIX)[: 1 - MAX_EDITS]]:
                file.unlink()
        number = max(time.time_ns(), *(int(file.stem) + 1 for file in files)) if files else time.time_ns()
        return self._write_edit(number, [heading.line(), *lines])

    def _write_edit(self, number: int, lines: Sequence[str]) -> Path:
        path = self.folder / f"{number}{DONE_SUFFIX}"
        write_text(path, "\n".join(lines) + "\n")
        return path

    def _files(self, *suffixes: str) -> list[Path]:
        """Return the files of edits, oldest first."""
        wanted = suffixes or (DONE_SUFFIX, UNDONE_SUFFIX)
        found = self.folder.iterdir() if self.folder.is_dir() else iter(())
        return sorted(
            (path for path in found if path.suffix in wanted and path.stem.isdecimal()), key=lambda path: int(path.stem)
        )

    def _heading(self, file: Path) -> PastEdit:
        heading = read_heading(file)
        images = heading.images if heading.images is not None else count_records(file)
        return PastEdit(
            id=file.stem,
            what=heading.what,
            time=heading.time,
            images=images,
            undone=file.suffix == UNDONE_SUFFIX,
        )

    def _rename(self, file: Path, suffix: str) -> Path:
        with disk_errors(file):
            renamed = file.rename(file.with_suffix(suffix))
            sync_folder(self.folder)
        return renamed

    def _convert_old_tagging(self) -> None:
        """Turn the undo records of tagging jobs, which were kept in their job folders, into edits."""
        if not has_old_tagging_edits(self.root):
            return
        with suppress(StudioError, OSError), self._locked():
            for edit in old_tagging_edits(self.root):
                if edit.records:
                    taken = {int(file.stem) for file in self._files()}
                    number = next(number for number in count(edit.time_ns) if number not in taken)
                    heading = Heading(
                        what=edit.what,
                        time=edit.time_ns / 1e9,
                        images=len(edit.records),
                        job=self.job_key(edit.job_folder),
                    )
                    self._write_edit(number, [heading.line(), *record_lines(self.root, edit.records)])
                edit.mark_converted()

    @contextmanager
    def _locked_files(self, suffix: str, missing: str, remedy: str) -> Iterator[list[Path]]:
        """Hold the lock and yield the files of that kind, oldest first; raise InputError if there are none."""
        if not self._files(suffix):
            raise InputError(missing, remedy, code="no_edit")
        with self._locked():
            if not (files := self._files(suffix)):
                raise InputError(missing, remedy, code="no_edit")
            yield files

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Let one process and thread at a time read and write edits."""
        with disk_errors(self.folder):
            self.folder.mkdir(exist_ok=True)
            lock = FileLock(self.folder / ".lock")
        with lock:
            yield


@dataclass
class JobEdit:
    """An edit that a job records batch by batch: one entry of the history, undone and redone as a whole."""

    history: CaptionHistory
    what: str
    job: str
    _file: Path | None = None
    _newer: dict[str, set[str]] = field(default_factory=dict)  # images of newer edits, by the number of the edit

    def write(self, captions: Mapping[Path, str]) -> None:
        """Record the captions of some images, then write them. Raises DiskFullError or InputError."""
        if not captions:
            return
        contents = {image: text.encode() for image, text in captions.items()}
        history = self.history
        with history._locked():
            records = [CaptionRecord(image, _content(image), data) for image, data in contents.items()]
            file = self._file
            if file is None or not file.is_file() or self._is_edited_later(file, captions):
                # Edits are undone in reverse order, so that an edit must not change what a newer one has changed.
                self._file = history._record(Heading(what=self.what, time=time.time(), job=self.job), records)
            else:
                append_lines(file, record_lines(history.root, records))
            write_many({caption_file(image): data for image, data in contents.items()})

    def find_file(self) -> None:
        """Continue the most recent edit of this job, if there is one that was not undone."""
        applied = reversed(self.history._files(DONE_SUFFIX))
        self._file = next((file for file in applied if _job_of(file) == self.job), None)

    def _is_edited_later(self, file: Path, images: Iterable[Path]) -> bool:
        """Return whether an edit that is newer than `file` changed one of the images, or cannot be read."""
        root = self.history.root
        paths = set(relative_paths(root, images).values())
        for newer in self.history._files():
            if int(newer.stem) <= int(file.stem):
                continue
            if newer.stem not in self._newer:
                try:
                    records = list(read_records(root, newer))
                except InputError:
                    return True
                self._newer[newer.stem] = {record.image.relative_to(root).as_posix() for record in records}
            if not self._newer[newer.stem].isdisjoint(paths):
                return True
        return False


def _job_of(file: Path) -> str | None:
    """Return the job of an edit, or None if it has none or cannot be read."""
    try:
        return read_heading(file).job
    except InputError:
        return None


def _content(image: Path) -> bytes | None:
    """Return the bytes of the caption file that edits write, or None if there is none."""
    file = caption_file(image)
    return file.read_bytes() if file.is_file() else None


def _conflict(change: Change) -> str:
    """Return why a planned change cannot be made, or an empty string."""
    if not change.image.is_file():
        return "the image no longer exists"
    data = caption_bytes(change.image)
    now = None if data is None else decode_text(data).strip()
    return "" if now == change.before else "it was changed elsewhere in the meantime"


def _write(contents: Mapping[Path, bytes | None]) -> None:
    """Write the captions of images atomically; remove those that are None."""
    files = {caption_file(image): data for image, data in contents.items()}
    if len(files) > 1:
        for folder in {file.parent for file in files}:
            remove_temporary_files(folder, older_than=STALE_SECONDS)
    write_many({file: data for file, data in files.items() if data is not None})
    for file in (file for file, data in files.items() if data is None):
        with disk_errors(file):
            file.unlink(missing_ok=True)
