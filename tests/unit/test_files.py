from __future__ import annotations

import errno
import json
import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from lora_studio import files
from lora_studio.errors import DiskFullError
from lora_studio.files import (
    RACY_NS,
    cached_by_stamp,
    file_stamp,
    is_racy,
    remove_temporary_files,
    write_atomic,
    write_bytes,
    write_json,
    write_many,
    write_text,
)


def test_files_have_exactly_the_given_content(tmp_path: Path) -> None:
    write_text(tmp_path / "new" / "a.txt", "grüße\n")
    write_bytes(tmp_path / "b.bin", b"\x00\xff")
    write_json(tmp_path / "c.json", {"word": "é", "list": [1, None]})
    assert (tmp_path / "new" / "a.txt").read_bytes() == "grüße\n".encode()
    assert (tmp_path / "b.bin").read_bytes() == b"\x00\xff"
    assert json.loads((tmp_path / "c.json").read_text("utf-8")) == {"word": "é", "list": [1, None]}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["b.bin", "c.json", "new"]


def test_failed_write_leaves_the_old_file_and_no_temporary(tmp_path: Path) -> None:
    target = tmp_path / "a.txt"
    write_text(target, "old")

    def half(temporary: Path) -> None:
        temporary.write_text("half of the n", "utf-8")
        raise OSError(errno.ENOSPC, "full")

    with pytest.raises(DiskFullError):
        write_atomic(target, half)
    assert target.read_text("utf-8") == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]


def test_old_file_is_readable_until_the_new_one_is_complete(tmp_path: Path) -> None:
    target = tmp_path / "a.txt"
    write_text(target, "old")
    seen = []

    def slow(temporary: Path) -> None:
        temporary.write_text("new", "utf-8")
        seen.append(target.read_text("utf-8"))

    write_atomic(target, slow)
    assert seen == ["old"]
    assert target.read_text("utf-8") == "new"


def test_permissions_follow_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        write_text(tmp_path / "a.txt", "x")
    finally:
        os.umask(before)
    assert (tmp_path / "a.txt").stat().st_mode & 0o777 == 0o640


def test_long_multibyte_names_are_supported(tmp_path: Path) -> None:
    target = tmp_path / ("画" * 80 + ".txt")
    write_text(target, "x")
    assert target.read_text("utf-8") == "x"


def test_temporary_file_keeps_the_suffix(tmp_path: Path) -> None:
    names = []
    write_atomic(tmp_path / "a.webp", lambda temporary: names.append(temporary.suffix))
    assert names == [".webp"]


def test_write_many_renames_no_file_before_all_are_on_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_many({tmp_path / f"{number}.txt": str(number).encode() for number in range(50)})
    write_many({})
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {f"{n}.txt": str(n) for n in range(50)}
    fsync = os.fsync

    def full(descriptor: int) -> None:
        fsync(descriptor)
        if os.fstat(descriptor).st_size == 3:
            raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(DiskFullError):
        write_many({tmp_path / f"{number}.txt": b"new" if number == 20 else b"no" for number in range(50)})
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {f"{n}.txt": str(n) for n in range(50)}


def test_only_old_temporary_files_are_removed(tmp_path: Path) -> None:
    names = {".a.txt.x1.tmp.txt": 90, ".b.txt.x2.tmp.txt": 10, "c.tmp.txt": 90, ".hidden.txt": 90}
    for name, seconds in names.items():
        (tmp_path / name).touch()
        os.utime(tmp_path / name, (0, time.time() - seconds))
    remove_temporary_files(tmp_path, older_than=60)
    assert {path.name for path in tmp_path.iterdir()} == names.keys() - {".a.txt.x1.tmp.txt"}
    remove_temporary_files(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"c.tmp.txt", ".hidden.txt"}


@pytest.fixture
def calls() -> list[Path]:
    """The files that `read_cached` has read."""
    return []


@pytest.fixture
def read_cached(calls: list[Path]) -> Callable[..., str]:
    @cached_by_stamp(maxsize=2)
    def read(path: Path, suffix: str = "") -> str:
        calls.append(path)
        return path.read_text("utf-8") + suffix

    return read


def settle(path: Path, seconds: float = 60) -> None:
    """Set a file's time of change back, as if it had been written some time ago."""
    changed = time.time_ns() - int(seconds * 1e9)
    os.utime(path, ns=(changed, changed))


def test_a_settled_file_is_read_once(tmp_path: Path, read_cached: Callable[..., str], calls: list[Path]) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")
    settle(path)
    assert [read_cached(path) for _ in range(3)] == ["old"] * 3
    assert read_cached(path, "!") == read_cached(path, "!") == "old!"
    assert calls == [path, path]


@pytest.mark.parametrize("change", ["length", "time", "replaced", "status"])
def test_a_changed_file_is_read_again(
    tmp_path: Path, read_cached: Callable[..., str], calls: list[Path], change: str
) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")
    settle(path)
    assert read_cached(path) == "old"
    before = path.stat()
    match change:
        case "length":
            path.write_text("longer")
        case "time":
            path.write_text("new")
            settle(path, 30)
        case "replaced":
            other = tmp_path / "b.txt"
            other.write_text("new")
            other.replace(path)
        case "status":  # in place, with its length and time of change restored, as rsync --inplace --times does
            time.sleep(0.05)  # some ticks of the clock that the status change is stamped with
            path.write_text("new")
    if change in ("length", "replaced", "status"):
        os.utime(path, ns=(before.st_mtime_ns, before.st_mtime_ns))
    assert read_cached(path) == path.read_text()
    assert len(calls) == 2


def test_a_racy_file_is_read_each_time(tmp_path: Path, read_cached: Callable[..., str], calls: list[Path]) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")
    stamp = file_stamp(path)
    changed = stamp[0]
    assert is_racy(stamp, changed)
    assert not is_racy(stamp, changed + RACY_NS)
    assert [read_cached(path), read_cached(path)] == ["old", "old"]
    assert len(calls) == 2
    path.write_text("new")
    os.utime(path, ns=(changed, changed))  # within one tick of a coarse clock
    assert read_cached(path) == "new"


def test_a_file_that_does_not_exist_is_not_cached(tmp_path: Path, read_cached: Callable[..., str]) -> None:
    path = tmp_path / "a.txt"
    with pytest.raises(FileNotFoundError):
        read_cached(path)
    path.write_text("new")
    assert read_cached(path) == "new"


def test_the_cache_keeps_the_most_recently_used_values(
    tmp_path: Path, read_cached: Callable[..., str], calls: list[Path]
) -> None:
    paths = [tmp_path / name for name in "abc"]
    for path in paths:
        path.write_text(path.name)
        settle(path)
    for path in [paths[0], paths[1], paths[0], paths[2], paths[0], paths[1]]:
        assert read_cached(path) == path.name
    assert calls == [paths[0], paths[1], paths[2], paths[1]]
