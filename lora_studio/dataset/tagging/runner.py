"""Taggers at work over many pictures: what is in the cache needs no model, the rest is decoded ahead and batched."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from lora_studio.dataset.images.decode import decode, file_sha256
from lora_studio.dataset.tagging.batch_size import BatchSize
from lora_studio.dataset.tagging.cache import TagCache
from lora_studio.dataset.tagging.catalogue import TaggerFiles
from lora_studio.dataset.tagging.interface import Prediction
from lora_studio.device import free_gpu_cache, is_out_of_memory
from lora_studio.errors import InputError

PREFETCH_IMAGES = 64  # pictures that are decoded ahead; a model's input takes some 2 MB


class ImagePrediction(NamedTuple):
    """A picture's path and what the tagger saw in it, or why it cannot be seen."""

    path: Path
    prediction: Prediction | InputError


@dataclass
class TaggerRunner:
    """One tagger over the pictures of one job. The model is loaded when the first picture needs it."""

    files: TaggerFiles
    cache: TagCache
    on_load: Callable[[str], None]
    batch: BatchSize = field(default_factory=BatchSize)
    _tagger: Any = None

    def predict(self, paths: Sequence[Path], hash_of: Callable[[Path], str]) -> Iterator[list[ImagePrediction]]:
        """What the tagger sees in each of the pictures, in batches, those in the cache first in every chunk.

        The caller may leave off at any time; what was seen up to then is kept. Raises what the model raises.
        """
        workers = os.cpu_count() or 1
        with ThreadPoolExecutor(workers) as pool, closing(self):
            for start in range(0, len(paths), PREFETCH_IMAGES):
                chunk = paths[start : start + PREFETCH_IMAGES]
                known: list[ImagePrediction] = []
                fresh: list[tuple[Path, str]] = []
                for path, hashed in zip(chunk, pool.map(_returning_input_errors(hash_of), chunk), strict=True):
                    if isinstance(hashed, InputError):
                        known.append(ImagePrediction(path, hashed))
                    elif (prediction := self.cache.predictions.get(hashed)) is not None:
                        known.append(ImagePrediction(path, prediction))
                    else:
                        fresh.append((path, hashed))
                if known:
                    yield known
                if fresh:
                    yield from self._predict_uncached(fresh, pool)

    def close(self) -> None:
        """Keep what was seen and let the model go."""
        self.cache.flush()
        self._tagger = None

    def _predict_uncached(
        self, pictures: Sequence[tuple[Path, str]], pool: ThreadPoolExecutor
    ) -> Iterator[list[ImagePrediction]]:
        if self._tagger is None:
            self.on_load(f"Loading the tagger {self.files.name}")
            self._tagger = self.files.load()
        tagger = self._tagger

        def inputs(picture: tuple[Path, str]) -> Any:
            # Twice the model's sides leave its own scaling something to do; JPEGs are decoded no larger than that.
            return tagger.preprocess(decode(picture[0], min_side=2 * tagger.image_size).image)

        waiting: list[tuple[Path, str, Any]] = []
        results = zip(pictures, pool.map(_returning_input_errors(inputs), pictures), strict=True)
        for left, ((path, sha256), ready) in zip(range(len(pictures) - 1, -1, -1), results, strict=True):
            if isinstance(ready, InputError):
                yield [ImagePrediction(path, ready)]
            else:
                waiting.append((path, sha256, ready))
            while waiting and (len(waiting) >= self.batch.size or not left):
                taken = waiting[: self.batch.size]
                if (predictions := self._predict_batch([ready for _, _, ready in taken])) is None:
                    continue
                waiting = waiting[len(taken) :]
                for (_, taken_hash, _), prediction in zip(taken, predictions, strict=True):
                    self.cache.add(taken_hash, prediction)
                yield [
                    ImagePrediction(path, prediction)
                    for (path, _, _), prediction in zip(taken, predictions, strict=True)
                ]

    def _predict_batch(self, inputs: Sequence[Any]) -> list[Prediction] | None:
        """Return the predictions of a batch, or None if it does not fit into memory and a smaller one is to be tried.

        Raises what the model raises when a batch of one does not fit.
        """
        began = time.monotonic()
        try:
            predictions: list[Prediction] = self._tagger.predict(inputs)
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error) or not self.batch.shrink():
                raise
        else:
            self.batch.record(len(inputs), time.monotonic() - began)
            return predictions
        free_gpu_cache()  # only now: until here the error's traceback held the tensors that did not fit
        return None


def image_sha256(path: Path) -> str:
    """The SHA-256 of an image file; raises InputError if it cannot be read."""
    try:
        return file_sha256(path)
    except OSError as error:
        raise InputError(
            f"The image {path.name!r} cannot be read: {error.strerror}.", "Check its permissions.", code="unreadable"
        ) from error


def _returning_input_errors(work: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """`work` with its InputError as a result: one picture's trouble is not the others'."""

    def wrapped(given: Any) -> Any:
        try:
            return work(given)
        except InputError as error:
            return error

    return wrapped
