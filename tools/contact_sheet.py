"""Take pictures of every state of the interface: `python tools/contact_sheet.py FOLDER`.

Each state is saved in light, in dark and 390 px wide, as long as its page; `light.png`, `dark.png` and `390 px.png`
show the top of each on one sheet. Needs Chromium and Playwright.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from PIL import Image, ImageDraw  # noqa: E402
from playwright.sync_api import sync_playwright  # noqa: E402

from lora_studio.workspace.project import Home  # noqa: E402
from tests.support.application import start_app, stop_app  # noqa: E402
from tests.support.browser import CHROMIUM, CHROMIUM_FLAGS, PAGE_TIMEOUT_MS  # noqa: E402
from tests.support.interface_states import LOOKS, Look, set_look, visit_states  # noqa: E402

SHEET_WIDTH = 2400  # px
SCALE = 3  # a thumbnail's width is that of the window divided by this
GAP, LINE = 16, 20  # px


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    with tempfile.TemporaryDirectory(dir=Path.home()) as temporary:
        running = start_app(Path(temporary))
        try:
            names = take_pictures(running.url, running.home, folder)
        finally:
            stop_app(running.process)
    for look in LOOKS:
        sheet(folder / look.name, look, names).save(folder / f"{look.name}.png")
        print(folder / f"{look.name}.png")


def take_pictures(url: str, home: Home, folder: Path) -> list[str]:
    """Save FOLDER/LOOK/STATE.png for each state and look; return the names of the states."""
    names = []
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=CHROMIUM_FLAGS)
        page = chromium.new_page()
        page.set_default_timeout(PAGE_TIMEOUT_MS)
        set_look(page, LOOKS[0])
        page.goto(url)
        for state in visit_states(page, home):
            names.append(state.name)
            for look in (*LOOKS[1:], LOOKS[0]):  # the next state is opened in the first one
                set_look(page, look)
                page.screenshot(path=folder / look.name / f"{state.name}.png", full_page=True)
        chromium.close()
    return names


def sheet(folder: Path, look: Look, names: list[str]) -> Image.Image:
    """Return the tops of the pictures of a look, as high as its window, with their names."""
    width, height = (side // SCALE for side in look.size)
    columns = SHEET_WIDTH // (width + GAP)
    rows = -(-len(names) // columns)
    whole = Image.new("RGB", (GAP + columns * (width + GAP), GAP + rows * (height + LINE + GAP)), "#888888")
    draw = ImageDraw.Draw(whole)
    for index, name in enumerate(names):
        x, y = GAP + index % columns * (width + GAP), GAP + index // columns * (height + LINE + GAP)
        draw.text((x, y), name, fill="black", font_size=14)
        with Image.open(folder / f"{name}.png") as picture:
            top = picture.convert("RGB").crop((0, 0, *look.size))
        whole.paste(top.resize((width, height), Image.Resampling.LANCZOS), (x, y + LINE))
    return whole


if __name__ == "__main__":
    main()
