"""The part of Plan that does all of it: its stages, its buttons, and a whole run in a browser."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lora_studio.ui.plan.make_all import MakeAll
from lora_studio.ui.state import making
from lora_studio.workflow.record import MakeRecord, Stage, StageRecord, StageState, read_record
from lora_studio.workspace.project import Home, Project
from tests.support.application import Running
from tests.support.interface import Interface, error_code
from tests.support.jobs import make_project


@pytest.fixture
def project(home: Home) -> Project:
    return make_project(home)


@pytest.fixture
def commands(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Collect the commands of the processes that would be started; none is started."""
    found: list[list[str]] = []

    def start(command: list[str], log: Any, folder: Path, environment: dict[str, str]) -> Any:
        found.append(command)
        return type("Process", (), {"pid": 1, "wait": lambda self: 0})()

    monkeypatch.setattr(making, "start_detached", start)
    monkeypatch.setattr(making.threading.Thread, "start", lambda thread: None)
    return found


def save(project: Project, **stages: StageRecord) -> None:
    MakeRecord(stages={Stage(name): record for name, record in stages.items()}).save(project)


def test_the_stages_start_in_a_process_and_are_shown(
    project: Project, interface: Interface, commands: list[list[str]]
) -> None:
    shown = interface.open_project("ink")
    assert shown["plan_all_stages"] == ""
    shown = interface.call(MakeAll.start)
    assert commands[0][-4:] == ["make", str(project.path), "--home", str(project.home.path)]
    assert read_record(project).stage(Stage.CURATE).state is StageState.STARTING
    assert shown["plan_all_stages"].count("<li") == len(Stage)
    assert shown["plan_all_stop"]["visible"] is True
    assert shown["plan_all"]["visible"] is False
    assert error_code(interface.call(MakeAll.start)["plan_all_stages"]) == "busy"


def test_without_waiting_it_is_told_so(project: Project, interface: Interface, commands: list[list[str]]) -> None:
    interface.open_project("ink")
    interface.call(MakeAll.start, plan_all_confirmed=True)
    assert commands[0][-1] == "--yes"


def test_a_review_that_waits_leads_to_the_dataset_and_continues(
    project: Project, interface: Interface, commands: list[list[str]]
) -> None:
    done = StageRecord(state=StageState.DONE)
    save(project, curate=done, tag=done, review=StageRecord(state=StageState.STOPPED, text="Look at the captions."))
    shown = interface.open_project("ink")
    assert "Look at the captions." in shown["plan_all_stages"]
    assert (shown["plan_all_continue"]["visible"], shown["plan_all_dataset"]["visible"]) == (True, True)
    interface.call(MakeAll.proceed)
    record = read_record(project)
    assert record.is_done(Stage.TAG)
    assert record.stage(Stage.REVIEW).state is StageState.STARTING
    assert record.stage(Stage.REVIEW).text, "the process knows that it waited before"


def test_a_failed_stage_says_why(project: Project, interface: Interface) -> None:
    failed = StageRecord(state=StageState.FAILED, text="Out of memory.", remedy="Lower the batch size.", code="oom")
    save(project, curate=StageRecord(state=StageState.DONE), tag=failed)
    shown = interface.open_project("ink")
    assert "Out of memory. Lower the batch size." in shown["plan_all_stages"]
    assert shown["plan_all_continue"]["visible"] is True


def test_when_all_is_done_the_test_can_be_opened_and_it_can_start_over(
    project: Project, interface: Interface, commands: list[list[str]]
) -> None:
    save(project, **{stage.value: StageRecord(state=StageState.DONE) for stage in Stage})
    shown = interface.open_project("ink")
    assert (shown["plan_all_test"]["visible"], shown["plan_all_again"]["visible"]) == (True, True)
    assert shown["plan_all_continue"]["visible"] is False
    interface.call(MakeAll.start_over)
    assert read_record(project).next_stage is Stage.CURATE


@pytest.mark.parametrize(("images", "trigger", "code"), [(0, "ink_hc", "no_images"), (3, "", "no_trigger")])
def test_what_is_missing_is_named(
    home: Home, interface: Interface, commands: list[list[str]], images: int, trigger: str, code: str
) -> None:
    project = make_project(home, "other", images=images)
    project.save_info(project.info().model_copy(update={"trigger_word": trigger}))
    interface.open_project("other")
    assert error_code(interface.call(MakeAll.start)["plan_all_stages"]) == code
    assert not commands


@pytest.mark.slow
def test_all_of_it_in_the_browser(running: Running, open_page: Callable[..., Any]) -> None:
    """From the example images to a release: it waits for a look at the captions once, and survives a new page."""
    page = open_page()
    page.get_by_role("button", name="Try it with the example set").click()
    page.get_by_role("tab", name="Plan").click()
    (project,) = running.home.projects()
    info = project.info()
    short = {"max_train_steps": 6, "sample_every_n_epochs": 0}
    project.save_info(info.model_copy(update={"recipe": info.recipe | short}))
    page.locator("#plan-all").click()
    page.locator("#plan-all-continue").wait_for()
    assert read_record(project).ended_at is Stage.REVIEW
    page.locator("#plan-all-continue").click()
    page.locator("#plan-all-stop").wait_for()
    page.close()
    page = open_page()
    page.get_by_role("tab", name="Plan").click()
    page.locator("#plan-all-test").wait_for(timeout=600_000)
    page.locator("#plan-all-stages li.done").nth(len(Stage) - 1).wait_for(timeout=60_000)
    assert list(project.path.glob("runs/*/release/*.zip"))
    page.locator("#plan-all-test").click()
    page.locator("#test-grid img").first.wait_for()
