"""What the page's tool form becomes: arguments, a new file's name, and one process at a time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lora_studio.errors import InputError
from lora_studio.ui.state import lora_tools
from lora_studio.ui.state.lora_tools import ToolForm, current_tool_run, start_tool
from lora_studio.workspace.project import Home, Project
from lora_studio.workspace.tool_run import LORA_TOOL_FILE, Tool, ToolState
from tests.support.jobs import make_project


@pytest.fixture
def project(home: Home) -> Project:
    project = make_project(home, images=0)
    project.loras_dir.mkdir()
    return project


@pytest.mark.parametrize(
    ("form", "arguments", "name"),
    [
        (ToolForm(Tool.INSPECT, Path("a.safetensors")), {"path": "a.safetensors"}, ""),
        (ToolForm(Tool.RESIZE, Path("a.safetensors"), rank=4), {"rank": 4, "keep": None}, "a-resized"),
        (
            ToolForm(Tool.MERGE, Path("a.safetensors"), [Path("b")], "1, -0.5"),
            {"sources": ["a.safetensors", "b"], "weights": [1.0, -0.5]},
            "a-merged",
        ),
        (ToolForm(Tool.CONVERT, Path("a.safetensors"), naming="diffusers"), {"to": "diffusers"}, "a-converted"),
        (
            ToolForm(Tool.EXTRACT, finetuned="x/t.safetensors", base="b", rank=8),
            {"base": "b", "rank": 8},
            "t-extracted",
        ),
        (
            ToolForm(Tool.METADATA, Path("a"), changes={"title": "T"}, name="My file"),
            {"changes": {"title": "T"}},
            "My-file",
        ),
        (ToolForm(Tool.STRIP, Path("a.safetensors")), {}, "a-stripped"),
    ],
)
def test_the_form_becomes_arguments(project: Project, form: ToolForm, arguments: dict[str, Any], name: str) -> None:
    found = form.arguments(project)
    assert arguments.items() <= found.items()
    if name:
        assert Path(found["out"]).parent == project.loras_dir
        assert Path(found["out"]).stem.casefold() == name.casefold()


def test_a_name_made_from_the_source_gets_a_number(project: Project) -> None:
    (project.loras_dir / "a-stripped.safetensors").touch()
    found = ToolForm(Tool.STRIP, Path("a.safetensors")).arguments(project)
    assert Path(found["out"]).name == "a-stripped-2.safetensors"


@pytest.mark.parametrize(
    ("form", "code"),
    [
        (ToolForm(Tool.RESIZE), "no_lora"),
        (ToolForm(Tool.EXTRACT, finetuned="x"), "no_file"),
        (ToolForm(Tool.MERGE, Path("a"), [Path("b")], "1, much"), "merge_weights"),
    ],
)
def test_what_is_missing_is_an_error(project: Project, form: ToolForm, code: str) -> None:
    with pytest.raises(InputError) as caught:
        form.arguments(project)
    assert caught.value.code == code


def test_one_tool_runs_at_a_time(project: Project, home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    commands: list[list[str]] = []

    class Process:
        pid = 1

        def __init__(self, command: list[str], **options: object) -> None:
            commands.append(command)

        def wait(self) -> int:
            return 0

    monkeypatch.setattr(lora_tools.subprocess, "Popen", Process)
    monkeypatch.setattr(lora_tools.threading.Thread, "start", lambda thread: None)
    assert current_tool_run(project) is None
    start_tool(project, ToolForm(Tool.INSPECT, Path("a")), home)
    run = current_tool_run(project)
    assert run is not None
    assert run.state is ToolState.RUNNING
    assert commands[0][2:4] == ["lora", "run"]
    with pytest.raises(InputError) as caught:
        start_tool(project, ToolForm(Tool.INSPECT, Path("a")), home)
    assert caught.value.code == "busy"
    assert len(commands) == 1


def test_a_process_that_cannot_start_is_a_failure(
    project: Project, home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lora_tools.sys, "executable", "/bin/false")
    start_tool(project, ToolForm(Tool.INSPECT, Path("a")), home)
    for thread in lora_tools.threading.enumerate():
        if thread.name.startswith("reap "):
            thread.join(30)
    run = current_tool_run(project)
    assert run is not None
    assert (run.state, run.code) == (ToolState.FAILED, "tool_died")


def test_the_end_of_an_earlier_process_does_not_fail_the_next_run(
    project: Project, home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process exits some time after it has written its result, when the next tool may have been started."""
    ended = lora_tools.threading.Event()

    class Process:
        pid = 1

        def __init__(self, *command: object, **options: object) -> None:
            pass

        def wait(self) -> int:
            ended.wait(30)
            return 0

    monkeypatch.setattr(lora_tools.subprocess, "Popen", Process)
    start_tool(project, ToolForm(Tool.INSPECT, Path("a")), home)
    first = current_tool_run(project)
    assert first is not None
    first.state = ToolState.DONE
    first.save(project.path / LORA_TOOL_FILE)
    reaper = next(thread for thread in lora_tools.threading.enumerate() if thread.name.startswith("reap "))
    second = first.model_copy(update={"id": "second", "state": ToolState.RUNNING})
    second.save(project.path / LORA_TOOL_FILE)
    ended.set()
    reaper.join(30)
    run = current_tool_run(project)
    assert run is not None
    assert (run.id, run.state) == ("second", ToolState.RUNNING)
