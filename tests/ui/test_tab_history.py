"""The address names the selected tab: a reload returns to it, and Back and Forward change tabs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tests.support.application import Running
from tests.support.browser import reload

pytestmark = pytest.mark.slow

PHONE = (390, 844)


def open_tab(page: Any, name: str) -> None:
    page.get_by_role("tab", name=name).click()


def wait_for_tab(page: Any, name: str) -> None:
    page.locator(f'.studio-tabs > .tab-wrapper [aria-selected="true"][data-tab-id="{name}"]').wait_for()


@pytest.fixture(autouse=True)
def project(running: Running) -> None:
    """Create a project, so that the tabs are shown."""
    if not running.home.projects():
        running.home.create_project("history")


def test_a_reload_returns_to_the_tab_and_back_to_the_one_before(open_page: Callable[..., Any]) -> None:
    page = open_page()
    page.wait_for_url("**/*#plan")
    open_tab(page, "Dataset")
    page.wait_for_url("**/*#dataset")
    open_tab(page, "Train")
    page.wait_for_url("**/*#train")
    reload(page)
    wait_for_tab(page, "train")
    page.locator("#train-tiles").get_by_text("Steps").wait_for()
    page.go_back()
    wait_for_tab(page, "dataset")
    page.go_back()
    wait_for_tab(page, "plan")
    page.go_forward()
    wait_for_tab(page, "dataset")
    assert page.url.endswith("#dataset")


def test_a_tab_that_does_not_exist_in_the_address_is_ignored(open_page: Callable[..., Any]) -> None:
    page = open_page(PHONE)
    page.wait_for_url("**/*#plan")
    page.evaluate("location.hash = 'nothing'")
    wait_for_tab(page, "plan")
    open_tab(page, "Test")
    page.wait_for_url("**/*#test")
