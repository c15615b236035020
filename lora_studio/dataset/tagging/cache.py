"""Predictions of taggers on disk, by the SHA-256 of the image file.

Another threshold, tag list or trigger word needs no forward pass again. `cache/tags/MODEL/` belongs to one tagger:
MODEL is a hash of its files and of `CACHE_VERSION`, labels.json has its tags, and each .npz file, written atomically,
the predictions of some images. Safe to delete.
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

from lora_studio.dataset.tagging.catalogue import TaggerFiles
from lora_studio.dataset.tagging.interface import Prediction
from lora_studio.dataset.tagging.labels import Label
from lora_studio.dataset.tagging.selection import confidence_by_tag
from lora_studio.errors import StudioError
from lora_studio.files import write_bytes, write_json
from lora_studio.workspace.project import Home

CACHE_VERSION = "1"  # of what is stored and of how pictures are prepared: raise it when a picture gives something else

FLUSH_IMAGES = 256
FLUSH_SECONDS = 20.0
MAX_FILES = 64  # are put together into one when they are read
LABELS_FILE = "labels.json"


@dataclass
class TagCache:
    """The pictures that one tagger has seen. Added ones lie on disk after `flush`, which happens by itself at times."""

    folder: Path
    labels: tuple[Label, ...]
    predictions: dict[str, Prediction]
    _unsaved: dict[str, Prediction] = field(default_factory=dict)
    _flushed: float = field(default_factory=time.monotonic)

    @classmethod
    def of(cls, tagger: TaggerFiles, home: Home) -> TagCache:
        """The cache of a tagger, opened; it need not exist yet."""
        key = hashlib.sha256(f"{CACHE_VERSION} {tagger.content_hash()}".encode()).hexdigest()[:24]
        folder = home.cache / "tags" / key
        if not (folder / LABELS_FILE).is_file():
            write_json(folder / LABELS_FILE, {"name": tagger.name, "labels": tagger.labels})
        files = sorted(folder.glob("*.npz"))
        predictions = _read_files(files)
        if len(files) > MAX_FILES:
            _merge_files(folder, files, predictions)
        return cls(folder, tagger.labels, predictions)

    def add(self, sha256: str, prediction: Prediction) -> None:
        """Remember what was seen in the picture of that hash."""
        self.predictions[sha256] = self._unsaved[sha256] = prediction
        if len(self._unsaved) >= FLUSH_IMAGES or time.monotonic() - self._flushed > FLUSH_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Write what is not on disk yet."""
        if self._unsaved:
            _write_file(self.folder, self._unsaved)
        self._unsaved, self._flushed = {}, time.monotonic()


@dataclass(frozen=True)
class CachedPredictions:
    """What one tagger saw in pictures of a dataset, read for looking only. `name` is what the tagger was called."""

    name: str
    labels: tuple[Label, ...]
    predictions: Mapping[str, Prediction]

    def confidences(self, sha256: str) -> Mapping[str, float]:
        """How sure the tagger is of each tag of a picture (0.01 at least); empty if it has not seen the picture."""
        prediction = self.predictions.get(sha256)
        return confidence_by_tag(prediction, self.labels) if prediction is not None else {}


def cached_predictions(home: Home, sha256s: Collection[str]) -> CachedPredictions | None:
    """What the tagger that knows most of these pictures saw, the latest of such; None if no tagger knows any."""
    wanted = set(sha256s)
    best: tuple[int, float] | None = None
    found = None
    for folder in sorted((home.cache / "tags").glob("*/")):
        names = tuple(sorted(path.name for path in folder.glob("*.npz")))
        if not names:
            continue
        known = _read_folder(folder, names)
        rank = len(wanted & known.predictions.keys()), max((folder / name).stat().st_mtime for name in names)
        if rank[0] and (best is None or rank > best):
            best, found = rank, known
    return found


def cached_confidences(home: Home, sha256: str) -> Mapping[str, float]:
    """How sure a tagger is of each tag of the picture of that hash; empty if none has seen it."""
    known = cached_predictions(home, [sha256])
    return known.confidences(sha256) if known else {}


def cached_features(home: Home, sha256s: Collection[str]) -> dict[str, NDArray[np.float16]]:
    """The features [F] of those of the pictures that a tagger has seen, by the SHA-256 of the image."""
    known = cached_predictions(home, sha256s)
    if known is None:
        return {}
    return {
        sha256: prediction.features for sha256 in sha256s if (prediction := known.predictions.get(sha256)) is not None
    }


@lru_cache(maxsize=2)
def _read_folder(folder: Path, names: tuple[str, ...]) -> CachedPredictions:
    """A folder of the cache as it is while it holds the files of these names."""
    try:
        content = json.loads((folder / LABELS_FILE).read_text("utf-8"))
        labels = tuple(Label(str(name), int(category)) for name, category in content["labels"])
        return CachedPredictions(str(content["name"]), labels, _read_files([folder / name for name in names]))
    except (OSError, ValueError, KeyError, TypeError):
        return CachedPredictions("", (), {})


def _read_files(files: Sequence[Path]) -> dict[str, Prediction]:
    """The pictures of some files; those of a file that is damaged or gone are passed over, and looked at again."""
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
    """Put some files into one. What another process adds meanwhile lies in a file of its own, which is left."""
    try:
        _write_file(folder, predictions)
    except StudioError:
        return  # the parts are good enough
    for file in files:
        file.unlink(missing_ok=True)
