"""The example that the guests of a Space look at is made once, in a process of its own."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import psutil
import pytest

from lora_studio.example import EXAMPLE_NAME, ensure_example
from lora_studio.ui.state import making
from lora_studio.ui.state.making import TOUR_VARIABLE, make_tour
from lora_studio.workflow.record import MakeRecord, Stage, StageRecord, StageState, read_record
from lora_studio.workspace.project import Home
from tests.support.jobs import make_run


class Process:
    """Replaces the process that makes the project: it is running, and is this one."""

    pid = os.getpid()

    def wait(self) -> None:
        pass


@pytest.fixture
def commands(monkeypatch: pytest.MonkeyPatch) -> list[Sequence[str]]:
    """Record the commands that are started instead of starting them."""
    found: list[Sequence[str]] = []

    def start(command: Sequence[str], *others: Any) -> Process:
        found.append(command)
        return Process()

    monkeypatch.setattr(making, "start_detached", start)
    monkeypatch.setattr(making, "_reap", lambda *arguments: None)
    return found


def record_of(**states: StageState) -> MakeRecord:
    own = psutil.Process()
    stages = {Stage(name): StageRecord(state=state) for name, state in states.items()}
    return MakeRecord(stages=stages, pid=own.pid, pid_started=own.create_time())


def test_a_new_home_gets_the_example_and_its_run(home: Home, commands: list[Sequence[str]]) -> None:
    make_tour(home)
    (project,) = home.projects()
    assert project.name == EXAMPLE_NAME
    (command,) = commands
    assert command[2:] == ["make", str(project.path), "--home", str(home.path), "--yes"]
    assert read_record(project).current is not None
    make_tour(home)  # a second studio on the same home
    assert len(commands) == 1


@pytest.mark.parametrize(
    ("state", "is_started"),
    [(StageState.STOPPED, True), (StageState.FAILED, False), (StageState.RUNNING, False), (StageState.DONE, False)],
)
def test_an_interrupted_tour_is_continued(
    home: Home, commands: list[Sequence[str]], state: StageState, is_started: bool
) -> None:
    project = ensure_example(home)
    done = {stage.value: StageState.DONE for stage in Stage}
    record_of(**done | {Stage.TRAIN.value: state}).save(project)
    make_tour(home)
    assert len(commands) == is_started


def test_a_project_in_which_the_owner_trains_is_left_alone(home: Home, commands: list[Sequence[str]]) -> None:
    make_run(ensure_example(home))
    make_tour(home)
    assert commands == []


def test_the_owner_can_do_without(home: Home, commands: list[Sequence[str]], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(TOUR_VARIABLE, "0")
    make_tour(home)
    assert commands == []
