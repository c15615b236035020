"""Zip archives from untrusted sources: list their files, and extract one at a time.

Names in the archive never decide where a file is extracted. An archive that looks like an attack (paths outside the
archive, links, far more content than a set of images has) is refused as a whole before any file is read.
"""

from __future__ import annotations

import re
import shutil
import stat
import zlib
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from zipfile import BadZipFile, ZipFile, ZipInfo

from lora_studio.errors import InputError, disk_errors

UTF8_NAME = 0x800  # flag: the name is UTF-8; without it, it is code page 437, or UTF-8 from careless programs
ENCRYPTED = 0x1
LOCAL_HEADER = 30  # bytes before the name of an entry


@dataclass(frozen=True)
class Limits:
    """The most that an archive may hold. Sizes are unpacked bytes; `ratio` is unpacked / packed."""

    entries: int = 20_000
    total: int = 32 * 2**30
    ratio: float = 200.0
    ratio_exempt: int = 256 * 2**20  # `ratio` is not checked below this: blank bitmaps compress to a thousandth


@dataclass(frozen=True)
class Member:
    """A file in an archive; its name has forward slashes."""

    archive: Path
    name: PurePosixPath
    info: ZipInfo

    @property
    def size(self) -> int:
        """Unpacked size in bytes."""
        return self.info.file_size

    def extract(self, target: Path) -> None:
        """Extract into `target`; raises InputError if this part of the archive is damaged, DiskFullError."""
        try:
            with (
                disk_errors(target),
                ZipFile(self.archive) as archive,
                archive.open(self.info) as source,
                target.open("wb") as file,
            ):
                shutil.copyfileobj(source, file)
        except (BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
            raise InputError(
                f"{str(self.name)!r} in {self.archive.name!r} cannot be extracted: {error}",
                "Create the zip again with the usual (deflate) compression.",
                code="zip_entry",
            ) from error


def list_members(archive: Path, limits: Limits | None = None) -> list[Member]:
    """Return the files of a zip in the archive's order, without folders.

    Raises InputError if the file is not a zip, needs a password, or is refused as an attack.
    """
    limits = limits or Limits()
    try:
        with ZipFile(archive) as opened:
            infos = opened.infolist()
    except (BadZipFile, OSError, ValueError, NotImplementedError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise _refused(archive, f"cannot be opened: {reason}", "Create the zip again, or give a folder.") from error
    _check_amount(archive, infos, limits)
    _check_overlap(archive, infos)
    found = []
    for info in infos:
        name = _name(info)
        if _leads_outside(name):
            raise _refused(
                archive,
                f"contains {name!r}, a path outside the archive",
                "If you trust it, extract it yourself and give the folder.",
            )
        if stat.S_ISLNK(info.external_attr >> 16):
            raise _refused(archive, f"contains {name!r}, a link", "Create the zip again with the files themselves.")
        if not name or name.endswith("/"):
            continue
        if info.flag_bits & ENCRYPTED:
            raise _refused(archive, "needs a password", "Extract it yourself and give the folder.")
        found.append(Member(archive, PurePosixPath(name), info))
    return found


def _check_amount(archive: Path, infos: list[ZipInfo], limits: Limits) -> None:
    if len(infos) > limits.entries:
        raise _refused(
            archive, f"contains {len(infos):,} files; the limit is {limits.entries:,}", "Split it, or give a folder."
        )
    total, packed = sum(info.file_size for info in infos), sum(info.compress_size for info in infos)
    if total > limits.total:
        raise _refused(
            archive,
            f"unpacks to {total / 2**30:.1f} GiB; the limit is {limits.total / 2**30:.1f} GiB",
            "Split it, or give a folder.",
        )
    if total > limits.ratio_exempt and total > limits.ratio * max(1, packed):
        raise _refused(
            archive,
            f"unpacks to {total / max(1, packed):.0f} times its size; the limit is {limits.ratio:.0f}",
            "If you trust it, extract it yourself and give the folder.",
        )


def _check_overlap(archive: Path, infos: list[ZipInfo]) -> None:
    """Refuse an archive in which entries share bytes, so that a small file unpacks to any size."""
    end = 0
    for info in sorted(infos, key=lambda info: info.header_offset):
        if info.header_offset < end:
            raise _refused(
                archive,
                f"contains {info.filename!r}, which overlaps another file in it",
                "It is damaged or an attack: create the zip again, or give a folder.",
            )
        end = info.header_offset + LOCAL_HEADER + info.compress_size


def _name(info: ZipInfo) -> str:
    """Return the entry's name with forward slashes; UTF-8 is recognised even if it is not flagged."""
    name = info.filename
    if not info.flag_bits & UTF8_NAME:
        with suppress(UnicodeError):
            name = name.encode("cp437").decode("utf-8")
    return name.replace("\\", "/")


def _leads_outside(name: str) -> bool:
    return name.startswith("/") or re.match(r"[A-Za-z]:", name) is not None or ".." in name.split("/")


def _refused(archive: Path, what: str, remedy: str) -> InputError:
    return InputError(f"The zip {archive.name!r} {what}.", remedy, code="zip")
