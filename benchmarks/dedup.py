"""Duplicate detection: the studio's scan and the imagededup package on the same synthetic images, in one process.

Throughput is CPU time of one thread from file to hashes. The studio decodes each image once and computes hashes of
three views and of their mirror images, the thumbnail for alignment, SHA-256 and quality flags; imagededup computes one
perceptual hash. Recall and precision count pairs: images with copies changed in known ways, and drawings of one figure
in many poses, which are not duplicates. Without imagededup, which is not a dependency, only the studio's figures are
printed.
"""

from __future__ import annotations

import argparse
import itertools
import os
import statistics
import tempfile
import time
import tracemalloc
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from lora_studio.dataset.duplicates.candidates import candidate_pairs
from lora_studio.dataset.duplicates.fingerprints import Fingerprint, fingerprint
from lora_studio.dataset.scan import scan, scan_image
from tests.support.scenes import CHANGES, photo

LARGE, PNG_SIDE = (3000, 2000), (1024, 1024)
ROUNDS, FILES = 3, 6
SCENES, POSES = 12, 12
HASHES = (1_000, 10_000, 100_000)
CORES = os.cpu_count() or 1
THEIR_DISTANCE = 10  # imagededup's own default

Pair = frozenset[str]


def imagededup_hasher() -> Any | None:
    """Return imagededup's perceptual hash, which its documentation recommends, or None if it is not installed."""
    try:
        from imagededup.methods import PHash
    except ImportError:
        return None
    return PHash(verbose=False)


def seconds_per_file(work: Callable[[Path], object], files: Iterable[Path]) -> float:
    """Return the CPU seconds of this thread per file."""
    files = list(files)
    began = time.thread_time()
    for file in files:
        work(file)
    return (time.thread_time() - began) / len(files)


def throughput(folder: Path, theirs: Any | None) -> None:
    """Print milliseconds per image and format: the median of rounds in which both sides take turns."""

    def decode_only(file: Path) -> None:
        with Image.open(file) as image:
            image.load()

    for suffix, size in ((".jpg", LARGE), (".png", PNG_SIDE)):
        files = [folder / f"{number}{suffix}" for number in range(FILES)]
        for number, file in enumerate(files):
            photo(number, size).save(file, quality=92)
        sides: dict[str, Callable[[Path], object]] = {"studio": scan_image, "decoding": decode_only}
        if theirs is not None:
            sides["imagededup"] = lambda file: theirs.encode_image(image_file=file)
        taken: dict[str, list[float]] = {name: [] for name in sides}
        for _ in range(ROUNDS):
            for name, work in sides.items():
                taken[name].append(seconds_per_file(work, files))
        middle = {name: statistics.median(values) for name, values in taken.items()}
        figures = ", ".join(f"{name} {1000 * value:.1f} ms" for name, value in middle.items())
        print(f"{suffix[1:].upper()} of {size[0]} x {size[1]}: {figures}")
        print(f"  full decoding is {middle['decoding'] / middle['studio']:.0%} of the studio's time")
        if "imagededup" in middle:
            print(f"  the studio's throughput is {middle['imagededup'] / middle['studio']:.2f} times imagededup's")


def pose(number: int, size: int = 600) -> Image.Image:
    """Draw a figure in one of several poses."""
    image = Image.new("RGB", (size, size), (235, 235, 240))
    draw = ImageDraw.Draw(image)
    draw.ellipse((230, 80, 370, 220), fill=(240, 200, 170))
    draw.rectangle((250, 220, 350, 420), fill=(200, 40, 60))
    for side in (-1, 1):
        end = (300 + side * (60 + 25 * (number % 6)), 420 - 60 * ((number * (2 + side)) % 6))
        draw.line((300 + side * 45, 240, *end), fill=(240, 200, 170), width=26)
        draw.line((300 + side * 25, 420, 300 + side * (25 + 12 * number), 570), fill=(40, 40, 90), width=34)
    return image


