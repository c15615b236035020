"""A tool runs from its file, and leaves its result or its error there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lora_studio.errors import InputError
from lora_studio.lora.tools.run import run_tool
from lora_studio.workspace.project import Home
from lora_studio.workspace.tool_run import Tool, ToolRun, ToolState, read_tool_run
from tests.support.lora_layers import LINEAR, random_layer, write_layers


@pytest.mark.parametrize(
    ("tool", "more", "key"),
    [
        (Tool.INSPECT, None, "kind"),
        (Tool.RESIZE, {"rank": 2}, "error"),
        (Tool.CONVERT, {"to": "diffusers"}, "layers"),
        (Tool.METADATA, {"changes": {"title": "Ink"}}, "metadata"),
        (Tool.STRIP, {}, "metadata"),
    ],
)
def test_the_result_is_in_the_file(tmp_path: Path, home: Home, tool: Tool, more: dict | None, key: str) -> None:
    source = write_layers(tmp_path / "x.safetensors", {LINEAR: random_layer("lora")[0]})
    arguments: dict[str, Any] = {"path": str(source)}
    if more is not None:
        arguments = {"source": str(source), "out": str(tmp_path / "y.safetensors"), **more}
    ToolRun(tool=tool, arguments=arguments).save(tmp_path / "tool.json")
    assert run_tool(tmp_path / "tool.json", home)
    run = read_tool_run(tmp_path / "tool.json")
    assert run is not None
    assert run.state is ToolState.DONE
    assert key in run.result
    assert (tmp_path / "y.safetensors").exists() == (more is not None)


def test_an_error_is_in_the_file_with_its_remedy(tmp_path: Path, home: Home) -> None:
    arguments = {"sources": [str(tmp_path / "gone.safetensors")] * 2, "out": str(tmp_path / "y.safetensors")}
    ToolRun(tool=Tool.MERGE, arguments=arguments).save(tmp_path / "tool.json")
    assert not run_tool(tmp_path / "tool.json", home)
    run = read_tool_run(tmp_path / "tool.json")
    assert run is not None
    assert (run.state, run.code) == (ToolState.FAILED, "lora_missing")
    assert run.remedy


def test_a_run_whose_process_died_is_failed(tmp_path: Path) -> None:
    ToolRun(tool=Tool.STRIP, arguments={}, pid=2**22 + 1, pid_started=1.0).save(tmp_path / "tool.json")
    run = read_tool_run(tmp_path / "tool.json")
    assert run is not None
    assert (run.state, run.code) == (ToolState.FAILED, "tool_died")
    assert read_tool_run(tmp_path / "other.json") is None


def test_a_file_that_is_not_a_tool_is_refused(tmp_path: Path, home: Home) -> None:
    (tmp_path / "tool.json").write_text("{}", "utf-8")
    with pytest.raises(InputError) as caught:
        run_tool(tmp_path / "tool.json", home)
    assert caught.value.code == "tool_file"
