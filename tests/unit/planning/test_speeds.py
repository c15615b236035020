"""The speed of a run is read from its events and remembered in the home."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lora_studio.events import SampleEvent
from lora_studio.planning.speeds import find_speeds, read_speeds, remember_speed, speed_of_run
from lora_studio.settings.job_specs import TrainJob
from lora_studio.workspace.job_folder import JobFolder
from lora_studio.workspace.project import Home
from tests.support.events import start_event, step_event


def run(path: Path, seconds: list[float], *, base: str = "sdxl", device: str = "GPU", processes: int = 1) -> JobFolder:
    job = {"name": "a", "dataset": "d", "base": base, "num_processes": processes}
    folder = JobFolder.create(path, TrainJob.parse(job))
    folder.emit(start_event(device=device))
    for step, each in enumerate(seconds):
        folder.emit(step_event(step + 1, seconds=each))
    return folder


def test_the_first_steps_are_left_out(tmp_path: Path) -> None:
    speed = speed_of_run(run(tmp_path / "a", [9.0] * 5 + [1.0, 2.0, 3.0, 2.0, 2.0, 2.0]))
    assert speed is not None
    assert (speed.seconds, speed.base, speed.device) == (2.0, "SDXL 1.0", "GPU")


@pytest.mark.parametrize("seconds", [[], [1.0] * 10])
def test_a_short_run_tells_no_speed(tmp_path: Path, home: Home, seconds: list[float]) -> None:
    remember_speed(home, run(tmp_path / "a", seconds))
    assert not home.speeds.exists()


def test_speeds_are_found_by_base_and_device(tmp_path: Path, home: Home) -> None:
    for number, (device, seconds) in enumerate([("CPU (2 threads)", 3.0), ("GPU", 1.0), ("CPU (8 threads)", 2.0)]):
        remember_speed(home, run(tmp_path / str(number), [seconds] * 20, device=device))
    assert [speed.seconds for speed in find_speeds(home, "SDXL 1.0", "CPU")] == [3.0, 2.0]
    assert [speed.seconds for speed in find_speeds(home, "SDXL 1.0", "GPU")] == [1.0]
    assert find_speeds(home, "Pony V6 XL", "GPU") == []


def test_a_run_of_several_gpus_is_found_by_the_name_of_one(tmp_path: Path, home: Home) -> None:
    remember_speed(home, run(tmp_path / "a", [1.0] * 20, device="2 x GPU", processes=2))
    [speed] = find_speeds(home, "SDXL 1.0", "GPU")
    assert speed.processes == 2


def test_the_peak_memory_and_the_largest_batch_are_remembered(tmp_path: Path, home: Home) -> None:
    folder = run(tmp_path / "a", [1.0] * 10)
    for step, (memory, pixels) in enumerate([(7.5, 100), (8.25, 400), (7.9, 300)], 11):
        folder.emit(step_event(step, seconds=1.0, memory_gib=memory, batch_pixels=pixels))
    remember_speed(home, folder)
    [speed] = read_speeds(home)
    assert (speed.memory_gib, speed.batch_pixels) == (8.25, 400)


def test_the_memory_of_drawing_samples_does_not_count(tmp_path: Path, home: Home) -> None:
    folder = JobFolder.create(tmp_path / "a", TrainJob.parse({"name": "a", "dataset": "d", "base": "sdxl"}))

    def steps(first: int, memory: float) -> None:
        for step in range(first, first + 8):
            folder.emit(step_event(step, seconds=1.0, memory_gib=memory, batch_pixels=memory * 10))

    drawn = SampleEvent(step=0, epoch=None, index=0, prompt="a", seed=1, path="a.png")
    folder.emit(start_event(device="GPU"))
    steps(1, 20.0)  # before a resume
    folder.emit(start_event(device="GPU"))
    folder.emit(drawn)  # before the first step, after which the peak starts at zero
    steps(9, 8.0)
    folder.emit(drawn)
    steps(17, 12.0)
    remember_speed(home, folder)
    [speed] = read_speeds(home)
    assert (speed.memory_gib, speed.batch_pixels) == (8.0, 80)


def test_lines_of_earlier_versions_have_no_memory(tmp_path: Path, home: Home) -> None:
    remember_speed(home, run(tmp_path / "a", [1.0] * 20))
    line = json.loads(home.speeds.read_text("utf-8"))
    for name in ("processes", "memory_gib", "batch_pixels"):
        del line[name]
    home.speeds.write_text(json.dumps(line) + "\n", "utf-8")
    [speed] = read_speeds(home)
    assert (speed.seconds, speed.memory_gib, speed.processes) == (1.0, None, 1)


def test_lines_that_cannot_be_read_are_left_out(tmp_path: Path, home: Home) -> None:
    remember_speed(home, run(tmp_path / "a", [1.0] * 20))
    home.speeds.write_text("{torn\n" + home.speeds.read_text("utf-8"), "utf-8")
    assert len(list(read_speeds(home))) == 1
    assert list(read_speeds(Home(tmp_path / "nowhere"))) == []
