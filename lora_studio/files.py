"""Write files atomically, so that a reader sees the old content or the new, and cache what is read from files."""

from __future__ import annotations

import json
import os
import sysconfig
import tempfile
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from errno import EACCES, EEXIST, EINVAL, EMLINK, ENOSYS, ENOTSUP, EPERM
from functools import lru_cache, wraps
from operator import attrgetter
from pathlib import Path
from typing import Any, TypeVar, TypeVarTuple

from lora_studio.errors import disk_errors

RACY_NS = 2_000_000_000  # FAT, the coarsest file system in use, stores times of change in steps of 2 s

# Time of change in ns, size in bytes, inode, and time of the last change of status in ns: they differ after a file is
# written or replaced.
FileStamp = tuple[int, int, int, int]
stat_stamp: Callable[[os.stat_result], FileStamp] = attrgetter("st_mtime_ns", "st_size", "st_ino", "st_ctime_ns")

NO_HARD_LINKS = (EPERM, EACCES, EINVAL, EMLINK, ENOSYS, ENOTSUP)  # of a link on file systems without them

Args = TypeVarTuple("Args")
Value = TypeVar("Value")

WRITE_THREADS = 32  # a disk flushes and renames this many files in little more time than one


def write_atomic(path: Path, write: Callable[[Path], object], *, derived: bool = False, overwrite: bool = True) -> None:
    """Let `write` fill a temporary file beside `path`, flush it to disk, then rename it over `path`.

    A `derived` file, which can be rebuilt after a power loss, is not flushed: flushing takes longer than everything
    else. After an error `path` is unchanged. Raises DiskFullError if the disk is full, InputError if it is read-only,
    and without `overwrite` FileExistsError if `path` exists.
    """
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name[:40]}.", suffix=f".tmp{path.suffix}", dir=path.parent)
        os.close(handle)
        temporary = Path(name)
        try:
            write(temporary)
            if not derived:
                with temporary.open("rb+") as file:
                    os.fsync(file.fileno())
            temporary.chmod(0o666 & ~_umask())
            if overwrite:
                temporary.replace(path)
            else:
                _rename_new(temporary, path)
            if not derived:
                sync_folder(path.parent)
        finally:
            temporary.unlink(missing_ok=True)


def _rename_new(temporary: Path, path: Path) -> None:
    """Give a temporary file its name; raises FileExistsError if another file has it.

    A hard link fails if the name is taken, which a rename on POSIX does not. Where the file system has no hard links
    (FAT, some network shares), a file that another process writes at the same moment could be replaced.
    """
    try:
        path.hardlink_to(temporary)
    except FileExistsError:
        raise
    except OSError as error:
        if error.errno not in NO_HARD_LINKS:
            raise
        if path.exists():
            raise FileExistsError(EEXIST, os.strerror(EEXIST), str(path)) from None
        temporary.rename(path)


def write_many(contents: Mapping[Path, bytes]) -> None:
    """Write many small files, each atomically, in a twentieth of the time of one `write_bytes` per file.

    All temporary files are flushed to disk before the first is renamed. After an error some files may be new and the
    others unchanged. The folders must exist. Raises DiskFullError if the disk is full, InputError if it is read-only.
    """
    if not contents:
        return
    first = next(iter(contents))
    mode = 0o666 & ~_umask()
    made: list[tuple[Path, Path]] = []
    with disk_errors(first):
        try:
            with ThreadPoolExecutor(min(WRITE_THREADS, len(contents))) as pool:
                list(pool.map(lambda item: write_temporary(item[0], item[1], made), contents.items()))
                list(pool.map(lambda item: rename_into_place(item[0], item[1], mode), made))
            for folder in dict.fromkeys(path.parent for path in contents):
                sync_folder(folder)
        finally:
            for _, temporary in made:
                temporary.unlink(missing_ok=True)


