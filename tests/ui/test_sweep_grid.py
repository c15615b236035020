"""A grid in the browser, drawn by a real worker: stopped, resumed, paged through; its cells compared and starred."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lora_studio.sampling.pipeline import load_sampling_pipeline
from lora_studio.settings.choices import Precision
from lora_studio.workspace.cell_stars import starred_cells
from lora_studio.workspace.project import Home, Project, ProjectInfo
from tests.support.application import Running
from tests.support.kohya_lora import make_lora, save_lora

pytestmark = pytest.mark.slow

WORKER_MS = 240_000
SCREENSHOTS = os.environ.get("LORA_STUDIO_SCREENSHOTS")
CELLS = 2 * 2 * 3  # prompts, seeds, strengths


@pytest.fixture
def project(running: Running, tmp_path: Path) -> Project:
    """A project on the embedded base with an imported LoRA."""
    project = running.home.create_project("ink", ProjectInfo(base="embedded", trigger_word="inkstamp_hc"))
    pipeline = load_sampling_pipeline("embedded", home=Home(tmp_path), precision=Precision.FP32)
    project.loras_dir.mkdir()
    save_lora(make_lora(pipeline.pipe, sgm=False)[0], project.loras_dir / "ink.safetensors")
    return project


def fill(page: Any, name: str, content: str) -> None:
    field = page.locator(f"#{name}").locator("textarea, input").first
    field.fill(content)
    field.blur()


def screenshot(page: Any, name: str) -> None:
    if SCREENSHOTS:
        page.wait_for_timeout(500)
        page.screenshot(path=str(Path(SCREENSHOTS, f"{name}.png")))


def test_a_grid_is_drawn_stopped_resumed_paged_compared_and_starred(
    project: Project, open_page: Callable[..., Any]
) -> None:
    page = open_page()
    page.get_by_role("tab", name="4 · Test").click()
    page.locator("#test-loras").get_by_text("ink · imported").wait_for()
    fill(page, "test-prompts", "{trigger}, cat\n{trigger}, clock")
    fill(page, "test-strengths", "0:1:0.5")
    page.get_by_role("button", name="Seeds, steps, size and more").click()
    fill(page, "test-seeds", "7:8")
    fill(page, "test-steps", "12")
    page.locator("#test-count").get_by_text(f"{CELLS} images").wait_for()
    assert page.locator(".toast-body").count() == 0
    screenshot(page, "form")
    page.locator("#test-start").click()
    stop_and_resume(page, project)
    page_through_seeds(page)
    compare_and_star(page, project)
    for dark, size in ((True, (1360, 860)), (False, (390, 844))):
        look(open_page(size=size, dark=dark), "dark" if dark else "390")


def stop_and_resume(page: Any, project: Project) -> None:
    """Stop after some cells, and resume: those that were drawn stay as they are."""
    page.locator("#test-grid img").nth(1).wait_for(timeout=WORKER_MS)
    screenshot(page, "drawing")
    page.locator("#test-stop").click()
    page.locator("#test-resume").wait_for(timeout=WORKER_MS)
    [sweep] = project.sweeps()
    kept = {path: path.stat().st_mtime_ns for path in (sweep.path / "cells").iterdir()}
    assert 0 < len(kept) < CELLS
    page.locator("#test-resume").click()
    page.locator("#test-tiles").get_by_text(str(CELLS), exact=True).wait_for(timeout=WORKER_MS)
    page.locator("#test-title").get_by_text("finished").wait_for()
    page.locator("#test-download").wait_for()
    assert len(list((sweep.path / "cells").glob("*.png"))) == CELLS
    assert {path: path.stat().st_mtime_ns for path in kept} == kept


def page_through_seeds(page: Any) -> None:
    """Show the other seed, then the seeds as rows."""
    grid = page.locator("#test-grid")
    assert grid.locator("img").count() == 6
    first = grid.locator("img").first.get_attribute("src")
    grid.get_by_role("group", name="Seeds").get_by_role("button", name="8").click()
    grid.locator("img[alt*='seed 8']").nth(5).wait_for()
    assert grid.locator("img").first.get_attribute("src") != first
    screenshot(page, "grid")
    grid.get_by_role("group", name="Rows").get_by_role("button", name="Seeds").click()
    grid.get_by_role("rowheader", name="7").wait_for()


def compare_and_star(page: Any, project: Project) -> None:
    """Go through cells with the keys; the focus stays inside, and returns to the grid."""
    page.locator("#test-grid button.pick img").nth(1).click()
    box = page.get_by_role("dialog")
    strength = box.locator("dt:has-text('Strength') + dd")
    strength.get_by_text("0.5", exact=True).wait_for()
    page.keyboard.press("ArrowRight")
    strength.get_by_text("1", exact=True).wait_for()
    page.keyboard.press("ArrowDown")
    box.locator("dt:has-text('Seed') + dd").get_by_text("8", exact=True).wait_for()
    for _ in range(20):
        page.keyboard.press("Tab")
        assert page.evaluate("!!document.activeElement.closest('.lightbox')")
    slider = box.get_by_role("slider")
    slider.fill("50")
    assert "50%" in box.locator("img.over").evaluate("image => image.style.clipPath")
    screenshot(page, "lightbox")
    page.keyboard.press("s")
    box.get_by_role("button", name="Starred").wait_for()
    [sweep] = project.sweeps()
    [name] = starred_cells(sweep.path)
    with page.expect_download() as download:
        box.get_by_role("link", name="Download").click()
    assert Path(download.value.path()).read_bytes() == (sweep.path / "cells" / name).read_bytes()
    page.keyboard.press("Escape")
    box.wait_for(state="detached")
    assert page.evaluate("document.activeElement.dataset.pick") == name
    page.locator("#test-grid .star").wait_for()


def look(page: Any, name: str) -> None:
    """Open the grid and an image in another size or in dark mode: nothing is wider than the page."""
    page.get_by_role("tab", name="4 · Test").click()
    page.locator("#test-grid img").first.wait_for()
    page.locator("#test-grid").scroll_into_view_if_needed()
    screenshot(page, f"grid-{name}")
    box = page.get_by_role("dialog")
    page.locator("#test-grid button.pick img").nth(2).dispatch_event("click")
    box.wait_for()
    page.locator("#loading-bar .pending").wait_for(state="detached")
    assert box.is_visible()
    assert page.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth")
    screenshot(page, f"lightbox-{name}")
