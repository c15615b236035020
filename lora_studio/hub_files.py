"""Download the large files of a Hub repository into the Hub's cache: resumed, checked, with progress.

huggingface_hub starts each interrupted download again, and compares only the size of a file that came over HTTP. So
the files in LFS are downloaded here, into `blobs/<sha256>.incomplete` of the cache, compared with their SHA-256, and
renamed to `blobs/<sha256>`, where huggingface_hub finds them and links them into a snapshot.
"""

from __future__ import annotations

import hashlib
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import BinaryIO

from filelock import FileLock, Timeout

from lora_studio.errors import DiskFullError, JobError, StopRequested, disk_errors

LOCK_SECONDS = 0.5  # between looks at a stop request, while another process downloads the same file
RATE_SECONDS = 20.0  # of the download that its speed is measured over
BLOCK = 1 << 18  # bytes
RETRIES = 5  # without a byte in between
RETRY_SECONDS = 1.0
TIMEOUT_SECONDS = 20.0  # without a byte
PARTIAL_CONTENT = 206
SPARE_BYTES = 1 << 28  # free space that a download leaves


@dataclass(frozen=True)
class LargeFile:
    """A file of a repository that is in LFS; `size` in bytes."""

    path: str
    size: int
    sha256: str


@dataclass
class Transfer:
    """Bytes of a download that are on the disk, of all that it needs; `report` is called after each block."""

    total: int
    report: Callable[[Transfer], None]
    should_stop: Callable[[], bool]
    done: int = 0
    is_checking: bool = False
    _times: list[tuple[float, int]] = field(default_factory=list)

    @property
    def seconds_left(self) -> float | None:
        """The time left at the speed of the last 20 seconds; None before the first two blocks."""
        if len(self._times) < 2:
            return None
        (start, before), (end, after) = self._times[0], self._times[-1]
        return (self.total - self.done) * (end - start) / (after - before) if after > before and end > start else None

    def add(self, count: int) -> None:
        """Count bytes that were received; raises StopRequested if a stop was requested."""
        self.done += count
        now = time.monotonic()
        self._times = [entry for entry in self._times if entry[0] > now - RATE_SECONDS] + [(now, self.done)]
        self._look()

    def check(self, *, started: bool) -> None:
        """Report that a file's checksum is being computed, or that it is not any more."""
        self.is_checking = started
        self._look()

    def _look(self) -> None:
        self.report(self)
        if self.should_stop():
            raise StopRequested


def download_large_files(
    repo: str,
    patterns: Sequence[str],
    *,
    report: Callable[[Transfer], None],
    should_stop: Callable[[], bool] = lambda: False,
) -> None:
    """Download the files in LFS of a repository that match `patterns` into the Hub's cache, those that are missing.

    A partial file is continued, also after a stop. Raises StopRequested, DiskFullError if they do not fit on the disk,
    JobError if a file is not what the Hub lists, and the exceptions of huggingface_hub.
    """
    from huggingface_hub import constants
    from huggingface_hub.file_download import repo_folder_name

    storage = Path(constants.HF_HUB_CACHE).expanduser() / repo_folder_name(repo_id=repo, repo_type="model")
    revision, files = _list_files(repo, patterns)
    blobs = storage / "blobs"
    missing = [file for file in files if not (blobs / file.sha256).exists()]
    transfer = Transfer(sum(file.size for file in files), report, should_stop)
    transfer.done = sum(file.size for file in files if file not in missing)
    with disk_errors(blobs):
        blobs.mkdir(parents=True, exist_ok=True)
        _check_space(blobs, missing)
        for file in missing:
            with _locked(storage, file, should_stop):
                if not (blobs / file.sha256).exists():
                    _download(repo, revision, file, blobs / file.sha256, transfer)