def write_temporary(path: Path, data: bytes, made: list[tuple[Path, Path]]) -> None:
    """Write the content to a temporary file beside the path, flush it to disk, and append both paths to `made`."""
    handle, name = tempfile.mkstemp(prefix=f".{path.name[:40]}.", suffix=f".tmp{path.suffix}", dir=path.parent)
    made.append((path, Path(name)))
    with os.fdopen(handle, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def rename_into_place(path: Path, temporary: Path, mode: int) -> None:
    """Give a temporary file its permissions and rename it over `path`."""
    temporary.chmod(mode)
    temporary.replace(path)


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text atomically."""
    write_atomic(path, lambda temporary: write_content(temporary, text.encode("utf-8")))


def write_bytes(path: Path, data: bytes) -> None:
    """Write bytes atomically."""
    write_atomic(path, lambda temporary: write_content(temporary, data))


def write_json(path: Path, value: Any) -> None:
    """Write a JSON document atomically."""
    write_text(path, json.dumps(value, ensure_ascii=False, indent=1) + "\n")


def remove_temporary_files(folder: Path, *, older_than: float = 0) -> None:
    """Remove the temporary files that killed processes left in `folder` and below.

    `older_than` (seconds) spares files that another process may still be writing.
    """
    latest = time.time() - older_than
    for path in folder.rglob(".*.tmp*"):
        with suppress(FileNotFoundError):
            if path.stat().st_mtime <= latest:
                path.unlink()


def sync_folder(folder: Path) -> None:
    """Flush a folder's entries, so that a rename survives a power loss; does nothing except on POSIX systems."""
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def file_stamp(path: Path | str) -> FileStamp:
    """Return the stamp of a file; raises OSError if it does not exist."""
    return stat_stamp(os.stat(path))  # noqa: PTH116 - twice as fast as Path.stat, for 10,000 files per click


def is_racy(stamp: FileStamp, read_ns: int) -> bool:
    """Return whether the file changed so shortly before `read_ns` that its stamp might not show another change.

    Times of change have the granularity of the file system's clock: a file that is written twice within one tick may
    keep its stamp. Git calls such an entry of its index racy and compares the file's content.
    """
    return stamp[0] > read_ns - RACY_NS


def cached_by_stamp(
    maxsize: int,
) -> Callable[[Callable[[Path, *Args], Value]], Callable[[Path, *Args], Value]]:
    """Cache what a function computes from a file until the file changes; a decorator.

    The function takes the file's path first; its other arguments, all positional, are part of the cache key. While the
    file's stamp is racy, the function is called each time. A function that raises is called again the next time. The
    cache holds the `maxsize` most recently used values; several threads may use it. The decorated function raises
    OSError if the file does not exist.
    """

    def decorate(compute: Callable[[Path, *Args], Value]) -> Callable[[Path, *Args], Value]:
        @lru_cache(maxsize)
        def cached(path: Path, stamp: FileStamp, *args: *Args) -> Value:
            return compute(path, *args)

        @wraps(compute)
        def from_cache(path: Path, /, *args: *Args) -> Value:
            now = time.time_ns()  # before the stamp is taken: a later change must show in the stamp
            stamp = file_stamp(path)
            if is_racy(stamp, now):
                return compute(path, *args)
            return cached(path, stamp, *args)

        return from_cache

    return decorate


def write_content(path: Path, data: bytes) -> None:
    """Write the content of a temporary file; the one place where `write_text` and `write_bytes` write."""
    path.write_bytes(data)


def _umask() -> int:
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


def shipped_folder(name: str) -> Path:
    """Return the folder `presets` or `examples` that ships with the studio.

    In a checkout it is beside the package, in an installed package below the environment's `share/lora-studio`.
    """
    root = Path(__file__).resolve().parent.parent
    if (root / "pyproject.toml").is_file():
        return root / name
    schemes = (sysconfig.get_default_scheme(), sysconfig.get_preferred_scheme("user"))
    folders = [Path(sysconfig.get_path("data", scheme), "share", "lora-studio", name) for scheme in schemes]
    return next((folder for folder in folders if folder.is_dir()), folders[0])
