"""Plan in a real browser: plots over one variable, the plan as text, the guide's sections, one click back, dry run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from lora_studio.planning.project_plan import load_plan
from lora_studio.workspace.project import Project
from tests.support.application import Running
from tests.support.jobs import make_project

pytestmark = pytest.mark.slow

WORKER_MS = 240_000  # a worker process imports torch first, and the machine may be busy


@pytest.fixture(scope="module")
def project(running: Running) -> Project:
    """Create a project on the embedded base, with a change in Train."""
    project = make_project(running.home, network_dim=77)
    project.save_info(project.info().model_copy(update={"base": "embedded", "vram_gib": 8.0}))
    return project


def open_plan(open_page: Callable[..., Any]) -> Any:
    """Open the project's plan."""
    page = open_page()
    page.locator("#plan-tiles").get_by_text("Steps").wait_for()
    return page


def test_plots_over_a_variable_show_the_figures_of_the_value_that_is_pointed_at(
    project: Project, open_page: Callable[..., Any]
) -> None:
    page = open_plan(open_page)
    plots = page.locator("#plan-what-if-plots")
    assert not plots.locator(".plot").count()
    page.locator("#plan-what-if").get_by_text("What if", exact=True).click()
    plots.locator(".reading").get_by_text("3 images · ").first.wait_for()
    page.locator("#plan-what-if-variable").get_by_text("Epochs").click()
    steps = plots.locator(".reading").first
    steps.get_by_text("epoch").wait_for()
    planned = load_plan(project).plan
    assert planned is not None
    assert f"{planned.recipe.epochs} epochs · {planned.steps.total_steps:,} steps" in steps.inner_text()
    last = plots.locator(".plot").last
    last.press("Home")
    first_value = last.locator("text.tick[text-anchor=middle]").first.text_content()
    assert plots.locator(".live").last.text_content().startswith(f"{first_value} epoch")
    assert plots.locator(".tooltip:visible dd").count() == 4
    assert "steps" in plots.locator(".tooltip:visible dd").first.inner_text()

    page.locator("#plan-kind").get_by_text("Concept").click()
    page.locator("#plan-recipe").get_by_text("concept").first.wait_for()
    assert plots.locator(".plot").count() == 4
    page.get_by_role("button", name="Ways to save memory").click()
    page.locator("#plan-memory").get_by_text("Recompute nothing").wait_for()


def test_the_plan_is_copied_as_text_and_its_reasons_lead_to_the_guide(
    project: Project, open_page: Callable[..., Any]
) -> None:
    page = open_plan(open_page)
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page.get_by_role("button", name="Copy as text").click()
    page.get_by_role("button", name="Copied").wait_for()
    planned = load_plan(project).plan
    assert planned is not None
    assert page.evaluate("navigator.clipboard.readText()").strip() == planned.describe().strip()

    section = page.locator("#guide-optimizer")
    assert not section.locator("p").first.is_visible()
    page.locator("#plan-recipe a[href='#guide-optimizer']").click()
    section.locator("p").first.wait_for()
    assert section.locator("summary").evaluate("summary => summary === document.activeElement")
    section.get_by_role("link", name="Back to the recipe").click()

    page.locator("#plan-recipe").get_by_role("button", name="Back to the plan: Network rank (dim)").click()
    page.locator("#plan-recipe tr.changed").wait_for(state="detached")
    assert project.info().recipe == {}


def test_a_dry_run_measures_the_time_of_a_step(project: Project, open_page: Callable[..., Any]) -> None:
    project.save_info(project.info().model_copy(update={"vram_gib": None}))
    page = open_plan(open_page)
    tiles = page.locator("#plan-tiles")
    assert "estimated" in tiles.inner_text()
    page.locator("#plan-measure").click()
    page.locator("#plan-measure-stop").wait_for()
    tiles.get_by_text("measured in an earlier run").first.wait_for(timeout=WORKER_MS)
    page.locator("#plan-measure").wait_for()
