"""Values computed from a project's dataset, cached until a file of the project changes."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from stat import S_ISREG
from typing import Generic, TypeVar

from lora_studio.dataset.captions.extension import suffixes_in
from lora_studio.dataset.manifest import SCAN_FILE
from lora_studio.dataset.marks import MARKS_FILE
from lora_studio.files import FileStamp, is_racy, stat_stamp
from lora_studio.workspace.project import Project, image_sets

Value = TypeVar("Value")
Stamps = dict[str, FileStamp]  # by path


@dataclass
class _Entry(Generic[Value]):
    """A value, the stamps of the files that it was computed from, and the hashes of those whose stamp was racy."""

    stamps: Stamps
    hashes: dict[str, bytes]
    value: Value


@dataclass
class ProjectCache(Generic[Value]):
    """Cache what `read` returns for a project.

    When files changed, `update` gets the cached value and their paths; it returns the new value, or None to have
    everything read again.
    """

    read: Callable[[Project], Value]
    update: Callable[[Value, set[str]], Value | None]
    _entries: dict[Path, _Entry[Value]] = field(default_factory=dict)

    def get(self, project: Project, written: Iterable[str] | None = None) -> Value:
        """Return the project's value.

        Every file of the dataset is checked for changes; with `written`, only these files and the project's own ones.
        """
        entry = self._entries.get(project.path)
        now = time.time_ns()
        if entry is None or written is None:
            stamps = _dataset_stamps(project)
        else:
            stamps = entry.stamps.copy()
            for path in (*written, *own_files(project)):
                stamps.pop(path, None)
                stamps |= _stamps_of(path)
        changed = set() if entry is None else {path for path, value in entry.hashes.items() if _hash(path) != value}
        if entry is not None and entry.stamps == stamps and not changed:
            racy = _racy_texts(project, stamps, now)
            entry.hashes = {path: entry.hashes.get(path) or _hash(path) for path in racy}
            return entry.value
        hashes = {path: _hash(path) for path in _racy_texts(project, stamps, now)}
        value = None
        if entry is not None:
            changed |= {path for path, stamp in stamps.items() if entry.stamps.get(path) != stamp}
            value = self.update(entry.value, changed | (entry.stamps.keys() - stamps.keys()))
        if value is None:
            value = self.read(project)
        self._entries[project.path] = _Entry(stamps, hashes, value)
        return value


def own_files(project: Project) -> list[str]:
    """Return the paths of the files beside the dataset folder that the dataset's value depends on."""
    return [os.fspath(project.path / name) for name in (SCAN_FILE, MARKS_FILE, "project.json")]


def _dataset_stamps(project: Project) -> Stamps:
    """Return the stamps of all files in the dataset's folders and of the project's own files."""
    folders = [project.dataset_dir, *(item.path for item in image_sets(project.dataset_dir))]
    stamps: Stamps = {}
    for folder in dict.fromkeys(folders):
        if folder.is_dir():
            for entry in os.scandir(folder):
                try:
                    stat = entry.stat()
                except OSError:  # deleted in the meantime
                    continue
                if S_ISREG(stat.st_mode):
                    stamps[entry.path] = stat_stamp(stat)
    for path in own_files(project):
        stamps |= _stamps_of(path)
    return stamps


def _stamps_of(path: str) -> Stamps:
    """Return a file's entry; none if it does not exist."""
    try:
        stat = os.stat(path)  # noqa: PTH116 - the files' names are text, as os.scandir gives them
    except OSError:
        return {}
    return {path: stat_stamp(stat)} if S_ISREG(stat.st_mode) else {}


def _racy_texts(project: Project, stamps: Stamps, now: int) -> list[str]:
    """Return the text files whose stamp is racy: their content is compared."""
    suffixes = (*suffixes_in(project.dataset_dir), ".json")
    return [path for path, stamp in stamps.items() if is_racy(stamp, now) and path.endswith(suffixes)]


def _hash(path: str) -> bytes:
    try:
        return hashlib.sha256(Path(path).read_bytes()).digest()
    except OSError:
        return b""
