"""The training data of a run, as dataset.jsonl in its folder records it, and how that of two runs differs."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from lora_studio.files import cached_by_stamp
from lora_studio.workspace.job_folder import DATASET_FILE

HASH_DIGITS = 12
MAX_CACHED = 1024
CAPTIONS_TO_TEST = 3


@dataclass(frozen=True)
class RunData:
    """The images of a run, regularisation images included: the SHA-256 and caption of each."""

    images: tuple[tuple[str, str], ...]

    @property
    def dataset_hash(self) -> str:
        """A hash of the images, whatever their names, captions and repeats."""
        return _hash(sha256 for sha256, _ in self.images)

    @property
    def caption_hash(self) -> str:
        """A hash of the captions, each with its image."""
        return _hash(f"{sha256} {caption}" for sha256, caption in self.images)


def read_data(run: Path) -> RunData | None:
    """Return the training data of the run in a folder; None before it has read them, or if the file is damaged."""
    try:
        return _read(run / DATASET_FILE)
    except (OSError, ValueError, KeyError, TypeError):
        return None


def captions_by_path(run: Path) -> dict[str, str]:
    """Return the captions of a run's images by the paths that they were trained from; {} if the record is damaged."""
    try:
        records = map(json.loads, (run / DATASET_FILE).read_text("utf-8").splitlines())
        return {record["path"]: record["caption"] or "" for record in records}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def image_files(run: Path, image_set: str) -> list[tuple[Path, str]]:
    """Return the path and SHA-256 of a run's images of a set, `train` or `held out`; empty if the record is damaged."""
    try:
        records = map(json.loads, (run / DATASET_FILE).read_text("utf-8").splitlines())
        return [(Path(record["path"]), record["sha256"]) for record in records if record["set"] == image_set]
    except (OSError, ValueError, KeyError, TypeError):
        return []


def training_captions(run: Path) -> list[str]:
    """Return the different captions of a run's training images in their order, without empty ones.

    Empty if the record is damaged.
    """
    try:
        records = map(json.loads, (run / DATASET_FILE).read_text("utf-8").splitlines())
        found = dict.fromkeys(record["caption"] for record in records if record["set"] == "train")
    except (OSError, ValueError, KeyError, TypeError):
        return []
    return [caption for caption in found if caption]


def captions_to_test(run: Path) -> list[str]:
    """Return CAPTIONS_TO_TEST captions of a run's training images, from all over the set."""
    captions = training_captions(run)
    step = max(1, len(captions) // CAPTIONS_TO_TEST)
    return captions[::step][:CAPTIONS_TO_TEST]


def image_changes(data: RunData, before: RunData) -> str:
    """Return how the images differ as text, like "2 images added, 1 removed"; empty if they are the same."""
    now, then = (Counter(sha256 for sha256, _ in each.images) for each in (data, before))
    added, removed = (now - then).total(), (then - now).total()
    parts = [f"{count} {verb}" for count, verb in ((added, "added"), (removed, "removed")) if count]
    if not parts:
        return ""
    count, _, rest = ", ".join(parts).partition(" ")
    return f"{count} image{'' if count == '1' else 's'} {rest}"


def caption_changes(data: RunData, before: RunData) -> str:
    """Return how many of the images that both have a different caption, as text; empty if none has."""
    now, then = dict(data.images), dict(before.images)
    count = sum(now[sha256] != then[sha256] for sha256 in now.keys() & then.keys())
    return f"{count} caption{'' if count == 1 else 's'} changed" if count else ""


@cached_by_stamp(MAX_CACHED)
def _read(file: Path) -> RunData:
    records = map(json.loads, file.read_text("utf-8").splitlines())
    return RunData(tuple(sorted((record["sha256"], record["caption"] or "") for record in records)))


def _hash(lines: Iterable[str]) -> str:
    return hashlib.sha256("\n".join(sorted(lines)).encode()).hexdigest()[:HASH_DIGITS]
