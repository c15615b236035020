"""The Dataset tab over a large project: how long each click takes its handler, and the memory of the process.

Clicks are what a browser sends, without the browser: the handler's time is all that the studio adds to it. The images
are small made ones, as their size matters to the scan alone; a twentieth of them are copies.
"""

from __future__ import annotations

import argparse
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import psutil
from PIL import Image

from lora_studio.project import Home, Project, ProjectInfo
from lora_studio.ui.dataset_contents import Contents, image_id
from tests.ui.interface import Interface

LIMIT = 0.3  # seconds
COPIES = 20  # one image of so many is a copy


def make_images(folder: Path, number: int) -> None:
    """Unlike pictures, each of a few soft spots, with captions."""
    source = np.random.default_rng(0)
    for index in range(number):
        if index % COPIES != COPIES - 1:
            spots = source.integers(0, 256, (6, 6, 3), dtype=np.uint8)
            image = Image.fromarray(spots).resize((96, 96), Image.Resampling.BICUBIC)
        image.save(folder / f"{index:05d}.png")
        (folder / f"{index:05d}.txt").write_text(f"ohwx, thing {index % 100}, round", "utf-8")


def wait() -> None:
    """Until nobody looks at images in the background."""
    for thread in threading.enumerate():
        if thread.name == "look at images":
            thread.join()


def clicks(interface: Interface, project: Project) -> dict[str, float]:
    """Seconds of each click, the longest of three."""
    contents = Contents.of(project)
    middle = contents.items[len(contents.items) // 2].path
    shown = f"show:{image_id(project, middle)}"
    aside = f"aside:{image_id(project, contents.items[3].path)}"
    every: dict[str, tuple[str, dict[str, str], str | None]] = {
        "open Import": ("_DatasetTab.switched", {"dataset_section": "Import"}, None),
        "open Curate": ("_DatasetTab.switched", {"dataset_section": "Curate"}, None),
        "open Tag": ("_DatasetTab.switched", {"dataset_section": "Tag"}, None),
        "open Review": ("_DatasetTab.switched", {"dataset_section": "Review"}, None),
        "next page": ("_DatasetTab.picked", {}, "page:7"),
        "filter": ("_DatasetTab.filtered", {"dataset_filter": "To look at"}, None),
        "all again": ("_DatasetTab.filtered", {"dataset_filter": "All"}, None),
        "show an image": ("_DatasetTab.picked", {}, shown),
        "next image": ("_DatasetTab.go_on", {}, None),
        "save a caption": ("_DatasetTab.save", {"review_caption": f"ohwx, {time.time()}"}, None),
        "set aside": ("_DatasetTab.picked", {}, aside),
        "put all back": ("_DatasetTab.put_all_back", {}, None),
    }
    taken: dict[str, float] = {}
    for _ in range(3):
        for name, (handler, contents_of, pick) in every.items():
            began = time.perf_counter()
            interface.call(handler, pick=pick, **contents_of)
            taken[name] = max(taken.get(name, 0.0), time.perf_counter() - began)
    return taken


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=10_000)
    number = parser.parse_args().images
    with tempfile.TemporaryDirectory() as name:
        home = Home(Path(name) / "home")
        project = home.create_project("large", ProjectInfo(trigger_word="ohwx"))
        make_images(project.images_dir, number)
        interface = Interface(home)
        interface.open(project.name)
        began = time.perf_counter()
        interface.call("_DatasetTab.look")
        wait()
        print(f"{number:,} images: pictured and scanned in {time.perf_counter() - began:.0f} s")
        memory = psutil.Process().memory_info().rss
        for click, seconds in clicks(interface, project).items():
            print(f"  {click}: {1000 * seconds:.0f} ms{'' if seconds < LIMIT else ', too long'}")
        largest = max(memory, psutil.Process().memory_info().rss)
        print(f"memory of the process: {largest / 2**20:.0f} MiB")


if __name__ == "__main__":
    main()
