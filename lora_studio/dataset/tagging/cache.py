"""Predictions of taggers on disk, by the SHA-256 of the image file.

Another threshold, tag list or trigger word needs no forward pass again. `cache/tags/MODEL/` belongs to one tagger:
MODEL is a hash of its files and of `CACHE_VERSION`, labels.json has its tags, and each .npz file, written atomically,
the predictions of some images. `cache/features/` has those of models that compare pictures, in the same files. Safe to
delete.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import time
import zipfile
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lora_studio.dataset.tagging.interface import ModelFiles, Prediction
from lora_studio.dataset.tagging.labels import Label
from lora_studio.dataset.tagging.selection import confidence_by_tag
from lora_studio.errors import StudioError
from lora_studio.files import write_bytes, write_json
from lora_studio.workspace.project import Home

CACHE_VERSION = "1"  # of the format and of the preprocessing: raise it when an image would give another prediction

FLUSH_IMAGES = 256
FLUSH_SECONDS = 20.0
MAX_FILES = 64  # more are merged into one when they are read
LABELS_FILE = "labels.json"
TAGS, FEATURES = "tags", "features"  # kinds of caches: of taggers, and of models that compare pictures alone


def cache_key(files: ModelFiles) -> str:
    """Return the name of the folder with a model's predictions."""
    return hashlib.sha256(f"{CACHE_VERSION} {files.content_hash()}".encode()).hexdigest()[:24]


@dataclass
class TagCache:
    """The predictions of one tagger. Added ones are saved by `flush`, which also happens now and then by itself."""

    folder: Path
    labels: tuple[Label, ...]
    predictions: dict[str, Prediction]
    _unsaved: dict[str, Prediction] = field(default_factory=dict)
    _flushed: float = field(default_factory=time.monotonic)

    @classmethod
    def of(cls, tagger: ModelFiles, home: Home, kind: str = TAGS) -> TagCache:
        """Open the cache of a model, or create it. That of a model that is not a tagger is of another `kind`."""
        folder = home.cache / kind / cache_key(tagger)
        if not (folder / LABELS_FILE).is_file():
            write_json(folder / LABELS_FILE, {"name": tagger.name, "labels": tagger.labels})
        files = sorted(folder.glob("*.npz"))
        predictions = _read_files(files)
        if len(files) > MAX_FILES:
            _merge_files(folder, files, predictions)
        return cls(folder, tagger.labels, predictions)

    def add(self, sha256: str, prediction: Prediction) -> None:
        """Add the prediction for the image with that SHA-256."""
        self.predictions[sha256] = self._unsaved[sha256] = prediction
        if len(self._unsaved) >= FLUSH_IMAGES or time.monotonic() - self._flushed > FLUSH_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Write the predictions that are not on disk yet."""
        if self._unsaved:
            _write_file(self.folder, self._unsaved)
        self._unsaved, self._flushed = {}, time.monotonic()


@dataclass(frozen=True)
class CachedPredictions:
    """The predictions of one tagger, read-only. `name` is the name that it was found by, `key` its `cache_key`."""

    name: str
    labels: tuple[Label, ...]
    predictions: Mapping[str, Prediction]
    key: str

    @property
    def is_text_alone(self) -> bool:
        """True for an image-text model, which has neither tags nor features."""
        return not self.labels and not any(prediction.features.size for prediction in self.predictions.values())

    def confidences(self, sha256: str) -> Mapping[str, float]:
        """Return the confidence (0.01 to 1) of each tag of an image; empty if there is no prediction for it."""
        prediction = self.predictions.get(sha256)
        return confidence_by_tag(prediction, self.labels) if prediction is not None else {}


def cached_predictions(home: Home, sha256s: Collection[str]) -> CachedPredictions | None:
    """Return the predictions of the tagger that has most of these images, or None. Of equals, take the most recent.

    Image-text models are left out: they have neither tags nor features.
    """
    wanted = set(sha256s)
    best: tuple[int, float] | None = None
    found = None
    for folder in sorted((home.cache / TAGS).glob("*/")):
        names = tuple(sorted(path.name for path in folder.glob("*.npz")))
        if not names:
            continue
        known = _read_folder(folder, names)
        rank = len(wanted & known.predictions.keys()), max((folder / name).stat().st_mtime for name in names)
        if rank[0] and not known.is_text_alone and (best is None or rank > best):
            best, found = rank, known
    return found


def cached_confidences(home: Home, sha256: str) -> Mapping[str, float]:
    """Return a tagger's confidence of each tag of an image; empty if there is no prediction for it."""
    known = cached_predictions(home, [sha256])
    return known.confidences(sha256) if known else {}


