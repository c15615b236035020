"""Main-thread time of the page during a training and for opening tabs, over gradio's default progress display.

By default gradio shows progress on all outputs of an event, and searches all components at its start and end; the
studio uses one small bar instead. Both are measured with the example project on the embedded base. Needs Chromium and
Playwright, like the browser tests.

    python -m benchmarks.page
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

import gradio as gr
from playwright.sync_api import sync_playwright

from lora_studio.ui import launch
from lora_studio.workspace.project import Home
from tests.support.browser import CHROMIUM, CHROMIUM_FLAGS, DESKTOP, PAGE_TIMEOUT_MS

TABS = ("Dataset", "Test", "Plan", "Train")
PAUSE_MS = 3_000
OBSERVED_MS = 20_000
POLL_SECONDS = 0.5


def build_with_default_progress(*args: Any) -> gr.Blocks:
    """Build the interface with gradio's default: progress on all outputs."""
    blocks = build_app(*args)
    for event in blocks.fns.values():
        event.show_progress_on = None
    return blocks


build_app = launch.build_app


def measure(page: Any, url: str) -> dict[str, float]:
    """Return seconds of the page's main thread: for opening each tab once, and per second during a training."""
    devtools = page.context.new_cdp_session(page)
    devtools.send("Performance.enable")

    def busy(act: Callable[[], None]) -> float:
        def spent() -> float:
            metrics = devtools.send("Performance.getMetrics")["metrics"]
            return float(next(item["value"] for item in metrics if item["name"] == "TaskDuration"))

        before = spent()
        act()
        return spent() - before

    def open_tabs() -> None:
        for name in TABS:
            page.get_by_role("tab", name=name).click()
            page.wait_for_timeout(PAUSE_MS)

    page.goto(url)
    page.get_by_role("button", name="Try it with the example set").click()
    page.get_by_role("tab", name="Train").wait_for()
    page.wait_for_timeout(PAUSE_MS)
    tabs = busy(open_tabs)
    page.locator("#train-start").click()
    page.locator("#train-curve svg").wait_for()
    training = busy(lambda: page.wait_for_timeout(OBSERVED_MS))
    return {"opening the four tabs": tabs, "a second of training": training * 1000 / OBSERVED_MS}


def main() -> None:
    """Measure both in turn and print the ratios."""
    found = {}
    with sync_playwright() as playwright, tempfile.TemporaryDirectory(dir=Path.home()) as folder:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=CHROMIUM_FLAGS)
        for name, build in {"studio": build_app, "gradio": build_with_default_progress}.items():
            page = chromium.new_page(viewport={"width": DESKTOP[0], "height": DESKTOP[1]})
            page.set_default_timeout(PAGE_TIMEOUT_MS)
            home = Home(Path(folder) / name)
            with patch.object(launch, "build_app", build):
                served = launch.serve(home)
            found[name] = measure(page, served.url)
            page.close()
            served.close()
            (run,) = home.projects()[0].runs()
            run.request_stop()
            while run.status().state.is_active:
                time.sleep(POLL_SECONDS)
        chromium.close()
    for what, seconds in found["studio"].items():
        plain = found["gradio"][what]
        print(f"{what}: {seconds:.2f} s over {plain:.2f} s with gradio's default: {seconds / plain:.2f}")


if __name__ == "__main__":
    main()
