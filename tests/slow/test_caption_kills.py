"""Caption edits and tagging killed at any moment: no caption is half written, and undo restores all of them."""

from __future__ import annotations

import os
import random
import shutil
import signal
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
from PIL import Image

from lora_studio import files
from lora_studio.dataset.captions import edit_history, edits
from lora_studio.dataset.captions.edit_history import STALE_SECONDS, CaptionHistory
from lora_studio.dataset.captions.edits import plan_edit
from lora_studio.dataset.images.decode import find_images
from lora_studio.dataset.tagging import stage
from lora_studio.dataset.tagging.interface import Prediction
from lora_studio.dataset.tagging.labels import Label
from lora_studio.settings.choices import ExistingCaptions
from lora_studio.settings.job_specs import TagJob
from lora_studio.workspace.job_folder import JobFolder
from lora_studio.workspace.project import Home
from tests.support.forked import CONTEXT, wait_for
from tests.support.kills import kill_count

pytestmark = pytest.mark.slow

IMAGES = 60
CAPTIONED = 40
KILLS = 16  # half of them after a random time, the others at a random step
SEED = 7

Captions = dict[str, bytes]
Operation = Callable[[Path], object]


class GreyTagger:
    """A tagger, and its files at once, that predicts the grey value of the first pixel as a tag."""

    name, image_size = "grey", 8
    labels = tuple(Label(f"grey {value}", 0) for value in range(256))

    def content_hash(self) -> str:
        return self.name

    def with_prompt(self, prompt: str, max_new_tokens: int) -> GreyTagger:
        return self

    def load(self, *, on_cpu: bool = False) -> GreyTagger:
        return self

    def preprocess(self, image: Image.Image) -> int:
        return int(np.asarray(image)[0, 0, 0])

    def predict(self, inputs: Sequence[int]) -> list[Prediction]:
        time.sleep(0.002 * len(inputs))
        return [Prediction(np.array([value], np.uint16), np.array([0.9], np.float16)) for value in inputs]


def apply(folder: Path) -> None:
    CaptionHistory.of(folder).apply(plan_edit(find_images(folder), edits.add("a new tag")))


def undo(folder: Path) -> None:
    CaptionHistory.of(folder).undo()


def redo(folder: Path) -> None:
    CaptionHistory.of(folder).redo()


def tag(folder: Path) -> None:
    shutil.rmtree(folder.parent / "job", ignore_errors=True)
    job = TagJob(dataset=folder, tagger="grey", trigger_word="ohwx", existing=ExistingCaptions.OVERWRITE)
    run_tagging(JobFolder.create(folder.parent / "job", job), resume=False)


def resume_tagging(folder: Path) -> None:
    run_tagging(JobFolder(folder.parent / "job"), resume=True)


def run_tagging(folder: JobFolder, *, resume: bool) -> None:
    job = folder.job()
    assert isinstance(job, TagJob)
    home = Home(folder.path.parent / "home")
    with patch.object(stage, "find_tagger", lambda *args, **options: GreyTagger()):
        stage.tag(job, folder, home=home, report=folder.emit, should_stop=lambda: False, resume=resume)


BEFORE: dict[Operation, list[Operation]] = {apply: [], undo: [apply], redo: [apply, undo], tag: []}
WRITTEN = {apply: IMAGES, undo: CAPTIONED, redo: IMAGES, tag: IMAGES}  # undo removes the other captions