def cached_features(home: Home, sha256s: Collection[str]) -> dict[str, NDArray[np.float16]]:
    """Return features [F] by the SHA-256 of the image, for those of the images that a tagger has predicted."""
    known = cached_predictions(home, sha256s)
    if known is None:
        return {}
    return {
        sha256: prediction.features for sha256 in sha256s if (prediction := known.predictions.get(sha256)) is not None
    }


@lru_cache(maxsize=2)
def _read_folder(folder: Path, names: tuple[str, ...]) -> CachedPredictions:
    """Read the cache of one tagger; cached as long as the folder has files of these names."""
    try:
        content = json.loads((folder / LABELS_FILE).read_text("utf-8"))
        labels = tuple(Label(str(name), int(category)) for name, category in content["labels"])
        predictions = _read_files([folder / name for name in names])
        return CachedPredictions(str(content["name"]), labels, predictions, folder.name)
    except (OSError, ValueError, KeyError, TypeError):
        return CachedPredictions("", (), {}, folder.name)


def _read_files(files: Sequence[Path]) -> dict[str, Prediction]:
    """Return the predictions in some files; those in a damaged or deleted file are skipped, to be computed again."""
    predictions: dict[str, Prediction] = {}
    for file in files:
        try:
            predictions |= _read_file(file)
        except (OSError, ValueError, KeyError, IndexError, EOFError, zipfile.BadZipFile):
            continue
    return predictions


def _read_file(path: Path) -> dict[str, Prediction]:
    with path.open("rb") as file, np.load(file, allow_pickle=False) as content:
        hashes = content["hashes"].tobytes().hex()
        ends = [0, *np.cumsum(content["counts"]).tolist()]
        outputs, confidences, features = content["outputs"], content["confidences"], content["features"]
        sentences = json.loads(content["sentences"].tobytes())
    if not len(outputs) == len(confidences) == ends[-1]:
        raise ValueError(path)
    return {
        hashes[64 * row : 64 * (row + 1)]: Prediction(
            outputs[ends[row] : ends[row + 1]], confidences[ends[row] : ends[row + 1]], sentence, features[row]
        )
        for row, sentence in enumerate(sentences)
    }


def _write_file(folder: Path, predictions: Mapping[str, Prediction]) -> None:
    file = io.BytesIO()
    values = list(predictions.values())
    np.savez(
        file,
        hashes=np.frombuffer(bytes.fromhex("".join(predictions)), np.uint8),
        counts=np.array([len(prediction.outputs) for prediction in values], np.int64),
        outputs=np.concatenate([prediction.outputs for prediction in values]),
        confidences=np.concatenate([prediction.confidences for prediction in values]),
        features=np.stack([prediction.features for prediction in values]),
        sentences=np.frombuffer(json.dumps([prediction.sentence for prediction in values]).encode(), np.uint8),
    )
    write_bytes(folder / f"{time.time_ns()}-{os.getpid()}.npz", file.getvalue())


def _merge_files(folder: Path, files: Sequence[Path], predictions: Mapping[str, Prediction]) -> None:
    """Merge files into one. What another process adds meanwhile is in a file of its own, which stays."""
    try:
        _write_file(folder, predictions)
    except StudioError:
        return  # the files can be used as they are
    for file in files:
        file.unlink(missing_ok=True)
