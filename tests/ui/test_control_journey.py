"""Control of runs in a real browser: continue, the queue, and samples on request.

Another job holds the GPU meanwhile, so that nothing is trained. Set LORA_STUDIO_SCREENSHOTS to a folder for pictures.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from lora_studio.files import write_json
from lora_studio.workspace.gpu_queue import hold_gpu
from lora_studio.workspace.job_folder import JobState
from lora_studio.workspace.project import Project
from lora_studio.workspace.run_queue import RunQueue
from tests.support.application import Running
from tests.support.browser import DESKTOP, reload
from tests.support.jobs import make_project, make_run, running_status

pytestmark = pytest.mark.slow
PHONE = (390, 844)


@pytest.fixture(scope="module")
def project(running: Running) -> Iterator[Project]:
    """A project with a finished run that has a saved state, while another job holds the GPU."""
    project = make_project(running.home)
    state = make_run(project).path / "checkpoints" / "state" / "00000008-00002"
    state.mkdir(parents=True)
    for name in ("lora.safetensors", "optimizer.pt"):
        (state / name).write_bytes(b"tensors")
    write_json(state / "state.json", {"version": 2, "progress": {"step": 8}, "steps_per_epoch": 4})
    with hold_gpu(running.home.queue, "a test"):
        yield project


def picture(page: Any, name: str) -> None:
    """Save a picture of the page, if LORA_STUDIO_SCREENSHOTS is set."""
    if folder := os.environ.get("LORA_STUDIO_SCREENSHOTS"):
        Path(folder).mkdir(parents=True, exist_ok=True)
        page.screenshot(path=str(Path(folder) / f"{name}.png"), full_page=True)


def waiting(project: Project) -> list[str]:
    return [run.folder.name for run in RunQueue(project.home).runs()]


def open_train(page: Any) -> None:
    page.get_by_role("tab", name="Train").click()
    page.locator("#train-title").get_by_role("heading").first.wait_for()


def test_a_run_is_continued_and_the_queue_survives_a_reload(project: Project, open_page: Callable[..., Any]) -> None:
    page = open_page()
    open_train(page)
    page.locator("#train-continue").wait_for()
    picture(page, "continue-light")
    page.locator("#train-more-epochs input").fill("3")
    page.locator("#train-continue").click()
    page.locator("#train-state").get_by_text("In the queue").wait_for()
    assert waiting(project) == ["002-ink"]

    page.locator("#train-new").click()
    page.locator("#train-start").click()
    queue = page.locator("#train-queue")
    queue.get_by_text("003-ink").wait_for()
    picture(page, "queue-light")
    queue.get_by_title("Up: 003-ink").click()
    queue.locator("tbody tr").first.get_by_text("003-ink").wait_for()
    reload(page)
    open_train(page)
    queue.locator("tbody tr").first.get_by_text("003-ink").wait_for()
    assert waiting(project) == ["003-ink", "002-ink"]
    queue.get_by_title("Remove: 003-ink").click()
    queue.get_by_text("003-ink").wait_for(state="detached")
    assert waiting(project) == ["002-ink"]
    if os.environ.get("LORA_STUDIO_SCREENSHOTS"):
        for size, dark, name in ((DESKTOP, True, "queue-dark"), (PHONE, False, "queue-phone")):
            other = open_page(size, dark)
            open_train(other)
            other.locator("#train-queue").get_by_text("002-ink").wait_for()
            picture(other, name)
            other.locator("#train-runs").get_by_role("button", name="001-ink").click()
            other.locator("#train-continue").wait_for()
            picture(other, name.replace("queue", "continue"))


def test_samples_and_a_checkpoint_on_request(project: Project, open_page: Callable[..., Any]) -> None:
    folder = make_run(project, final=False, **running_status())
    page = open_page()
    open_train(page)
    page.locator("#train-sample").click()
    page.locator("#train-sample", has_text="Sampling").wait_for()
    assert folder.samples_requested()
    page.locator("#train-save").click()
    page.locator("#train-save", has_text="Saving").wait_for()
    assert folder.save_requested()
    picture(page, "running-light")
    folder.clear_sample_request()
    page.locator("#train-sample", has_text="Sample now").wait_for()
    folder.update_status(state=JobState.FAILED, code="out_of_memory", message="Out of memory.", remedy="Less.")
    page.locator("#train-restart", has_text="batch size").wait_for()
    picture(page, "restart-light")
