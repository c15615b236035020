"""The application starts without heavy imports and reports a port that is in use."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gradio as gr
import pytest

from lora_studio.ui.app import AppFrame
from lora_studio.workspace.project import Home
from tests.support.application import ROOT, Running
from tests.support.interface import Interface, error_code
from tests.support.jobs import make_project

HEAVY = ("torch", "diffusers", "transformers", "peft", "timm", "accelerate", "safetensors.torch", "scipy")


def test_the_interface_imports_nothing_heavy(tmp_path: Path) -> None:
    script = (
        "import sys, app\n"
        "from pathlib import Path\n"
        "from lora_studio.workspace.project import Home\n"
        "from lora_studio.ui.launch import build_app\n"
        f"build_app(Home(Path({str(tmp_path)!r})))\n"
        "print(*sys.modules, sep='\\n')"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    assert "gradio" in loaded
    assert not loaded.intersection(HEAVY)


@pytest.mark.slow
def test_an_empty_home_offers_three_ways_to_start(running: Running, page: Any) -> None:
    assert page.title() == "LoRA Studio"
    for name in ("Try it with the example set", "Import my images", "Plan first"):
        page.get_by_role("button", name=name).wait_for()


@pytest.mark.slow
def test_a_port_in_use_is_reported(running: Running, tmp_path: Path) -> None:
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    port = running.url.rstrip("/").rpartition(":")[2]
    done = subprocess.run(
        [sys.executable, "app.py", "--port", port, "--home", str(tmp_path / "home")],
        cwd=ROOT,
        env={"PATH": "/usr/bin:/bin", "TMPDIR": str(temporary), "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert f"port {port}" in done.stderr
    assert "--port" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_dark_mode_and_a_phone_need_no_horizontal_scrolling(running: Running, open_page: Callable[..., Any]) -> None:
    page = open_page(size=(390, 844), dark=True)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    assert page.evaluate("document.body.classList.contains('dark')")


def test_events_show_progress_on_the_loading_bar_only(interface: Interface) -> None:
    """Whenever an event starts or ends, gradio's page goes through all components that ever showed progress."""
    events = interface.blocks.get_config_file()["dependencies"]
    (bar,) = (number for number, block in interface.blocks.blocks.items() if block.elem_id == "loading-bar")
    shown = {(event["show_progress"], *event["show_progress_on"]) for event in events}
    assert shown == {("hidden",), ("minimal", bar)}


def test_lists_that_are_filled_when_the_page_loads_leave_their_choices_to_the_handlers(interface: Interface) -> None:
    """A page that is older than the server, as after a restart, still has choices that the server does not know."""
    names = {
        "project",
        "project-trash",
        "train-preset",
        "train-preset-own",
        "compare-runs",
        "test-loras",
        "release-lora",
    }
    lists = [block for block in interface.blocks.blocks.values() if getattr(block, "elem_id", None) in names]
    assert len(lists) == len(names)
    for one in lists:
        assert one.preprocess(["001-gone"] if one.multiselect else "001-gone") in ("001-gone", ["001-gone"])


def test_a_project_that_is_gone_is_dropped_from_the_list_with_a_message(home: Home, interface: Interface) -> None:
    make_project(home)
    make_project(home, "gone")
    interface.open_project("ink")
    home.delete_project("gone")
    shown = interface.call(AppFrame.select_project, project="ink", project_list="gone")
    assert error_code(shown["frame_notice"]) == "no_project"
    assert shown["project_list"] == {"choices": ["ink"], "value": "ink"}


def test_every_field_has_an_id(interface: Interface) -> None:
    """The ids of a field's label, box and help text are derived from it in field_labels.js."""
    kinds = (gr.Textbox, gr.Number, gr.Dropdown, gr.Slider, gr.Checkbox)
    fields = [block for block in interface.blocks.blocks.values() if isinstance(block, kinds)]
    ids = [field.elem_id for field in fields]
    assert [field.label for field in fields if not field.elem_id] == []
    assert len(set(ids)) == len(ids)
