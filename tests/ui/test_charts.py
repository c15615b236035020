"""Charts in a real browser: pointer, keys, zoom through updates, the table, and downloads."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from lora_studio.events import CheckpointEvent, SampleEvent
from lora_studio.workspace.job_folder import JobFolder, JobState, JobStatus
from tests.support.application import Running
from tests.support.events import step_event
from tests.support.jobs import make_project, make_run, running_status

pytestmark = pytest.mark.slow

STEPS = 40
HOSTILE = "<img src=x onerror=alert(1)>.safetensors"


@pytest.fixture(scope="module")
def run(running: Running) -> JobFolder:
    """Create a running run of 40 steps, whose loss at a step is 1/step, with a sample and a hostile checkpoint."""
    folder = make_run(make_project(running.home), steps=STEPS, final=False, **running_status())
    (folder.path / "samples").mkdir()
    Image.new("RGB", (32, 32), "red").save(folder.path / "samples" / "one.png")
    folder.emit(SampleEvent(step=10, epoch=None, index=0, prompt="clock", seed=1, path="samples/one.png"))
    path = folder.path / "checkpoints" / HOSTILE
    path.write_bytes(b"")
    folder.emit(CheckpointEvent(step=30, epoch=None, path=f"checkpoints/{HOSTILE}"))
    return folder


@pytest.fixture
def chart(run: JobFolder, open_page: Callable[..., Any]) -> Any:
    """Open the loss chart of the run."""
    page = open_page()
    page.get_by_role("tab", name="Train").click()
    chart = page.locator("#train-curve studio-chart").first
    chart.locator("path.line.raw").first.wait_for(state="attached")
    chart.scroll_into_view_if_needed()
    return chart


def point_at(chart: Any, step: float, last: int) -> None:
    """Move the pointer to a step of a chart of 0 to `last`, by the places of its axes."""
    box, hair = chart.locator(".plot").bounding_box(), chart.locator("path.grid").first
    grid = hair.bounding_box()
    chart.page.mouse.move(grid["x"] + grid["width"] * step / last, box["y"] + box["height"] / 3)


def ticks(chart: Any) -> list[str]:
    return list(chart.locator("text.tick[text-anchor=middle]").all_text_contents())


def test_the_pointer_shows_values_sample_and_marks_and_keys_move_the_cursor(chart: Any) -> None:
    tooltip = chart.locator(".tooltip")
    point_at(chart, 16, STEPS)
    tooltip.get_by_text("step 16 · epoch 1").wait_for()
    assert tooltip.locator("dd").first.inner_text() == "0.06250"
    assert tooltip.get_by_text("sample of step 10").is_visible()
    chart.page.wait_for_function("image => image.naturalWidth > 0", arg=tooltip.locator("img").element_handle())
    point_at(chart, 30, STEPS)
    tooltip.get_by_text(HOSTILE).wait_for()
    chart.page.mouse.move(2, 2)
    assert tooltip.is_hidden()

    live = chart.locator(".live")
    chart.locator(".plot").focus()
    for key, step in (("Home", 1), ("ArrowRight", 2), ("ArrowRight", 3), ("End", STEPS), ("ArrowLeft", STEPS - 1)):
        chart.page.keyboard.press(key)
        assert live.text_content().startswith(f"step {step} "), key
    assert tooltip.get_by_text(f"step {STEPS - 1} ").is_visible()


def test_dragging_zooms_and_an_update_keeps_the_zoom(chart: Any, run: JobFolder) -> None:
    page, reset = chart.page, chart.get_by_role("button", name="Reset zoom")
    assert reset.is_hidden()
    whole = ticks(chart)
    point_at(chart, 10, STEPS)
    page.mouse.down()
    point_at(chart, 15, STEPS)
    point_at(chart, 20, STEPS)
    page.mouse.up()
    reset.wait_for()
    zoomed = ticks(chart)
    assert zoomed[0] == "10"
    assert int(zoomed[-1]) == 20
    small = page.locator("#train-curve studio-chart").nth(1)
    assert small.get_by_role("button", name="Reset zoom").is_visible()

    for step in range(STEPS + 1, STEPS + 5):
        run.emit(step_event(step, loss=1 / step, total=STEPS, lr=1e-4))
    page.locator("#train-tiles").get_by_text(f"{STEPS + 4} / ").wait_for()
    assert ticks(chart) == zoomed
    chart.locator(".plot").focus()
    page.keyboard.press("Escape")
    reset.wait_for(state="hidden")
    assert ticks(chart) == whole


def test_the_table_has_the_figures_of_the_events_and_pictures_are_downloaded(
    chart: Any, run: JobFolder, tmp_path: Path
) -> None:
    chart.get_by_text("Show as table").click()
    rows = chart.locator("tbody tr")
    rows.first.wait_for()
    cells = rows.evaluate_all("rows => rows.map((row) => [...row.cells].map((cell) => cell.textContent))")
    shown = {int(step): float(loss) for step, loss, *_ in cells}
    losses = {event.step: event.loss for event in run.events()[0] if event.name == "step"}
    assert len(shown) >= STEPS
    assert shown == {step: pytest.approx(losses[step], rel=1e-5) for step in shown}

    for kind in ("PNG", "SVG"):
        with chart.page.expect_download() as download:
            chart.get_by_role("button", name=f"Download the chart as {kind}").click()
        path = tmp_path / download.value.suggested_filename
        download.value.save_as(path)
        assert path.name == f"001-ink-loss.{kind.lower()}"
    with Image.open(tmp_path / "001-ink-loss.png") as picture:
        assert picture.width > 600
        assert len(picture.convert("RGB").getcolors(maxcolors=2**24)) > 3
    texts = [item.text for item in ElementTree.parse(tmp_path / "001-ink-loss.svg").iter() if item.text]
    assert "Loss" in texts
    assert "smoothed" in texts
    run.set_status(JobStatus(state=JobState.DONE))
