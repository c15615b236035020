"""Control of runs in a real browser: continue, the queue, samples on request, and the notification at the end.

Another job holds the GPU meanwhile, so that nothing is trained. Set LORA_STUDIO_SCREENSHOTS to a folder for pictures.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from lora_studio.files import write_json
from lora_studio.workspace.gpu_queue import hold_gpu
from lora_studio.workspace.job_folder import DATASET_FILE, IMAGE_LOSSES_FILE, JobState
from lora_studio.workspace.project import Home, Project
from lora_studio.workspace.run_queue import RunQueue
from tests.support.application import Running, start_app, stop_app
from tests.support.browser import DESKTOP, reload
from tests.support.events import step_event
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


def test_an_image_opens_large_with_its_caption_while_the_run_goes_further(
    project: Project, open_page: Callable[..., Any]
) -> None:
    """The ticks of a running run do not close it; Escape does."""
    folder = make_run(project, final=False, **running_status())
    image = next(iter(sorted(project.images_dir.glob("*.png"))))
    entry = {"image": str(image), "samples": 10, "loss": 0.1, "ratio": 1.4, "significant": True}
    write_json(folder.path / IMAGE_LOSSES_FILE, {"epoch": 1, "images": [entry]})
    record = {"path": str(image), "sha256": "0", "caption": "inkstamp, a cat"}
    (folder.path / DATASET_FILE).write_text(json.dumps(record) + "\n", "utf-8")
    page = open_page()
    open_train(page)
    page.locator("#train-images button").first.click()
    large = page.locator("#train-images [popover]")
    large.get_by_text("inkstamp, a cat").wait_for()
    folder.emit(step_event(9, total=20, epoch=3, lr=1e-4))
    page.locator("#train-tiles").get_by_text("9 / 20").wait_for()
    assert large.is_visible()
    page.keyboard.press("Escape")
    large.wait_for(state="hidden")
    folder.update_status(state=JobState.DONE)


# Records the notifications, and lets the page believe that another window has the focus.
RECORD_NOTIFICATIONS = """
window.notified = [];
const Browser = window.Notification;
window.Notification = class extends Browser {
  constructor(title, options) { super(title, options); window.notified.push(title); }
};
document.hasFocus = () => false;
"""


@pytest.mark.parametrize(
    ("allowed", "status"),
    [
        (True, {"state": JobState.DONE}),
        (True, {"state": JobState.STOPPED, "code": "plateau", "message": "It stopped by itself."}),
        (False, {"state": JobState.FAILED, "message": "Out of memory."}),
    ],
    ids=["done", "stopped by itself", "not allowed"],
)
def test_the_end_of_a_run_is_in_the_title_and_a_notification(
    project: Project, open_page: Callable[..., Any], allowed: bool, status: dict[str, Any]
) -> None:
    """Without permission only the title says so, until the page has the focus again."""
    folder = make_run(project, final=False, **running_status())
    page = open_page()
    if allowed:
        page.context.grant_permissions(["notifications"])
    page.add_init_script(RECORD_NOTIFICATIONS)
    reload(page)
    open_train(page)
    page.wait_for_function("() => /[0-9]+%/.test(document.title)")
    page.locator("#train-notify [data-notify]").click()
    if allowed:
        page.locator("#train-notify [aria-pressed=true]").wait_for()
    folder.update_status(**status)
    words = {JobState.DONE: "finished", JobState.STOPPED: "stopped", JobState.FAILED: "failed"}[status["state"]]
    page.wait_for_function("text => document.title.includes(text)", arg=f"{folder.name} {words}")
    assert page.evaluate("() => window.notified") == ([f"{folder.name} {words}"] if allowed else [])
    page.evaluate("() => window.dispatchEvent(new Event('focus'))")
    page.wait_for_function("text => !document.title.includes(text)", arg=folder.name)


def test_the_queue_survives_a_restart_of_the_studio_and_starts_when_the_gpu_is_free(
    tmp_path: Path, browser: Any
) -> None:
    home = Home(tmp_path / "home")
    project = make_project(home)
    runs = [make_run(project, final=False, state=JobState.CREATED) for _ in range(2)]
    with hold_gpu(home.queue, "a test"):
        for run in reversed(runs):
            RunQueue(home).add(run)
        for number in range(2):
            folder = tmp_path / f"app{number}"
            folder.mkdir()
            app = start_app(folder, home=home)
            try:
                page = browser.new_page()
                page.goto(app.url)
                open_train(page)
                rows = page.locator("#train-queue tbody tr")
                rows.first.get_by_text("002-ink").wait_for()
                rows.nth(1).get_by_text("001-ink").wait_for()
                page.close()
            finally:
                stop_app(app.process)
    assert waiting(project) == ["002-ink", "001-ink"]
    folder = tmp_path / "free"
    folder.mkdir()
    app = start_app(folder, home=home)
    try:
        deadline = time.monotonic() + 60
        while waiting(project) == ["002-ink", "001-ink"] and time.monotonic() < deadline:
            time.sleep(0.2)
        assert "002-ink" not in waiting(project)
    finally:
        stop_app(app.process)
