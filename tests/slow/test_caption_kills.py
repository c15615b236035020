"""Bulk edits of captions killed at any moment: no caption is half written, and undoing brings all of them back."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from lora_studio import files
from lora_studio.dataset.captions import edits
from lora_studio.dataset.captions.edit_history import STALE_SECONDS, CaptionHistory
from lora_studio.dataset.captions.edits import plan_edit
from lora_studio.dataset.images.decode import find_images
from tests.support.forked import CONTEXT, wait_for

pytestmark = pytest.mark.slow

IMAGES = 60
CAPTIONED = 40
MOMENTS, WRITES = 8, 8  # kills after a random time, and at a random file
SEED = 7

Captions = dict[str, bytes]
Act = Callable[[Path], object]


def apply(folder: Path) -> None:
    CaptionHistory.of(folder).apply(plan_edit(find_images(folder), edits.add("a tag that comes")))


def undo(folder: Path) -> None:
    CaptionHistory.of(folder).undo()


def redo(folder: Path) -> None:
    CaptionHistory.of(folder).redo()


BEFORE: dict[Act, list[Act]] = {apply: [], undo: [apply], redo: [apply, undo]}
WRITTEN: dict[Act, int] = {apply: IMAGES, undo: CAPTIONED, redo: IMAGES}  # undoing removes the others' captions


def work(folder: Path, act: Act, deadly: int) -> None:
    """The body of the process, which is killed at its `deadly`th step (0: never).

    A step writes a caption, and then there is half of it, or puts one in place, when all are written.
    """
    fill, put, step = files.write_temporary, files.rename_into_place, 0

    def is_deadly() -> bool:
        nonlocal step
        step += 1
        return step == deadly

    def fill_temporary(path: Path, data: bytes, made: list[tuple[Path, Path]]) -> None:
        if is_deadly():
            fill(path, data[: len(data) // 2], made)
            os.kill(os.getpid(), signal.SIGKILL)
        fill(path, data, made)

    def put_in_place(path: Path, temporary: Path, mode: int) -> None:
        if is_deadly():
            os.kill(os.getpid(), signal.SIGKILL)
        put(path, temporary, mode)

    files.write_temporary, files.rename_into_place = fill_temporary, put_in_place
    (folder / "begun").touch()
    act(folder)


def captions(folder: Path) -> Captions:
    return {file.name: file.read_bytes() for file in folder.glob("[!.]*.*")}


def temporaries(folder: Path) -> list[Path]:
    return [file for file in folder.iterdir() if ".tmp" in file.name]


def died(folder: Path, act: Act, *, deadly: int = 0, delay: float | None = None) -> bool:
    """Run an act in a process, which is killed after a time in seconds or at a step; whether it was."""
    process = CONTEXT.Process(target=work, args=(folder, act, deadly), daemon=True)
    process.start()
    wait_for(lambda: (folder / "begun").exists())
    if delay is not None:
        time.sleep(delay)
        process.kill()
    process.join()
    (folder / "begun").unlink()
    return process.exitcode == -signal.SIGKILL


@pytest.mark.parametrize("act", list(BEFORE), ids=lambda act: act.__name__)
def test_an_edit_that_is_killed_at_any_moment_can_be_taken_back(tmp_path: Path, act: Act) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    for number in range(IMAGES):
        (folder / f"{number}.png").write_bytes(str(number).encode())
        if number < CAPTIONED:
            (folder / f"{number}.txt").write_bytes(f"ohwx, café {number}".encode("latin-1" if number % 2 else "utf-8"))
    original = captions(folder)

    def prepare() -> Captions:
        for earlier in BEFORE[act]:
            earlier(folder)
        return captions(folder)

    old = prepare()
    began = time.monotonic()
    assert not died(folder, act)
    lasted = time.monotonic() - began
    new = captions(folder)
    assert new != old
    source = random.Random(f"{SEED} {act.__name__}")
    halfway = 0
    for number in range(MOMENTS + WRITES):
        moment = source.random()
        step = 1 + int(moment * WRITTEN[act]) + (number % 2) * WRITTEN[act]
        delay, deadly = (moment * lasted, 0) if number < MOMENTS else (None, step)
        while True:
            if CaptionHistory.of(folder).can_undo:
                undo(folder)
            assert captions(folder) == original
            old = prepare()
            if died(folder, act, deadly=deadly, delay=delay):
                break
            assert delay is not None, f"it came to no step {deadly}"
            delay /= 2
        where = f"kill {number} (seed {SEED}) at {moment:.3f}"
        left = captions(folder)
        for name in old.keys() | new.keys():
            assert left.get(name) in (old.get(name), new.get(name)), f"{where}: {name}"
        assert left.keys() <= old.keys() | new.keys(), where
        halfway += left not in (old, new)
        if left != original:
            assert CaptionHistory.of(folder).can_undo, where
            undo(folder)
        assert captions(folder) == original, where
    assert halfway
    for file in temporaries(folder):
        os.utime(file, (0, time.time() - STALE_SECONDS - 1))
    apply(folder)
    assert not temporaries(folder)
