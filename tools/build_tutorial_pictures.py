"""Build the pictures of docs/tutorial.md from a real run: `python tools/build_tutorial_pictures.py`.

The demo is run into a project, then a headless Chromium shows it, and a second project whose images are not curated.
Needs Chromium and Playwright. `--home FOLDER` keeps the run, and uses an existing one; `--steps N` shortens it.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from PIL import Image  # noqa: E402
from playwright.sync_api import sync_playwright  # noqa: E402

from lora_studio.example import EXAMPLE_NAME, create_example, run_demo  # noqa: E402
from lora_studio.workspace.project import Home  # noqa: E402
from tests.support.application import start_app, stop_app  # noqa: E402
from tests.support.browser import CHROMIUM, CHROMIUM_FLAGS, PAGE_TIMEOUT_MS  # noqa: E402

FOLDER = ROOT / "docs"
SIZE = (1280, 900)
MAX_BYTES = 120_000
QUALITIES = range(85, 20, -5)
SETTLE_MS = 3_000  # for images and charts to be drawn
NEW_PROJECT = f"{EXAMPLE_NAME} 2"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--home", type=Path)
    parser.add_argument("--steps", type=int)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=Path.home()) as temporary:
        home = Home((given.home or Path(temporary)).resolve())
        prepare(home, given.steps)
        running = start_app(Path(temporary), home=home)
        try:
            take_pictures(running.url)
        finally:
            stop_app(running.process)


def prepare(home: Home, steps: int | None) -> None:
    """Run the demo in a project of the home, and create another one as it is after an import."""
    project = home.path / "projects" / EXAMPLE_NAME
    if not project.exists():
        run_demo(project, home=home, steps=steps, on_event=lambda event: None, on_stage=print)
    if NEW_PROJECT not in {known.name for known in home.projects()}:
        create_example(home)


def take_pictures(url: str) -> None:
    """Save a picture of each part of the tutorial."""
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=CHROMIUM_FLAGS)
        page = chromium.new_page(viewport={"width": SIZE[0], "height": SIZE[1]})
        page.set_default_timeout(PAGE_TIMEOUT_MS)
        page.goto(f"{url}?__theme=light")
        for project, name, show in STEPS:
            open_project(page, project)
            show(page)
            page.wait_for_timeout(SETTLE_MS)
            save(page.screenshot(), FOLDER / f"tutorial-{name}.webp")
        chromium.close()


def open_project(page: Any, name: str) -> None:
    """Select a project at the top of the page."""
    field = page.locator("#project input")
    if field.input_value() == name:
        return
    field.click()
    page.get_by_role("option", name=name, exact=True).click()
    page.wait_for_timeout(SETTLE_MS)


def show_plan(page: Any) -> None:
    page.get_by_role("tab", name="Plan").click()
    page.locator("#plan-tiles").get_by_text("Steps").wait_for()


def show_section(name: str, wait_for: str) -> Callable[[Any], None]:
    """Return what opens a section of Dataset, and waits for a part of it."""

    def show(page: Any) -> None:
        page.get_by_role("tab", name="Dataset").click()
        page.locator("#dataset-section").get_by_text(name, exact=True).click()
        page.locator(wait_for).first.wait_for()

    return show


def show_train(page: Any) -> None:
    page.get_by_role("tab", name="Train").click()
    page.get_by_role("button", name="Test it").wait_for()


def show_test(page: Any) -> None:
    page.get_by_role("tab", name="Test").click()
    page.locator("#test-measures").wait_for()


STEPS = (
    (NEW_PROJECT, "plan", show_plan),
    (NEW_PROJECT, "curate", show_section("Curate", "#dataset-groups img")),
    (EXAMPLE_NAME, "review", show_section("Review", "#dataset-grid img")),
    (EXAMPLE_NAME, "train", show_train),
    (EXAMPLE_NAME, "test", show_test),
)


def save(picture: bytes, path: Path) -> None:
    """Save a PNG as WebP, at the highest quality with which it has at most MAX_BYTES."""
    with Image.open(BytesIO(picture)) as image:
        for quality in QUALITIES:
            encoded = BytesIO()
            image.convert("RGB").save(encoded, "WEBP", quality=quality, method=6)
            if encoded.tell() <= MAX_BYTES:
                break
    path.write_bytes(encoded.getvalue())
    print(f"{path.relative_to(ROOT)}: {len(encoded.getvalue()) / 1000:.0f} kB, quality {quality}")


if __name__ == "__main__":
    main()