def _list_files(repo: str, patterns: Sequence[str]) -> tuple[str, list[LargeFile]]:
    """Return the latest commit, and the files in LFS that match."""
    from huggingface_hub import HfApi

    info = HfApi().model_info(repo, files_metadata=True, timeout=30)
    found = {
        item.lfs.sha256: LargeFile(item.rfilename, item.lfs.size, item.lfs.sha256)
        for item in info.siblings or []
        if item.lfs is not None and any(fnmatchcase(item.rfilename, pattern) for pattern in patterns)
    }
    return info.sha or "main", list(found.values())


def _check_space(blobs: Path, missing: Sequence[LargeFile]) -> None:
    needed = sum(max(0, file.size - _size(_partial(blobs / file.sha256))) for file in missing)
    free = shutil.disk_usage(blobs).free
    if needed and needed + SPARE_BYTES > free:
        raise DiskFullError(
            f"The download needs {needed / 1e9:.1f} GB, and {free / 1e9:.1f} GB are free where {blobs} is.",
            "Free some disk space, or set HF_HOME to a folder on another disk, then try again. What was downloaded "
            "before is kept.",
            code="disk_full",
        )


def _download(repo: str, revision: str, file: LargeFile, blob: Path, transfer: Transfer) -> None:
    from huggingface_hub import hf_hub_url

    partial = _partial(blob)
    if _size(partial) > file.size:
        partial.unlink()
    transfer.done += _size(partial)
    with partial.open("ab") as target:
        _receive(hf_hub_url(repo, file.path, revision=revision), target, file.size, transfer)
    _check(file, partial, transfer)
    partial.replace(blob)


def _receive(url: str, target: BinaryIO, size: int, transfer: Transfer) -> None:
    """Append what `target` lacks of `size` bytes; a connection that breaks is opened again."""
    from httpx2 import ReadError, TransportError
    from huggingface_hub import get_session
    from huggingface_hub.utils import build_hf_headers, hf_raise_for_status  # type: ignore[attr-defined]

    tries = RETRIES
    while (start := target.tell()) < size:
        headers = {**build_hf_headers(), "Accept-Encoding": "identity", "Range": f"bytes={start}-{size - 1}"}
        try:
            with get_session().stream("GET", url, headers=headers, timeout=TIMEOUT_SECONDS) as response:
                if response.is_error:
                    response.read()
                hf_raise_for_status(response)
                if start and response.status_code != PARTIAL_CONTENT:  # the server sends the file from its beginning
                    target.truncate(0)
                    transfer.done -= start
                for block in response.iter_bytes(BLOCK):
                    target.write(block)
                    transfer.add(len(block))
                    tries = RETRIES
            if target.tell() == start:
                raise ReadError(f"{url} sent nothing")
        except TransportError:
            tries -= 1
            if not tries:
                raise
            time.sleep(RETRY_SECONDS)


def _check(file: LargeFile, partial: Path, transfer: Transfer) -> None:
    """Compare a file with its checksum; raises JobError, and removes it, if it is another."""
    transfer.check(started=True)
    digest = hashlib.sha256()
    with partial.open("rb") as content:
        while block := content.read(BLOCK):
            digest.update(block)
    transfer.check(started=False)
    if digest.hexdigest() != file.sha256:
        partial.unlink()
        raise JobError(
            f"{file.path} was damaged on its way: its SHA-256 is not the one that the Hub lists.",
            "Download it again; what was received was removed.",
            code="hub_checksum",
        )


@contextmanager
def _locked(storage: Path, file: LargeFile, should_stop: Callable[[], bool]) -> Iterator[None]:
    """Hold the lock that huggingface_hub uses for this file; raises StopRequested while another process has it."""
    path = storage.parent / ".locks" / storage.name / f"{file.sha256}.lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path)
    while True:
        try:
            lock.acquire(timeout=LOCK_SECONDS)
            break
        except Timeout:
            if should_stop():
                raise StopRequested from None
    try:
        yield
    finally:
        lock.release()


def _partial(blob: Path) -> Path:
    return blob.with_name(f"{blob.name}.incomplete")


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0
