from __future__ import annotations

import errno
import json
import os
import time
from pathlib import Path

import pytest

from lora_studio import files
from lora_studio.errors import DiskFullError
from lora_studio.files import remove_temporary_files, write_atomic, write_bytes, write_json, write_many, write_text


def test_writes_what_is_given_and_nothing_else(tmp_path: Path) -> None:
    write_text(tmp_path / "new" / "a.txt", "grüße\n")
    write_bytes(tmp_path / "b.bin", b"\x00\xff")
    write_json(tmp_path / "c.json", {"word": "é", "list": [1, None]})
    assert (tmp_path / "new" / "a.txt").read_bytes() == "grüße\n".encode()
    assert (tmp_path / "b.bin").read_bytes() == b"\x00\xff"
    assert json.loads((tmp_path / "c.json").read_text("utf-8")) == {"word": "é", "list": [1, None]}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["b.bin", "c.json", "new"]


def test_a_failed_write_leaves_the_old_file_and_no_rubbish(tmp_path: Path) -> None:
    target = tmp_path / "a.txt"
    write_text(target, "old")

    def half(temporary: Path) -> None:
        temporary.write_text("half of the n", "utf-8")
        raise OSError(errno.ENOSPC, "full")

    with pytest.raises(DiskFullError):
        write_atomic(target, half)
    assert target.read_text("utf-8") == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]


def test_the_old_file_stays_readable_until_the_new_one_is_whole(tmp_path: Path) -> None:
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


def test_long_names_of_wide_letters_work(tmp_path: Path) -> None:
    target = tmp_path / ("画" * 80 + ".txt")
    write_text(target, "x")
    assert target.read_text("utf-8") == "x"


def test_temporary_file_keeps_the_suffix(tmp_path: Path) -> None:
    names = []
    write_atomic(tmp_path / "a.webp", lambda temporary: names.append(temporary.suffix))
    assert names == [".webp"]


def test_many_files_are_written_and_none_before_all_are_on_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
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


def test_what_a_killed_process_left_is_removed_and_what_is_being_written_stays(tmp_path: Path) -> None:
    names = {".a.txt.x1.tmp.txt": 90, ".b.txt.x2.tmp.txt": 10, "c.tmp.txt": 90, ".hidden.txt": 90}
    for name, seconds in names.items():
        (tmp_path / name).touch()
        os.utime(tmp_path / name, (0, time.time() - seconds))
    remove_temporary_files(tmp_path, older_than=60)
    assert {path.name for path in tmp_path.iterdir()} == names.keys() - {".a.txt.x1.tmp.txt"}
    remove_temporary_files(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"c.tmp.txt", ".hidden.txt"}