def make_set(folder: Path) -> tuple[set[Pair], dict[Pair, str]]:
    """Write images to `folder`; return all pairs of copies of a scene, and the change of each copy of an original."""
    scenes: dict[str, list[str]] = {}
    changes: dict[Pair, str] = {}
    for number in range(SCENES):
        original = f"scene{number}.png"
        photo(number, (720, 560)).save(folder / original)
        scenes[original] = [original]
        for index, (name, change) in enumerate(CHANGES.items()):
            copy = f"scene{number}-{index}.png"
            change(photo(number, (720, 560))).save(folder / copy)
            scenes[original].append(copy)
            changes[frozenset((original, copy))] = name
    for number in range(POSES):
        pose(number).save(folder / f"pose{number}.png")
    same = {frozenset(pair) for names in scenes.values() for pair in itertools.combinations(names, 2)}
    return same, changes


def quality(folder: Path, theirs: Any | None) -> None:
    """Print recall over the originals' copies, and precision over all reported duplicates."""
    same, changes = make_set(folder)
    found = {
        "studio": {
            frozenset((group.keep.name, path.name)) for group in scan(folder).duplicate_groups for path in group.reject
        }
    }
    # The scan reports each duplicate once, with the image to keep, which may be a copy too: connected pairs count.
    found["studio"] = set(_connected_pairs(found["studio"]))
    if theirs is not None:
        encodings = theirs.encode_images(image_dir=folder, num_enc_workers=0)
        listed = theirs.find_duplicates(
            encoding_map=encodings, max_distance_threshold=THEIR_DISTANCE, num_dist_workers=0
        )
        found["imagededup"] = {frozenset((name, other)) for name, others in listed.items() for other in others}
    print(f"{len(changes)} copies of {SCENES} scenes, {POSES} poses of one figure:")
    for name, pairs in found.items():
        recall = len(pairs & changes.keys()) / len(changes)
        print(f"  {name}: recall {recall:.3f}, precision {len(pairs & same) / max(1, len(pairs)):.3f}")
        missed = sorted({change for pair, change in changes.items() if pair not in pairs})
        if missed:
            print(f"    missed some of: {', '.join(missed)}")


def _connected_pairs(pairs: Iterable[Pair]) -> Iterator[Pair]:
    """Yield all pairs within the connected components of these pairs."""
    group_of: dict[str, set[str]] = {}
    for first, second in map(sorted, pairs):
        merged = group_of.get(first, {first}) | group_of.get(second, {second})
        group_of.update(dict.fromkeys(merged, merged))
    for group in {id(group): group for group in group_of.values()}.values():
        yield from map(frozenset, itertools.combinations(sorted(group), 2))


def comparison(max_hashes: int) -> None:
    """Print time on all cores, CPU time and peak memory of comparing all pairs of hashes, mirrored ones included."""
    one = fingerprint(photo(1, (96, 96)))
    source = np.random.default_rng(0)
    for number in (count for count in HASHES if count <= max_hashes):
        plain, turned = (source.integers(0, 2**63, (number, *one.hashes.shape), dtype=np.uint64) for _ in range(2))
        prints = [Fingerprint(a, b, one.thumbnail, one.content_box) for a, b in zip(plain, turned, strict=True)]
        tracemalloc.start()
        began, began_working = time.perf_counter(), time.process_time()
        candidate_pairs(prints, workers=CORES)
        seconds, worked = time.perf_counter() - began, time.process_time() - began_working
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        print(
            f"{number:,} hashes: {seconds:.2f} s on {CORES} cores, {worked:.2f} s of CPU time, {peak / 2**20:.0f} MiB"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--max-hashes", type=int, default=HASHES[-1], help="the largest number of hashes to compare")
    max_hashes = parser.parse_args().max_hashes
    theirs = imagededup_hasher()
    if theirs is None:
        print("imagededup is not installed: only the studio's figures.")
    with tempfile.TemporaryDirectory() as name:
        throughput(Path(name), theirs)
    with tempfile.TemporaryDirectory() as name:
        quality(Path(name), theirs)
    comparison(max_hashes)


if __name__ == "__main__":
    main()
