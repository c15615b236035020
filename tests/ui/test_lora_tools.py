"""The fold "LoRA files" of the Test tab: options of a tool, its progress, its result and its errors."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lora_studio.lora.header import read_lora_header
from lora_studio.lora.tools.run import run_tool
from lora_studio.ui.server import Mode
from lora_studio.ui.state import lora_tools
from lora_studio.ui.state.lora_files import import_lora
from lora_studio.ui.sweep.tools import LoraTools
from lora_studio.workspace.project import Home, Project
from lora_studio.workspace.tool_run import LORA_TOOL_FILE
from tests.support.interface import Interface, error_code
from tests.support.jobs import LORA, make_project
from tests.support.lora_layers import LINEAR, random_layer, write_layers

ID = f"loras/{LORA.name}"


@pytest.fixture
def project(home: Home) -> Project:
    project = make_project(home)
    import_lora(project, LORA)
    return project


@pytest.fixture
def finish(monkeypatch: pytest.MonkeyPatch, project: Project) -> Callable[[], bool]:
    """Start no process; return a function that runs the requested tool here instead."""

    class Process:
        pid = 1

        def __init__(self, *command: object, **options: object) -> None:
            pass

        def wait(self) -> int:
            return 0

    monkeypatch.setattr(lora_tools.subprocess, "Popen", Process)
    monkeypatch.setattr(lora_tools.threading.Thread, "start", lambda thread: None)
    return lambda: run_tool(project.path / LORA_TOOL_FILE, project.home)


def test_a_resized_file_is_in_the_list_and_its_error_shown(
    project: Project, interface: Interface, finish: Callable[[], bool]
) -> None:
    shown = interface.open_project("ink")
    assert shown["tool_lora"]["value"] == ID
    shown = interface.call(LoraTools.run_tool, tool_kind="Resize to a smaller rank", tool_rank=1)
    assert 'class="card progress"' in shown["tool_result"]
    assert finish()
    shown = interface.call(LoraTools.tick)
    assert "Relative error" in shown["tool_result"]
    offered = {value for _, value in shown["test_loras"]["choices"]}
    assert offered == {ID, f"loras/{LORA.stem}-resized.safetensors"}
    assert Path(shown["tool_download"]["value"]).is_file()
    assert "Relative error" in interface.open_project("ink")["tool_result"]


def test_any_file_is_inspected(
    project: Project, interface: Interface, finish: Callable[[], bool], tmp_path: Path
) -> None:
    interface.open_project("ink")
    path = write_layers(
        tmp_path / "<b>.safetensors",
        {LINEAR: random_layer("lora")[0]},
        ss_tag_frequency='{"10_a": {"<i>cat</i>": 3}}',
    )
    interface.call(LoraTools.run_tool, tool_kind="Inspect", tool_path=f'"{path}"')
    assert finish()
    shown = interface.call(LoraTools.tick)["tool_result"]
    assert "a LoRA for SDXL" in shown
    assert "in4" in shown
    assert "&lt;i&gt;cat&lt;/i&gt; 3" in shown


def test_metadata_is_filled_from_the_file_and_written(
    project: Project, interface: Interface, finish: Callable[[], bool]
) -> None:
    write_layers(
        project.loras_dir / "mine.safetensors", {LINEAR: random_layer("lora")[0]}, **{"modelspec.title": "Ink"}
    )
    interface.open_project("ink")
    shown = interface.call(LoraTools.choose_tool, tool_kind="Edit metadata", tool_lora="loras/mine.safetensors")
    assert shown["tool_title"] == "Ink"
    interface.call(LoraTools.run_tool, tool_trigger="inkstamp_hc", tool_name="mine too")
    assert finish()
    assert "inkstamp_hc" in interface.call(LoraTools.tick)["tool_result"]
    (new,) = [path for path in project.loras_dir.glob("mine*") if path.name != "mine.safetensors"]
    assert read_lora_header(new).trigger_word == "inkstamp_hc"
    assert read_lora_header(new).metadata["modelspec.title"] == "Ink"


def test_errors_have_a_code_and_write_nothing(
    project: Project, interface: Interface, finish: Callable[[], bool]
) -> None:
    interface.open_project("ink")
    for contents, code in (
        ({"tool_kind": "Resize to a smaller rank", "tool_lora": "../x"}, "no_lora"),
        ({"tool_kind": "Inspect", "tool_lora": None}, "no_lora"),
        ({"tool_kind": "Merge LoRAs", "tool_lora": ID, "tool_others": ["../x"]}, "no_lora"),
        ({"tool_kind": "Extract from a checkpoint", "tool_finetuned": ""}, "no_file"),
        ({"tool_kind": "Format C:"}, "tool"),
    ):
        shown = interface.call(LoraTools.run_tool, **contents)
        assert error_code(shown["tool_result"]) == code, contents
    interface.call(LoraTools.run_tool, tool_kind="Resize to a smaller rank", tool_lora=ID, tool_rank=None)
    assert not finish()
    assert error_code(interface.call(LoraTools.tick)["tool_result"]) == "rank"
    assert [path.name for path in project.loras_dir.iterdir()] == [LORA.name]


def test_a_shared_studio_reads_no_paths_and_no_checkpoints(project: Project, finish: Callable[[], bool]) -> None:
    interface = Interface(project.home, Mode.SHARED)
    interface.open_project("ink")
    shown = interface.call(LoraTools.run_tool, tool_kind="Inspect", tool_lora="", tool_path=str(LORA))
    assert error_code(shown["tool_result"]) == "no_lora"
    shown = interface.call(LoraTools.run_tool, tool_kind="Extract from a checkpoint", tool_finetuned="/x")
    assert error_code(shown["tool_result"]) == "local"
    interface.blocks.close(verbose=False)


@pytest.mark.slow
def test_a_lora_is_resized_in_the_browser(open_page: Callable[..., Any], running: Any) -> None:
    project = make_project(running.home)
    import_lora(project, LORA)
    page = open_page()
    page.get_by_role("tab", name="4 · Test").click()
    page.locator("#test-tools").get_by_role("button", name="LoRA files").click()
    page.locator("#tool-kind input").click()
    page.get_by_role("option", name="Resize to a smaller rank").click()
    page.locator("#tool-rank input").fill("1")
    page.locator("#tool-run").click()
    page.locator("#tool-result").get_by_text("Relative error").wait_for()
    assert len(list(project.loras_dir.glob("*-resized.safetensors"))) == 1
    page.locator("#tool-download").wait_for()
