"""The real application in its own process, and pages of a headless Chromium that show it.

`running` is the application over an empty home, one per module. `page` is a new browser page, one per test, which fails
its test after an error in the console, an uncaught exception, a dialog or a request to another host. `open_page` opens
more of them, in other sizes and in dark mode. `interface` calls the handlers without server and browser.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import gradio as gr
import pytest

from lora_studio import worker
from lora_studio.workspace.job_folder import JobFolder
from lora_studio.workspace.project import Home
from tests.support.application import Running, start_app, stop_app
from tests.support.browser import CHROMIUM, CHROMIUM_FLAGS, DESKTOP, PAGE_TIMEOUT_MS
from tests.support.interface import Interface, build_blocks


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Home, gr.Blocks]:
    """Build the interface once, which takes a second, over a home whose path each test replaces by its own."""
    home = Home(tmp_path_factory.mktemp("built"))
    return home, build_blocks(home)


@pytest.fixture
def interface(home: Home, built: tuple[Home, gr.Blocks]) -> Interface:
    """The interface over the home of the test, without a server."""
    its_home, blocks = built
    object.__setattr__(its_home, "path", home.path)  # a frozen dataclass, which the handlers share
    return Interface(home, blocks=blocks)


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[tuple[JobFolder, bool]]:
    """Collect the job folders whose worker would be started, and whether it resumes; no worker is started."""
    jobs: list[tuple[JobFolder, bool]] = []
    monkeypatch.setattr(
        worker, "start", lambda folder, home, *, resume=False, trusted=True: jobs.append((folder, resume))
    )
    return jobs


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """Run the application over an empty home."""
    app = start_app(tmp_path_factory.mktemp("app"))
    yield app
    stop_app(app.process)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Start a headless Chromium; skip the test if there is none."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="needs Playwright: pip install playwright")
    if not shutil.which(CHROMIUM):
        pytest.skip(f"needs Chromium at {CHROMIUM}; set LORA_STUDIO_CHROMIUM to another path")
    with sync_api.sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=CHROMIUM_FLAGS)
        yield chromium
        chromium.close()


@dataclass
class PageProblems:
    """Collects the problems of a page in order."""

    page: Any
    host: str
    problems: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.page.on("console", self._console)
        self.page.on("pageerror", lambda error: self.problems.append(f"uncaught: {error}"))
        self.page.on("dialog", self._dialog)
        self.page.on("request", self._request)

    def _console(self, message: Any) -> None:
        if message.type == "error":
            self.problems.append(f"console: {message.text} ({message.location.get('url', '')})")

    def _dialog(self, dialog: Any) -> None:
        self.problems.append(f"dialog: {dialog.message}")
        dialog.dismiss()

    def _request(self, request: Any) -> None:
        address = urlsplit(request.url)
        if address.scheme in ("http", "https", "ws", "wss") and address.netloc != self.host:
            self.problems.append(f"request to another host: {request.url}")


@pytest.fixture
def open_page(browser: Any, running: Running) -> Iterator[Callable[..., Any]]:
    """Open the application: `open_page(size=(width, height), dark=False)` returns a Playwright page in a new context.

    The test fails at its end if any of its pages had a problem.
    """
    contexts: list[Any] = []
    problems_by_page: list[PageProblems] = []

    def open_one(size: tuple[int, int] = DESKTOP, dark: bool = False) -> Any:
        context = browser.new_context(
            viewport={"width": size[0], "height": size[1]}, color_scheme="dark" if dark else "light"
        )
        context.set_default_timeout(PAGE_TIMEOUT_MS)
        contexts.append(context)
        page = context.new_page()
        problems_by_page.append(PageProblems(page, urlsplit(running.url).netloc))
        page.goto(f"{running.url}?__theme={'dark' if dark else 'light'}")
        page.get_by_role("heading", name="LoRA Studio").wait_for()
        return page

    yield open_one
    for context in contexts:
        context.close()
    problems = [problem for page in problems_by_page for problem in page.problems]
    assert not problems, "\n".join(problems)


@pytest.fixture
def page(open_page: Callable[..., Any]) -> Any:
    """Open the application in a window of 1360 x 860."""
    return open_page()
