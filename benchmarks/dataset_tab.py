"""The Dataset tab over a large project: how long each click takes its handler, and the memory of the process.

Clicks are what a browser sends, without the browser: the handler's time is all that the studio adds to it. The images
are small made ones, as their size matters to the scan alone; a twentieth of them are copies. What a scan would say of
them is written down without it, unless --scan is given.
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

from lora_studio.dataset.duplicates import DuplicateGroup, DuplicateKind
from lora_studio.dataset.images import ImageInfo, file_sha256, find_images
from lora_studio.dataset.manifest import Manifest, stamp_of
from lora_studio.dataset.scan import ScanReport, ScanSummary
from lora_studio.project import Home, Project, ProjectInfo
from lora_studio.ui.dataset_contents import Contents, image_id, save_manifest
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


def write_down(project: Project) -> None:
    """The manifest of a scan that found the copies and nothing else."""
    infos, groups, stamps = [], [], {}
    for path in find_images(project.dataset_dir):
        infos.append(ImageInfo(path=path, width=96, height=96, sha256=file_sha256(path)))
        stamps[path] = stamp_of(path)
        if len(infos) % COPIES == 0:
            groups.append(
                DuplicateGroup(
                    keep=infos[-2].path,
                    reject=[path],
                    kind=DuplicateKind.EXACT,
                    distance=0,
                    reason="identical file",
                    reasons=["identical file"],
                )
            )
    summary = ScanSummary(
        images=len(infos), readable=len(infos), duplicates=len(groups), issue_counts={}, resolutions=[], issues=[]
    )
    report = ScanReport(images=infos, duplicate_groups=groups, summary=summary)
    save_manifest(project, Manifest.of_scan(project.dataset_dir, report, stamps, frozenset()))


def wait() -> None:
    """Until nobody looks at images in the background."""
    for thread in threading.enumerate():
        if thread.name == "look at images":
            thread.join()


def clicks(interface: Interface, project: Project) -> dict[str, float]:
    """Seconds of each click, the longest of three after a first one that makes the small pictures."""
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
    for turn in range(4):
        for name, (handler, contents_of, pick) in every.items():
            began = time.perf_counter()
            interface.call(handler, pick=pick, **contents_of)
            if turn:
                taken[name] = max(taken.get(name, 0.0), time.perf_counter() - began)
    return taken


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--scan", action="store_true", help="scan the images, and say how long that takes")
    given = parser.parse_args()
    number, scanned = given.images, given.scan
    with tempfile.TemporaryDirectory() as name:
        home = Home(Path(name) / "home")
        project = home.create_project("large", ProjectInfo(trigger_word="ohwx"))
        make_images(project.images_dir, number)
        interface = Interface(home)
        interface.open(project.name)
        began = time.perf_counter()
        if scanned:
            interface.call("_DatasetTab.look")
            wait()
            print(f"{number:,} images: pictured and scanned in {time.perf_counter() - began:.0f} s")
        else:
            write_down(project)
        memory = psutil.Process().memory_info().rss
        for click, seconds in clicks(interface, project).items():
            print(f"  {click}: {1000 * seconds:.0f} ms{'' if seconds < LIMIT else ', too long'}")
        largest = max(memory, psutil.Process().memory_info().rss)
        print(f"memory of the process: {largest / 2**20:.0f} MiB")


if __name__ == "__main__":
    main()