def run_in_process(folder: Path, operation: Operation, deadly_step: int) -> None:
    """Run an operation in a process that kills itself at the given step (0: never).

    A step writes a temporary file (half of it before the kill), renames one, or appends to the record of an edit (which
    leaves its last line torn).
    """
    write_temporary, rename_into_place = files.write_temporary, files.rename_into_place
    append_lines, step = edit_history.append_lines, 0

    def is_deadly() -> bool:
        nonlocal step
        step += 1
        return step == deadly_step

    def kill() -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def write_half(path: Path, data: bytes, made: list[tuple[Path, Path]]) -> None:
        if is_deadly():
            write_temporary(path, data[: len(data) // 2], made)
            kill()
        write_temporary(path, data, made)

    def rename(path: Path, temporary: Path, mode: int) -> None:
        if is_deadly():
            kill()
        rename_into_place(path, temporary, mode)

    def append_half(file: Path, lines: Iterable[str]) -> None:
        lines = list(lines)
        if is_deadly():
            text = "".join(f"{line}\n" for line in lines)
            with file.open("a") as stream:
                stream.write(text[: len(text) // 2])
            kill()
        append_lines(file, lines)

    files.write_temporary, files.rename_into_place = write_half, rename
    edit_history.append_lines = append_half
    (folder / "begun").touch()
    operation(folder)


def captions(folder: Path) -> Captions:
    return {file.name: file.read_bytes() for file in folder.glob("[!.]*.*")}


def temporary_files(folder: Path) -> list[Path]:
    return [file for file in folder.iterdir() if ".tmp" in file.name]


def was_killed(folder: Path, operation: Operation, *, deadly_step: int = 0, delay: float | None = None) -> bool:
    """Run an operation in a process that is killed after a time in seconds or at a step; return whether it was."""
    process = CONTEXT.Process(target=run_in_process, args=(folder, operation, deadly_step), daemon=True)
    process.start()
    wait_for(lambda: (folder / "begun").exists())
    if delay is not None:
        time.sleep(delay)
        process.kill()
    process.join()
    (folder / "begun").unlink()
    return process.exitcode == -signal.SIGKILL


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Images of which some have captions, in UTF-8 and in Latin-1."""
    folder = tmp_path / "images"
    folder.mkdir()
    for number in range(IMAGES):
        Image.new("RGB", (8, 8), (number, number, number)).save(folder / f"{number}.png")
        if number < CAPTIONED:
            (folder / f"{number}.txt").write_bytes(f"ohwx, café {number}".encode("latin-1" if number % 2 else "utf-8"))
    return folder


@pytest.mark.parametrize("operation", list(BEFORE), ids=lambda operation: operation.__name__)
def test_undo_restores_all_captions_after_a_kill(folder: Path, operation: Operation) -> None:
    original = captions(folder)

    def prepare() -> Captions:
        for earlier in BEFORE[operation]:
            earlier(folder)
        return captions(folder)

    old = prepare()
    began = time.monotonic()
    assert not was_killed(folder, operation)
    duration = time.monotonic() - began
    new = captions(folder)
    assert new != old
    source = random.Random(f"{SEED} {operation.__name__}")
    interrupted = 0
    kills = kill_count(KILLS)
    for number in range(kills):
        moment = source.random()
        step = 1 + int(moment * WRITTEN[operation]) + (number % 2) * WRITTEN[operation]
        delay, deadly_step = (moment * duration, 0) if number < kills // 2 else (None, step)
        while True:
            if CaptionHistory.of(folder).can_undo:
                undo(folder)
            assert captions(folder) == original
            old = prepare()
            if was_killed(folder, operation, deadly_step=deadly_step, delay=delay):
                break
            assert delay is not None, f"it did not reach step {deadly_step}"
            delay /= 2
        where = f"kill {number} (seed {SEED}) at {moment:.3f}"
        left = captions(folder)
        for name in old.keys() | new.keys():
            assert left.get(name) in (old.get(name), new.get(name)), f"{where}: {name}"
        assert left.keys() <= old.keys() | new.keys(), where
        interrupted += left not in (old, new)
        if left != original:
            assert CaptionHistory.of(folder).can_undo, where
            undo(folder)
        assert captions(folder) == original, where
    assert interrupted
    for file in temporary_files(folder):
        os.utime(file, (0, time.time() - STALE_SECONDS - 1))
    apply(folder)
    assert not temporary_files(folder)


def test_a_tagging_that_was_killed_again_and_again_is_one_edit_after_it_is_resumed(folder: Path) -> None:
    original = captions(folder)
    tag(folder)
    tagged = captions(folder)
    undo(folder)
    source = random.Random(SEED)
    assert was_killed(folder, tag, deadly_step=source.randint(4, IMAGES))
    for _ in range(4):
        assert was_killed(folder, resume_tagging, deadly_step=source.randint(1, 12))
    resume_tagging(folder)
    assert captions(folder) == tagged
    assert [edit.undone for edit in CaptionHistory.of(folder).edits()] == [False]
    undo(folder)
    assert captions(folder) == original
    redo(folder)
    assert captions(folder) == tagged
