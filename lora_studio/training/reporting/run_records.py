"""Records of a run's training data in its folder: the images with their hashes, and the augmented captions.

```
dataset.jsonl    one image per line: set (train, prior, held out), path, sha256, caption, repeats
captions.jsonl   the first samples of the run: step, image, augmented caption, size conditioning, loss weight
```
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from itertools import count, islice
from pathlib import Path
from typing import Any

from lora_studio.files import write_text
from lora_studio.training.data.augment import augment
from lora_studio.training.data.caption_variants import training_caption
from lora_studio.training.data.collate import Collator
from lora_studio.training.data.dataset import Dataset, TrainItem
from lora_studio.workspace.job_folder import DATASET_FILE

CAPTIONS_FILE = "captions.jsonl"
PRIOR = "prior"
MAX_RECORDED_SAMPLES = 100


def write_run_records(folder: Path, collator: Collator) -> list[dict[str, Any]]:
    """Write both files; return the records of captions.jsonl."""
    dataset = collator.dataset
    sets = {"train": dataset.items, PRIOR: dataset.regularization, "held out": dataset.validation_items}
    _write(
        folder / DATASET_FILE,
        (
            {
                "set": name,
                "path": str(item.path),
                "sha256": item.sha256,
                "caption": item.caption,
                "repeats": item.repeats,
            }
            for name, items in sets.items()
            for item in items
        ),
    )
    samples = list(islice(_samples(collator), MAX_RECORDED_SAMPLES))
    _write(folder / CAPTIONS_FILE, samples)
    return samples


def dataset_changes(folder: Path, dataset: Dataset) -> str:
    """Describe how a dataset differs from the one that the run in `folder` began with; empty if equal or unknown.

    How many regularisation images are used depends on the other images: one that is unused now but still has its file
    does not count as removed.
    """
    try:
        lines = (folder / DATASET_FILE).read_text("utf-8").splitlines()
        before = {record["path"]: record for record in map(json.loads, lines)}
    except (OSError, ValueError, KeyError):
        return ""
    now = {str(item.path): item for item in [*dataset.epoch_items, *dataset.validation_items]}
    both = before.keys() & now.keys()
    found = {
        "removed": {
            path for path in before.keys() - now.keys() if before[path]["set"] != PRIOR or not Path(path).is_file()
        },
        "added": {path for path in now.keys() - before.keys() if not now[path].prior},
        "edited": {path for path in both if before[path]["sha256"] != now[path].sha256},
        "with a new caption": {path for path in both if before[path]["caption"] != now[path].caption},
    }
    return ", ".join(f"{len(paths)} {change} ({_names(paths)})" for change, paths in found.items() if paths)


def _names(paths: Iterable[str]) -> str:
    names = sorted(Path(path).name for path in paths)
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")


def _samples(collator: Collator) -> Iterator[dict[str, Any]]:
    recipe, cached = collator.job.recipe, collator.texts is not None
    for step in range(min(MAX_RECORDED_SAMPLES, collator.steps_per_epoch)):
        numbers = count()
        for batch in collator.batches(step):
            for item in batch:
                sample = next(numbers)
                view: TrainItem = augment(item, recipe, step, sample)
                yield {
                    "step": step + 1,
                    "image": item.path.name,
                    "caption": training_caption(
                        item, collator.job, step, sample, cached=cached, total_steps=collator.total_steps
                    ),
                    "mirrored": view.flipped,
                    "time_ids": view.time_ids,
                    "weight": recipe.prior_loss_weight if item.prior else 1.0,
                    "masked": item.mask is not None,
                }


def _write(file: Path, records: Iterable[dict[str, Any]]) -> None:
    write_text(file, "".join(f"{json.dumps(record, ensure_ascii=False)}\n" for record in records))
