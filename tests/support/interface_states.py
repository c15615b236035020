"""The states of the interface: what must be on disk for each, and how to get there in the browser.

`visit_states` goes through all of them in one page. It begins with an empty home, and adds projects, runs and tests as
their writers leave them. Nothing trains meanwhile: the GPU is held.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from lora_studio.dataset.ingest.importers import import_paths
from lora_studio.example import EXAMPLE_IMAGES, EXAMPLE_NAME, create_example, example_project_info
from lora_studio.workspace.gpu_queue import hold_gpu
from lora_studio.workspace.job_folder import JobState
from lora_studio.workspace.project import Home, Project, ProjectInfo
from lora_studio.workspace.run_queue import RunQueue
from tests.support.browser import DESKTOP, reload
from tests.support.captioned_images import add_captioned_images
from tests.support.jobs import make_sweep, running_status
from tests.support.large_datasets import make_images, write_scan
from tests.support.ledger_runs import make_ledger_run

LARGE = 2000  # images
SAMPLE_PX = 192
SETTLE_MS = 400  # for what is drawn after the answer to a request: charts, thumbnails, the focus
IS_SETTLED = """() => !document.querySelector('#loading-bar .pending')
  && [...document.images].every((image) => image.complete || image.loading === 'lazy')"""

Act = Callable[[Any], None]


class Look(NamedTuple):
    """A size of the window, in px, and a theme."""

    name: str
    size: tuple[int, int]
    dark: bool


LOOKS = (Look("light", DESKTOP, False), Look("dark", DESKTOP, True), Look("390 px", (390, 844), False))


class InterfaceState(NamedTuple):
    """A state of the page.

    `prepare` writes what it needs on disk, `show` opens it, `leave` closes what it shows over or above the tabs.
    """

    name: str
    show: Act
    prepare: Callable[[Home], object] | None = None
    leave: Act | None = None


def visit_states(page: Any, home: Home) -> Iterator[InterfaceState]:
    """Show each state in turn in a page of the application over an empty `home`; yield it while it is shown."""
    with hold_gpu(home.queue, "the states"):
        for state in STATES:
            if state.prepare:
                state.prepare(home)
                reload(page)
                page.wait_for_function("() => document.querySelector('#project input')?.value")
            state.show(page)
            settle(page)
            yield state
            if state.leave:
                state.leave(page)


def set_look(page: Any, look: Look) -> None:
    """Change the size and theme of an open page, as gradio does when it loads."""
    page.set_viewport_size({"width": look.size[0], "height": look.size[1]})
    page.emulate_media(color_scheme="dark" if look.dark else "light")
    page.evaluate("(dark) => document.body.classList.toggle('dark', dark)", look.dark)
    settle(page)


def settle(page: Any) -> None:
    """Wait until the page has its answers and images."""
    page.wait_for_function(IS_SETTLED)
    page.wait_for_timeout(SETTLE_MS)
    page.wait_for_function(IS_SETTLED)


def make_projects(home: Home) -> None:
    """Create the projects of most states: the example, one without images, and those with 1, 24 and 2,000 images."""
    create_example(home)
    home.create_project("empty")
    one = home.create_project("one image", ProjectInfo(trigger_word="ohwx"))
    shutil.copy(EXAMPLE_IMAGES / "owl.png", one.images_dir)
    large = home.create_project("large", ProjectInfo(trigger_word="ohwx"))
    make_images(large.images_dir, LARGE)
    write_scan(large)
    filled = home.create_project("ink", example_project_info().model_copy(update={"recipe": {"network_dim": 8}}))
    import_paths([EXAMPLE_IMAGES], filled.images_dir)
    home.create_project("an older one")
    home.delete_project("an older one")


def make_trained(home: Home) -> None:
    """Create a project with two finished runs and a test of the second, and one whose run failed."""
    project = _captioned(home, "trained")
    first = make_ledger_run(project, samples=SAMPLE_PX)
    second = make_ledger_run(project, first, final=0.08, rise=0.03, samples=SAMPLE_PX, network_dim=8)
    make_sweep(project, [second.path / "ink.safetensors"])
    failed = make_ledger_run(_captioned(home, "failed"), until=20, samples=SAMPLE_PX)
    failed.update_status(
        state=JobState.FAILED,
        code="out_of_memory",
        message="The GPU ran out of memory at step 21: 11.6 GiB were in use.",
        remedy="Set gradient_checkpointing, or batch_size to 1.",
    )


def make_running(home: Home) -> None:
    """Create a project with a run that this process seems to train."""
    run = make_ledger_run(_captioned(home, "running"), until=36, samples=SAMPLE_PX)
    run.update_status(**running_status())


def make_queue(home: Home) -> None:
    """Let two more runs of that project wait for it."""
    for _ in range(2):
        RunQueue(home).add(make_ledger_run(home.project("running"), until=0))


def make_running_test(home: Home) -> None:
    """End that run and the queue, and create a test that this process seems to draw."""
    for waiting in RunQueue(home).runs():
        RunQueue(home).cancel(waiting.folder)
    home.project("running").runs()[0].update_status(state=JobState.DONE)
    trained = home.project("trained")
    make_sweep(trained, [trained.runs()[0].path / "ink.safetensors"], drawn=4, **running_status())


def _captioned(home: Home, name: str) -> Project:
    info = example_project_info().model_copy(update={"base": "SDXL 1.0"})
    return add_captioned_images(home.create_project(name, info))


def open_project(page: Any, name: str) -> None:
    """Select a project in the header, and open its plan."""
    field = page.locator("#project input")
    settle(page)
    if field.input_value() == name:
        return
    field.click()
    page.get_by_role("option", name=name, exact=True).click()
    page.get_by_role("tab", name="Plan").click()
    page.locator("#plan-tiles .tile").first.wait_for()
    settle(page)


def _tab(project: str, tab: str, wait_for: str) -> Act:
    """Return what opens a tab of a project, and waits for a part of it."""

    def show(page: Any) -> None:
        open_project(page, project)
        page.get_by_role("tab", name=re.compile(rf"\d · {tab}")).click()
        page.locator(wait_for).locator("visible=true").first.wait_for()

    return show


def _section(project: str, name: str, wait_for: str) -> Act:
    """Return what opens a section of Dataset, and waits for a part of it."""

    def show(page: Any) -> None:
        _tab(project, "Dataset", "#dataset-section")(page)
        page.locator("#dataset-section").get_by_text(name, exact=True).click()
        page.locator(wait_for).locator("visible=true").first.wait_for()

    return show


def _then_click(show: Act, target: str, wait_for: str) -> Act:
    """Return what shows a state, clicks, and waits for what that opens."""

    def click(page: Any) -> None:
        show(page)
        page.locator(target).locator("visible=true").first.click()
        page.locator(wait_for).locator("visible=true").first.wait_for()

    return click


def _escape(page: Any) -> None:
    page.keyboard.press("Escape")
    page.locator(".lightbox, dialog[open]").first.wait_for(state="detached")
    settle(page)


def _start_page(page: Any) -> None:
    page.locator("#welcome h2").wait_for()


def _start_page_by_menu(page: Any) -> None:
    page.locator("#project-menu-button").click()
    page.locator("#project-start-page").click()
    page.locator("#welcome-recent li").first.wait_for()


def _open_menu(page: Any) -> None:
    open_project(page, "ink")
    page.locator("#project-menu-button").click()
    page.locator("#project-trash").wait_for()


def _close_menu(page: Any) -> None:
    page.locator("#project-menu-button").click()
    page.locator("#project-trash").wait_for(state="hidden")


def _open_keys(page: Any) -> None:
    open_project(page, "ink")
    page.locator("[data-shortcuts]").click()
    page.locator("dialog.shortcuts").wait_for()


TEST_GRID = _tab("trained", "Test", "#test-grid img")
STATES = (
    InterfaceState("start page, no project", _start_page),
    InterfaceState("start page, recent projects", _start_page_by_menu, prepare=make_projects),
    InterfaceState("guided tour", _tab(EXAMPLE_NAME, "Plan", ".demo-tour")),
    InterfaceState("plan, no images", _tab("empty", "Plan", "#plan-tiles .tile")),
    InterfaceState("dataset, no images", _tab("empty", "Dataset", "#dataset-choose")),
    InterfaceState("dataset, one image", _section("one image", "Review", "#dataset-grid img")),
    InterfaceState("dataset, 2,000 images", _section("large", "Review", "#dataset-grid img")),
    InterfaceState("plan, filled", _tab("ink", "Plan", "#plan-tiles .tile")),
    InterfaceState("dataset, import", _section("ink", "Import", "#dataset-grid img")),
    InterfaceState("dataset, curate", _section("ink", "Curate", "#dataset-groups img")),
    InterfaceState("dataset, tag", _section("ink", "Tag", "#tag-start")),
    InterfaceState("dataset, captions", _section("ink", "Captions", "#dataset-grid img")),
    InterfaceState("dataset, review", _section("ink", "Review", "#review-picture img")),
    InterfaceState(
        "dataset, large view",
        _then_click(_section("ink", "Review", "#review-picture img"), "#review-picture button", ".viewer img"),
        leave=_escape,
    ),
    InterfaceState("dataset, statistics", _section("ink", "Statistics", "#dataset-grid img")),
    InterfaceState("train, no run", _tab("ink", "Train", "#train-start")),
    InterfaceState("test, no LoRA", _tab("ink", "Test", ".empty-state")),
    InterfaceState("projects menu", _open_menu, leave=_close_menu),
    InterfaceState("keyboard sheet", _open_keys, leave=_escape),
    InterfaceState("train, finished", _tab("trained", "Train", "#train-curve studio-chart svg"), prepare=make_trained),
    InterfaceState("train, failed", _tab("failed", "Train", "#train-curve studio-chart svg")),
    InterfaceState("test, finished", TEST_GRID),
    InterfaceState("test, large image", _then_click(TEST_GRID, "#test-grid td button", ".lightbox img"), leave=_escape),
    InterfaceState(
        "test, release",
        _then_click(
            _then_click(TEST_GRID, "#test-release > button", "#release-make"), "#release-make", "#release-result .card"
        ),
    ),
    InterfaceState("train, running", _tab("running", "Train", "#train-stop"), prepare=make_running),
    InterfaceState("train, queue", _tab("running", "Train", "#train-queue tr"), prepare=make_queue),
    InterfaceState("test, running", _tab("trained", "Test", "#test-stop"), prepare=make_running_test),
)
