"""Plan and Train in a real browser: both show the one plan of a project, and what the user changed in it."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import pytest
from PIL import Image

from lora_studio.workspace.project import Project
from tests.support.application import Running
from tests.support.browser import DESKTOP, reload
from tests.support.jobs import make_project

pytestmark = pytest.mark.slow

IMAGES = 2_000
PHONE = (390, 844)


@pytest.fixture(scope="module")
def project(running: Running) -> Project:
    """Create a project with 2,000 images in a folder that sets 10 repeats."""
    project = make_project(running.home, images=0)
    first = project.images_dir / "picture.png"
    Image.new("RGB", (1024, 1024), (50, 90, 200)).save(first)
    for index in range(1, IMAGES):
        os.link(first, project.images_dir / f"picture {index}.png")
    return project


def open_plan(open_page: Callable[..., Any], size: tuple[int, int] = DESKTOP) -> Any:
    """Open the plan of the project."""
    page = open_page(size)
    page.locator("#plan-tiles").get_by_text(f"{IMAGES:,} images").wait_for()
    return page


def open_tab(page: Any, name: str) -> None:
    """Open a tab and wait for its figures."""
    page.get_by_role("tab", name=name).click()
    page.locator(f"#{name.lower()}-tiles").get_by_text("Steps").wait_for()


def steps(page: Any, tab: str) -> str:
    """Return the number of steps that a tab shows."""
    return str(page.locator(f"#{tab}-tiles .figure").first.inner_text())


def box_of(page: Any, setting: str) -> Any:
    """Return the text box of a setting."""
    return page.locator(f"#recipe-{setting} input")


def edit(page: Any, setting: str, text: str) -> None:
    """Type a value and leave the box."""
    box_of(page, setting).fill(text)
    box_of(page, setting).press("Tab")


def test_train_starts_from_the_plan_and_keeps_what_the_user_changed(
    project: Project, open_page: Callable[..., Any]
) -> None:
    page = open_plan(open_page)
    source = page.locator("#train-source")
    planned = steps(page, "plan")
    open_tab(page, "Train")
    assert steps(page, "train") == planned == "1,500"
    source.get_by_text("From the plan: 1,500 steps").wait_for()

    edit(page, "network_dim", "77")
    edit(page, "epochs", "1")
    source.get_by_text("with your 2 changes").wait_for()
    assert steps(page, "train") == "500"
    source.get_by_role("button", name="Change in Plan").click()
    page.locator("#plan-changes").get_by_text("You changed 2 settings in Train").wait_for()
    assert steps(page, "plan") == planned

    page.locator("#plan-kind").get_by_text("Concept").click()
    page.locator("#plan-recipe").get_by_text("Network rank (dim)").wait_for()
    page.locator("#plan-train").click()
    source.get_by_text("plan: 16").wait_for()  # a concept's, instead of a style's 32
    source.get_by_text("with your 2 changes").wait_for()
    assert (box_of(page, "network_dim").input_value(), box_of(page, "epochs").input_value()) == ("77", "1")
    page.locator("#recipe-network_dim").get_by_role("button", name="Back to the plan").click()
    source.get_by_text("with your change").wait_for()
    assert project.info().recipe == {"epochs": 1}

    reload(page)
    open_tab(page, "Plan")
    page.locator("#plan-changes").get_by_text("You changed 1 setting in Train").wait_for()
    open_tab(page, "Train")
    assert box_of(page, "epochs").input_value() == "1"
    source.get_by_role("button", name="Back to the plan: Epochs").click()
    source.get_by_text("From the plan: 1,500 steps").wait_for()
    assert box_of(page, "epochs").input_value() == "3"
    page.locator("#recipe-epochs:not(.changed)").wait_for()


def test_a_recipe_is_read_on_a_phone_without_scrolling_sideways(
    project: Project, open_page: Callable[..., Any]
) -> None:
    phone = open_plan(open_page, PHONE)
    table = phone.locator("#plan-recipe .stacked")
    assert table.evaluate("table => table.scrollWidth <= table.clientWidth")
    name, value, why = (cell.bounding_box() for cell in table.locator("tbody tr").first.locator("td").all())
    assert name["x"] == value["x"] == why["x"]
    assert name["y"] < value["y"] < why["y"]
    assert why["width"] > 300
