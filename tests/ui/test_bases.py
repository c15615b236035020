"""The base of a plan in a real browser: downloaded from a local Hub, and tested before the training."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from lora_studio.demo import base_path
from lora_studio.workspace.project import Project, ProjectInfo
from tests.support.application import Running, start_app, stop_app
from tests.support.browser import reload
from tests.support.hub_server import HubServer

pytestmark = pytest.mark.slow

REPO = "SG161222/RealVisXL_V5.0"
LORA = Path(__file__).parents[1] / "data" / "kohya_tiny_sdxl_lora.safetensors"


@pytest.fixture(scope="module")
def hub() -> Iterator[HubServer]:
    """A Hub on which the embedded base is RealVisXL."""
    server = HubServer.of_folders(base=base_path())
    server.repos = {REPO: server.repos["base"]}
    with server.running():
        yield server


@pytest.fixture(scope="module")
def running(hub: HubServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """Run the application with that Hub, an empty cache and a user without other programs."""
    folder = tmp_path_factory.mktemp("app")
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {**hub.environment(folder / "cache"), "HOME": str(folder / "user")}.items():
            patch.setitem(os.environ, name, value)
        app = start_app(folder)
    yield app
    stop_app(app.process)


@pytest.fixture(scope="module")
def project(running: Running) -> Project:
    return running.home.create_project("inky", ProjectInfo(trigger_word="inkvora", base="embedded"))


def open_plan(open_page: Callable[..., Any]) -> Any:
    page = open_page()
    page.locator("#plan-tiles").get_by_text("Steps").wait_for()
    return page


def test_the_bare_base_is_drawn_before_the_training(project: Project, open_page: Callable[..., Any]) -> None:
    project.loras_dir.mkdir()
    shutil.copy(LORA, project.loras_dir)
    page = open_plan(open_page)
    page.locator("#plan-test-first").click()
    page.locator("#plan-test-first-stop").wait_for()
    page.locator("#plan-test-first").wait_for()
    before = page.locator("#plan-before")
    assert before.get_by_text("with inkvora").count() == before.locator("img").count() // 2 > 0
    page.get_by_role("tab", name="Test").click()
    page.locator("#test-before img").first.wait_for()
    assert page.locator("#test-before img").count() == before.locator("img").count()


def test_a_base_is_downloaded_in_the_tab(project: Project, hub: HubServer, open_page: Callable[..., Any]) -> None:
    hub.bytes_per_second = 2e5
    page = open_plan(open_page)
    page.locator("#plan-base input").click()
    page.get_by_role("option", name="RealVisXL V5.0 (download, 6.9 GB)").click()
    page.locator("#plan-download").click()
    page.locator("#plan-base-facts progress").wait_for()
    page.locator("#job-pill").get_by_text("Downloading").wait_for()

    reload(page)
    facts = page.locator("#plan-base-facts")
    facts.locator("progress").wait_for()
    page.locator("#plan-download-stop").click()
    facts.get_by_text("stopped").wait_for()

    hub.bytes_per_second = None
    hub.ranges.clear()
    page.locator("#plan-download").click()
    facts.get_by_text("on this machine").wait_for()
    assert hub.ranges[0] > 0
    assert not page.locator("#plan-download").is_visible()
    page.locator("#plan-base input").click()
    page.get_by_role("option", name="RealVisXL V5.0 (on this machine)").wait_for()
