"""Notes, comparisons and the split of several changes in a real browser."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lora_studio.ui.train.lineage import save_parent
from lora_studio.workspace.job_folder import JobFolder, JobState
from lora_studio.workspace.project import Project
from lora_studio.workspace.run_notes import RunNotes, read_notes
from lora_studio.workspace.run_queue import RunQueue
from tests.support.application import Running
from tests.support.browser import reload
from tests.support.jobs import make_project
from tests.support.ledger_runs import make_ledger_run

pytestmark = pytest.mark.slow

POLLS, POLL_MS = 100, 100


@pytest.fixture(scope="module")
def project(running: Running) -> Project:
    """Create a project with three runs: the first, one at another rate made from it, and one made from that."""
    project = make_project(running.home)
    first = make_ledger_run(project, samples=64)
    second = make_ledger_run(project, first, samples=64, unet_lr=1e-3)
    make_ledger_run(project, second, unet_lr=1e-3, epochs=5)
    return project


def open_section(page: Any, name: str) -> None:
    """Open a section of the Train tab."""
    page.get_by_role("tab", name="Train").click()
    page.locator("#train-section").get_by_text(name, exact=True).click()


def wait_for_notes(page: Any, run: Path, expected: RunNotes) -> None:
    """Wait until the notes on disk are as expected."""
    for _ in range(POLLS):
        if read_notes(run) == expected:
            return
        page.wait_for_timeout(POLL_MS)
    assert read_notes(run) == expected


def test_notes_and_stars_survive_a_reload(project: Project, page: Any) -> None:
    runs = [folder.path for folder in project.runs()]
    page.get_by_role("tab", name="Train").click()
    page.locator("#train-notes textarea").press_sequentially("too soft")
    page.locator("#train-stars").get_by_text("★★★", exact=True).click()
    wait_for_notes(page, runs[2], RunNotes(stars=3, notes="too soft"))

    open_section(page, "All runs")
    page.locator("#ledger-table [data-testid=cell-2-0]").click()  # the first run, below the later ones
    page.locator("#ledger-detail").get_by_text("001-ink", exact=True).wait_for()
    page.locator("#ledger-notes textarea").fill("crisp")
    page.locator("#ledger-stars").get_by_text("★★★★★", exact=True).click()
    wait_for_notes(page, runs[0], RunNotes(stars=5, notes="crisp"))
    page.locator("#ledger-table [data-testid=cell-2-1]").get_by_text("★★★★★").wait_for()

    reload(page)
    open_section(page, "All runs")
    page.locator("#ledger-table [data-testid=cell-0-1]").get_by_text("★★★", exact=True).wait_for()
    page.locator("#ledger-table [data-testid=cell-2-0]").click()
    page.locator("#ledger-detail").get_by_role("button", name="Open this run").click()
    page.locator("#train-title").get_by_text("001-ink").wait_for()
    page.wait_for_function("document.querySelector('#train-notes textarea').value === 'crisp'")
    assert read_notes(runs[2]) == RunNotes(stars=3, notes="too soft")


def test_two_runs_are_compared(project: Project, page: Any) -> None:
    open_section(page, "All runs")
    page.locator("#ledger-table [data-testid=cell-1-0]").click()
    page.locator("#ledger-detail").get_by_role("button", name="Compare with 001-ink").click()
    settings = page.locator("#compare-settings table")
    settings.get_by_text("UNet learning rate").wait_for()
    assert [cell.inner_text() for cell in settings.locator("thead th").all()] == ["", "001-ink", "002-ink"]
    assert page.locator("#compare-curves svg.drawing").count() == 2
    samples = page.locator("#compare-samples img")
    assert samples.count() == 4
    samples.first.scroll_into_view_if_needed()
    page.locator("#compare-epoch input[type=range]").focus()
    page.keyboard.press("ArrowLeft")
    page.locator("#compare-samples").get_by_text("epoch 3").first.wait_for()


def test_two_changed_settings_offer_to_be_split(project: Project, open_page: Callable[..., Any]) -> None:
    save_parent(project, "001-ink")
    page = open_page()
    page.get_by_role("tab", name="Train").click()
    page.locator("#train-runs").get_by_role("button", name="001-ink").click()
    page.locator("#train-title").get_by_text("001-ink").wait_for()
    page.locator("#train-again").click()
    page.locator("#train-lineage").get_by_text("Made from 001-ink").wait_for()
    for setting, value in (("unet_lr", "2e-4"), ("epochs", "6")):
        page.locator(f"#recipe-{setting} input").fill(value)
        page.locator(f"#recipe-{setting} input").press("Tab")
    lineage = page.locator("#train-lineage")
    lineage.get_by_text("Made from 001-ink").wait_for()
    split = lineage.get_by_role("button", name="Split into 2 runs")
    split.wait_for()
    before = len(project.runs())
    split.click()
    page.locator("#train-title").get_by_text(f"{before + 1:03d}-").wait_for()
    started = project.runs()[before:]
    recipes = [folder.job().recipe for folder in started]
    assert [(recipe.unet_lr, recipe.epochs) for recipe in recipes] == [(2e-4, 4), (5e-4, 6)]
    assert all(folder.job().parent == project.runs()[0].path for folder in started)
    stop_all(page, project, started)


def stop_all(page: Any, project: Project, started: list[JobFolder]) -> None:
    """Take the runs that the page started out of the queue, and wait for the end of the one that runs already."""
    queue = RunQueue(project.home)
    for folder in reversed(started):
        if folder.status().state is JobState.WAITING:
            queue.cancel(folder)
        folder.request_stop()
    for _ in range(POLLS * 6):
        if not any(folder.status().state.is_active for folder in started):
            return
        page.wait_for_timeout(POLL_MS)
    pytest.fail("The runs did not stop.")
