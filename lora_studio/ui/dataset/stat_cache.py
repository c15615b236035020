"""What is made of a project's dataset, remembered while the files on disk are as they were."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from stat import S_ISREG
from typing import Generic, TypeVar

from lora_studio.dataset.captions.text import CAPTION_SUFFIXES, SETTLED_NS
from lora_studio.dataset.manifest import MANIFEST
from lora_studio.workspace.project import Project, image_sets

Made = TypeVar("Made")
Stats = dict[str, tuple[int, int, int]]  # path: time of change (ns), length and inode


@dataclass
class _Known(Generic[Made]):
    """What was made, and the state of the files that it belongs to.

    `fresh` has the hashes of files that changed so recently that another change need not show in their time.
    """

    stats: Stats
    fresh: dict[str, bytes]
    made: Made


@dataclass
class Memory(Generic[Made]):
    """What `read` makes of a project. After some files changed `update` makes it anew, or None to have all read."""

    read: Callable[[Project], Made]
    update: Callable[[Made, set[str]], Made | None]
    _known: dict[Path, _Known[Made]] = field(default_factory=dict)

    def of(self, project: Project, written: Iterable[str] | None = None) -> Made:
        """What is remembered, once all files were looked at, or only those that were written and the project's own."""
        known = self._known.get(project.path)
        if known is None or written is None:
            stats = _stats(project)
        else:
            stats = known.stats.copy()
            for path in (*written, *own_files(project)):
                stats.pop(path, None)
                stats |= _stat(path)
        stale = set() if known is None else {file for file, value in known.fresh.items() if _hash(file) != value}
        if known is not None and known.stats == stats and not stale:
            known.fresh = {file: known.fresh.get(file) or _hash(file) for file in _fresh(stats)}
            return known.made
        fresh = {file: _hash(file) for file in _fresh(stats)}
        made = None
        if known is not None:
            changed = {path for path, stat in stats.items() if known.stats.get(path) != stat}
            made = self.update(known.made, changed | (known.stats.keys() - stats.keys()) | stale)
        if made is None:
            made = self.read(project)
        self._known[project.path] = _Known(stats, fresh, made)
        return made


def own_files(project: Project) -> list[str]:
    """The files beside the dataset that say something about it."""
    return [os.fspath(project.path / name) for name in (MANIFEST, "project.json")]


def _stats(project: Project) -> Stats:
    """Every file that contents depend on."""
    folders = [project.dataset_dir, *(item.path for item in image_sets(project.dataset_dir))]
    found: Stats = {}
    for folder in dict.fromkeys(folders):
        if folder.is_dir():
            for entry in os.scandir(folder):
                try:
                    stat = entry.stat()
                except OSError:  # gone meanwhile
                    continue
                if S_ISREG(stat.st_mode):
                    found[entry.path] = (stat.st_mtime_ns, stat.st_size, stat.st_ino)
    for file in own_files(project):
        found |= _stat(file)
    return found


def _fresh(stats: Stats) -> list[str]:
    """The texts among the files that changed within the last second."""
    limit = time.time_ns() - SETTLED_NS
    return [path for path, stat in stats.items() if stat[0] > limit and path.endswith((*CAPTION_SUFFIXES, ".json"))]


def _stat(file: str) -> Stats:
    """A file's entry; none if it is not there."""
    try:
        stat = os.stat(file)  # noqa: PTH116 - the files' names are text, as os.scandir gives them
    except OSError:
        return {}
    return {file: (stat.st_mtime_ns, stat.st_size, stat.st_ino)} if S_ISREG(stat.st_mode) else {}


def _hash(file: str) -> bytes:
    try:
        return hashlib.sha256(Path(file).read_bytes()).digest()
    except OSError:
        return b""
