"""Scaling of the caches from 100 to 10,000 images: CPU time per image and memory, over an epoch of batches.

Latents (256 x 256 px) and text embeddings (SDXL's sizes) are written with the caches' own writer: 3.3 GB. Each dataset
size is measured in a process of its own, which first validates its complete caches, as a run does, and then builds
every batch of an epoch in shuffled order. Memory is the peak of the process beyond its memory before that, when the
dataset was loaded but no cache file was open.
"""

from __future__ import annotations

import gc
import hashlib
import json
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import psutil
import torch

from lora_studio.training.data.dataset import Dataset, TrainItem
from lora_studio.training.trainer import Trainer
from lora_studio.workspace.project import Home
from tests.support.tiny_sdxl import save_tiny_sdxl
from tests.support.training_runs import make_images, make_job, start

COUNTS = (100, 1_000, 10_000)
SIDE, WIDTH, POOLED = 256, 2048, 1280
BATCH = 4


def many(item: TrainItem, count: int) -> list[TrainItem]:
    """Return `count` copies of an image with different content hashes and captions."""
    return [
        replace(item, sha256=hashlib.sha256(str(number).encode()).hexdigest(), caption=f"inkstamp, thing {number}")
        for number in range(count)
    ]


def make_run(folder: Path, count: int) -> Trainer:
    """Prepare a run with a dataset of `count` images, without training a step."""
    job = make_job(folder / "base", folder / "images", resolution=SIDE, batch_size=BATCH, mixed_precision="bf16")
    trainer = start(job, folder / f"run {count}", Home(folder / "home"))
    trainer.collator.dataset = Dataset(many(trainer.dataset.items[0], count), [])
    counts = trainer.dataset.step_count(job.recipe)
    trainer.collator.steps_per_epoch = counts.steps_per_epoch
    return replace(trainer, counts=counts)


def fill(trainer: Trainer) -> None:
    """Write the caches of the run's images, without fsync: the speed of the disk is not measured here."""
    assert trainer.collator.texts is not None
    mean, logvar = torch.randn((2, 4, SIDE // 8, SIDE // 8))
    hidden, pooled = torch.randn(77, WIDTH), torch.randn(POOLED)
    with mock.patch("os.fsync"):
        for item in trainer.dataset.items:
            trainer.collator.latents.store(item, mean, logvar)
            trainer.collator.texts.store(item.caption, hidden, pooled)


def read(trainer: Trainer) -> dict[str, float]:
    """Return CPU seconds per image for validating caches and for building an epoch's batches, and memory in MiB."""
    assert trainer.collator.texts is not None
    process, items = psutil.Process(), trainer.dataset.items
    callbacks: dict[str, Any] = {"should_stop": lambda: False, "on_progress": lambda done, total: None}
    gc.collect()
    gc.freeze()  # objects of libraries, which would otherwise be collected during one of the measurements
    before = process.memory_info().rss
    began = time.process_time()
    missing = trainer.collator.latents.fill(items, trainer.base.vae, **callbacks)
    missing += trainer.collator.texts.fill((item.caption for item in items), [], [], **callbacks)
    assert not missing
    checked = time.process_time()
    peak = process.memory_info().rss
    for step in range(trainer.counts.steps_per_epoch):
        assert trainer.collator.collate_step(step).sample_count
        peak = max(peak, process.memory_info().rss)
    done = time.process_time()
    count = len(items)
    return {"check": (checked - began) / count, "read": (done - checked) / count, "mib": (peak - before) / 2**20}


def measure(folder: Path, count: int) -> dict[str, float]:
    """Run `read` in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.cache_scale", str(folder), str(count)]
    answer = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    found: dict[str, float] = json.loads(answer.splitlines()[-1])
    return found


def main() -> None:
    torch.set_num_threads(1)
    if sys.argv[2:]:
        print(json.dumps(read(make_run(Path(sys.argv[1]), int(sys.argv[2])))))
        return
    with tempfile.TemporaryDirectory(dir=sys.argv[1] if sys.argv[1:] else None) as name:
        folder = Path(name)
        save_tiny_sdxl(folder / "base")
        make_images(folder / "images", [(SIDE, SIDE)])
        found = {}
        for count in COUNTS:
            fill(make_run(folder, count))
            found[count] = measure(folder, count)
            print(
                f"{count:6} images: {found[count]['check'] * 1e6:.0f} us of CPU time per image to validate its caches, "
                f"{found[count]['read'] * 1e6:.0f} us to put it into a batch, {found[count]['mib']:.1f} MiB"
            )
    smallest, largest = found[COUNTS[0]], found[COUNTS[-1]]
    ratios = {name: largest[name] / smallest[name] for name in ("check", "read")}
    print(
        f"{COUNTS[-1]} over {COUNTS[0]} images: {ratios['read']:.2f} times the time per image "
        f"({ratios['check']:.2f} to validate), {largest['mib'] - smallest['mib']:+.1f} MiB"
    )


if __name__ == "__main__":
    main()
