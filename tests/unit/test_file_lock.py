"""The lock of a file that is read, changed and written: no change is lost."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from lora_studio import file_lock
from lora_studio.dataset.marks import Marks, change_marks, load_marks
from lora_studio.errors import InputError
from lora_studio.file_lock import change_file


def later(change: Callable[[], object]) -> threading.Thread:
    """Start a change in another thread and wait a moment: it has to wait for the lock."""
    thread = threading.Thread(target=change, daemon=True)
    thread.start()
    thread.join(0.2)
    assert thread.is_alive()
    return thread


def test_a_mark_set_meanwhile_is_kept(tmp_path: Path) -> None:
    waiting = []

    def change(marks: Marks) -> Marks:
        waiting.append(later(lambda: change_marks(tmp_path, lambda others: others.with_kept(["second"]))))
        return marks.with_kept(["first"])

    change_marks(tmp_path, change)
    waiting[0].join()
    assert load_marks(tmp_path).kept == {"first", "second"}
    assert [file.name for file in tmp_path.iterdir()] == ["marks.json"]


def test_a_change_that_fails_frees_the_lock(tmp_path: Path) -> None:
    with pytest.raises(KeyError), change_file(tmp_path / "a.json"):
        raise KeyError
    with change_file(tmp_path / "a.json"):
        pass
    assert not list(tmp_path.iterdir())


def test_a_lock_that_is_held_too_long_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(file_lock, "SECONDS", 0.1)
    with change_file(tmp_path / "a.json"), pytest.raises(InputError) as caught, change_file(tmp_path / "a.json"):
        pytest.fail("both have the lock")
    assert caught.value.code == "busy"


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="needs permissions that hold")
def test_a_folder_without_permission_is_named(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(InputError) as caught, change_file(tmp_path / "a.json"):
        pass
    tmp_path.chmod(0o700)
    assert caught.value.code == "not_writable"
