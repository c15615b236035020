"""The Dataset tab with a large project: CPU time of the handler of each click, and the memory of the process.

Handlers are called with the values that a browser would send, without a browser, and measured in CPU time, so that
other programs do not count. The images are small and synthetic, as only a scan depends on their size; one in twenty is
a duplicate. The result of a scan is written without scanning, unless --scan is given.
"""

from __future__ import annotations

import argparse
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

from lora_studio.ui.dataset.contents import Contents
from lora_studio.ui.dataset.curate import CurationHandlers
from lora_studio.ui.dataset.gallery_handlers import GalleryHandlers
from lora_studio.ui.dataset.handlers import CaptionHandlers
from lora_studio.ui.dataset.image_item import Filter, image_id
from lora_studio.ui.dataset.tab import DatasetTab
from lora_studio.ui.gc_freeze import gc_frozen
from lora_studio.workspace.project import Home, Project, ProjectInfo
from tests.support.interface import Interface
from tests.support.large_datasets import make_images, write_scan

LIMIT = 0.3  # seconds


def wait_for_scan() -> None:
    """Wait until the background scan ends."""
    for thread in threading.enumerate():
        if thread.name == "dataset scan":
            thread.join()


def every_click(contents: Contents) -> list[tuple[str, Callable[..., Any], dict[str, str], str | None]]:
    """Return the clicks of a round: name, handler, values of fields, and the message of a button in the page.

    A round leaves captions, marks and images unchanged.
    """
    project, items = contents.project, contents.items
    middle, third = items[len(items) // 2], items[3]
    aside = image_id(project, project.rejected_dir / third.path.name)
    section = DatasetTab.section_changed
    bulk = {"bulk_action": "Add", "bulk_first": "indoors", "bulk_scope": "All images"}
    return [
        ("open the tab", DatasetTab.tab_opened, {}, None),
        ("open Import", section, {"dataset_section": "Import"}, None),
        ("open Curate", section, {"dataset_section": "Curate"}, None),
        ("keep a duplicate", CurationHandlers.button_clicked, {}, f"keep:{contents.proposed[0].id}"),
        ("no longer keep it", CurationHandlers.button_clicked, {}, f"unkeep:{contents.proposed[0].id}"),
        ("set a duplicate aside", CurationHandlers.button_clicked, {}, f"set_aside:{third.id}"),
        ("put it back", CurationHandlers.button_clicked, {}, f"restore:{aside}"),
        ("open Tag", section, {"dataset_section": "Tag"}, None),
        ("open Captions", section, {"dataset_section": "Captions"}, None),
        ("bulk preview", CaptionHandlers.preview, bulk, None),
        ("open Statistics", section, {"dataset_section": "Statistics"}, None),
        ("a tag of the table", CaptionHandlers.tag_clicked, {}, "tag:thing 7"),
        ("open Review", section, {"dataset_section": "Review", "dataset_filter_tag": ""}, None),
        ("next page", CurationHandlers.button_clicked, {}, "page:7"),
        ("filter To check", GalleryHandlers.filter_picked, {}, f"filter:{Filter.FLAGGED}"),
        ("filter Unreviewed", GalleryHandlers.filter_picked, {}, f"filter:{Filter.UNREVIEWED}"),
        ("no filter", GalleryHandlers.filter_picked, {}, "all"),
        ("filter by a tag", CaptionHandlers.filter_changed, {"dataset_filter_tag": "thing 7"}, None),
        ("all again", CaptionHandlers.filter_changed, {"dataset_filter_tag": ""}, None),
        ("show an image", CurationHandlers.button_clicked, {}, f"show:{middle.id}"),
        ("next image", CaptionHandlers.show_next, {}, None),
        ("mark, and next", CaptionHandlers.mark_and_show_next, {}, None),
        ("previous image", CaptionHandlers.show_previous, {}, None),
        ("unmark", CaptionHandlers.toggle_reviewed, {}, None),
        ("save a caption", CaptionHandlers.save_caption, {"review_caption": "ohwx, other words"}, None),
        ("undo", CaptionHandlers.undo, {}, None),
        ("add a tag", CaptionHandlers.chip_clicked, {}, "add:standing"),
        ("remove a tag", CaptionHandlers.chip_clicked, {}, "drop:standing"),
        ("set aside in Review", CurationHandlers.set_current_aside, {}, None),
        ("put all back", CurationHandlers.restore_all, {}, None),
    ]


def clicks(interface: Interface, project: Project, turns: int = 3) -> dict[str, list[float]]:
    """Return CPU seconds of all threads for each click: the first time, which fills caches, and the later ones."""
    seconds: dict[str, list[float]] = {}
    for _ in range(turns + 1):
        for name, handler, fields, pick in every_click(Contents.of(project)):
            began = time.process_time()
            updates = interface.call(handler, pick=pick, **fields)
            seconds.setdefault(name, []).append(time.process_time() - began)
            if 'role="alert"' in updates.get("dataset_notice", ""):
                raise RuntimeError(f"{name}: {updates['dataset_notice']}")
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--scan", action="store_true", help="scan the images and print the time")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        home = Home(Path(name) / "home")
        project = home.create_project("large", ProjectInfo(trigger_word="ohwx"))
        make_images(project.images_dir, given.images)
        if given.scan:
            interface = Interface(home)
            interface.open_project(project.name)
            began = time.process_time()
            interface.call(DatasetTab.start_scan)
            wait_for_scan()
            print(f"{given.images:,} images: thumbnails and scan in {time.process_time() - began:.0f} s of CPU time")
        else:
            write_scan(project)
        measure(home, project)


def measure(home: Home, project: Project) -> None:
    """Print the table: CPU time of each click, and the memory of the process."""
    with gc_frozen():  # as app.py does
        interface = Interface(home)
    began = time.process_time()
    interface.open_project(project.name)
    print(f"choose the project for the first time: {1000 * (time.process_time() - began):.0f} ms")
    print(f"{'click':22}{'first':>9}{'later, max':>16}   ms of CPU time")
    for click, seconds in clicks(interface, project).items():
        first, later = seconds[0], max(seconds[1:])
        print(f"{click:22}{1000 * first:9.0f}{1000 * later:16.0f}   {'' if later < LIMIT else 'too long'}")
    memory = psutil.Process().memory_info()
    print(f"memory of the process: {memory.rss / 2**20:.0f} MiB")


if __name__ == "__main__":
    main()
