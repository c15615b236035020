"""What taggers saw in pictures, kept by content: a changed threshold, list or trigger word needs no model again.

cache/tags/MODEL/ belongs to one tagger, MODEL being a hash of its files and of `VERSION`. labels.json has its tags; the
.npz files, each written whole, have some pictures each, by the SHA-256 of the image file. Safe to delete.
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
from lora_studio.dataset.tagging.interface import Sight
from lora_studio.dataset.tagging.labels import Label
from lora_studio.dataset.tagging.selection import all_confidences
from lora_studio.errors import StudioError
from lora_studio.files import write_bytes, write_json
from lora_studio.workspace.project import Home

VERSION = "1"  # of what is stored and of how pictures are prepared: raise it when a picture gives something else

FLUSH_IMAGES = 256
FLUSH_SECONDS = 20.0
MANY_FILES = 64  # are put together into one when they are read
LABELS_FILE = "labels.json"


@dataclass
class TagCache:
    """The pictures that one tagger has seen. Added ones lie on disk after `flush`, which happens by itself at times."""

    folder: Path
    labels: tuple[Label, ...]
    sights: dict[str, Sight]
    _fresh: dict[str, Sight] = field(default_factory=dict)
    _flushed: float = field(default_factory=time.monotonic)

    @classmethod
    def of(cls, files: TaggerFiles, home: Home) -> TagCache:
        """The cache of a tagger, opened; it need not exist yet."""
        key = hashlib.sha256(f"{VERSION} {files.content_hash()}".encode()).hexdigest()[:24]
        folder = home.cache / "tags" / key
        if not (folder / LABELS_FILE).is_file():
            write_json(folder / LABELS_FILE, {"name": files.name, "labels": files.labels})
        parts = sorted(folder.glob("*.npz"))
        sights = _read(parts)
        if len(parts) > MANY_FILES:
            _join(folder, parts, sights)
        return cls(folder, files.labels, sights)

    def add(self, sha256: str, sight: Sight) -> None:
        """Remember what was seen in the picture of that hash."""
        self.sights[sha256] = self._fresh[sha256] = sight
        if len(self._fresh) >= FLUSH_IMAGES or time.monotonic() - self._flushed > FLUSH_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Write what is not on disk yet."""
        if self._fresh:
            _write(self.folder, self._fresh)
        self._fresh, self._flushed = {}, time.monotonic()


@dataclass(frozen=True)
class Seen:
    """What one tagger saw in pictures of a dataset, read for looking only. `name` is what the tagger was called."""

    name: str
    labels: tuple[Label, ...]
    sights: Mapping[str, Sight]

    def confidences(self, sha256: str) -> Mapping[str, float]:
        """How sure the tagger is of each tag of a picture (0.01 at least); empty if it has not seen the picture."""
        sight = self.sights.get(sha256)
        return all_confidences(sight, self.labels) if sight is not None else {}


def seen(home: Home, sha256s: Collection[str]) -> Seen | None:
    """What the tagger that knows most of these pictures saw, the latest of such; None if no tagger knows any."""
    wanted = set(sha256s)
    best: tuple[int, float] | None = None
    found = None
    for folder in sorted((home.cache / "tags").glob("*/")):
        names = tuple(sorted(path.name for path in folder.glob("*.npz")))
        if not names:
            continue
        known = _opened(folder, names)
        rank = len(wanted & known.sights.keys()), max((folder / name).stat().st_mtime for name in names)
        if rank[0] and (best is None or rank > best):
            best, found = rank, known
    return found


def confidences(home: Home, sha256: str) -> Mapping[str, float]:
    """How sure a tagger is of each tag of the picture of that hash; empty if none has seen it."""
    known = seen(home, [sha256])
    return known.confidences(sha256) if known else {}


def features(home: Home, sha256s: Collection[str]) -> dict[str, NDArray[np.float16]]:
    """The features [F] of those of the pictures that a tagger has seen, by the SHA-256 of the image."""
    known = seen(home, sha256s)
    if known is None:
        return {}
    return {sha256: sight.features for sha256 in sha256s if (sight := known.sights.get(sha256)) is not None}


@lru_cache(maxsize=2)
def _opened(folder: Path, names: tuple[str, ...]) -> Seen:
    """A folder of the cache as it is while it holds the files of these names."""
    try:
        content = json.loads((folder / LABELS_FILE).read_text("utf-8"))
        labels = tuple(Label(str(name), int(category)) for name, category in content["labels"])
        return Seen(str(content["name"]), labels, _read([folder / name for name in names]))
    except (OSError, ValueError, KeyError, TypeError):
        return Seen("", (), {})


def _read(parts: Sequence[Path]) -> dict[str, Sight]:
    """The pictures of some files; those of a file that is damaged or gone are passed over, and looked at again."""
    sights: dict[str, Sight] = {}
    for part in parts:
        try:
            sights |= _read_part(part)
        except (OSError, ValueError, KeyError, IndexError, EOFError, zipfile.BadZipFile):
            continue
    return sights


def _read_part(part: Path) -> dict[str, Sight]:
    with part.open("rb") as file, np.load(file, allow_pickle=False) as content:
        hashes = content["hashes"].tobytes().hex()
        ends = [0, *np.cumsum(content["counts"]).tolist()]
        outputs, confidences, features = content["outputs"], content["confidences"], content["features"]
        sentences = json.loads(content["sentences"].tobytes())
    if not len(outputs) == len(confidences) == ends[-1]:
        raise ValueError(part)
    return {
        hashes[64 * row : 64 * (row + 1)]: Sight(
            outputs[ends[row] : ends[row + 1]], confidences[ends[row] : ends[row + 1]], sentence, features[row]
        )
        for row, sentence in enumerate(sentences)
    }


def _write(folder: Path, sights: Mapping[str, Sight]) -> None:
    file = io.BytesIO()
    values = list(sights.values())
    np.savez(
        file,
        hashes=np.frombuffer(bytes.fromhex("".join(sights)), np.uint8),
        counts=np.array([len(sight.outputs) for sight in values], np.int64),
        outputs=np.concatenate([sight.outputs for sight in values]),
        confidences=np.concatenate([sight.confidences for sight in values]),
        features=np.stack([sight.features for sight in values]),
        sentences=np.frombuffer(json.dumps([sight.sentence for sight in values]).encode(), np.uint8),
    )
    write_bytes(folder / f"{time.time_ns()}-{os.getpid()}.npz", file.getvalue())


def _join(folder: Path, parts: Sequence[Path], sights: Mapping[str, Sight]) -> None:
    """Put some files into one. What another process adds meanwhile lies in a file of its own, which is left."""
    try:
        _write(folder, sights)
    except StudioError:
        return  # the parts are good enough
    for part in parts:
        part.unlink(missing_ok=True)
