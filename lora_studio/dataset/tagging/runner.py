"""Run a tagger over many images: use cached predictions, decode the others ahead, and predict in batches."""

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
from lora_studio.dataset.tagging.interface import ModelFiles, Prediction
from lora_studio.device import free_gpu_cache, is_out_of_memory
from lora_studio.errors import InputError

PREFETCH_IMAGES = 64  # decoded ahead; a model's input takes about 2 MB


class ImagePrediction(NamedTuple):
    """The path of an image with its prediction, or the reason why it has none."""

    path: Path
    prediction: Prediction | InputError


@dataclass
class TaggerRunner:
    """A tagger with its cache. The model is loaded when the first image needs it, onto the best device or `on_cpu`."""

    files: ModelFiles
    cache: TagCache
    on_load: Callable[[str], None]
    batch: BatchSize = field(default_factory=BatchSize)
    on_cpu: bool = False
    _tagger: Any = None

    def predict(self, paths: Sequence[Path], sha256_of: Callable[[Path], str]) -> Iterator[list[ImagePrediction]]:
        """Yield the predictions of all images in batches; of each group decoded ahead, the cached ones come first.

        The caller may stop at any time: predictions up to then are cached. Raises what the model raises.
        """
        workers = os.cpu_count() or 1
        with ThreadPoolExecutor(workers) as pool, closing(self):
            for start in range(0, len(paths), PREFETCH_IMAGES):
                group = paths[start : start + PREFETCH_IMAGES]
                finished: list[ImagePrediction] = []
                uncached: list[tuple[Path, str]] = []
                for path, sha256 in zip(group, pool.map(_returning_input_errors(sha256_of), group), strict=True):
                    if isinstance(sha256, InputError):
                        finished.append(ImagePrediction(path, sha256))
                    elif (prediction := self.cache.predictions.get(sha256)) is not None:
                        finished.append(ImagePrediction(path, prediction))
                    else:
                        uncached.append((path, sha256))
                if finished:
                    yield finished
                if uncached:
                    yield from self._predict_uncached(uncached, pool)

    def close(self) -> None:
        """Save the predictions and release the model."""
        self.cache.flush()
        self._tagger = None

    def _predict_uncached(
        self, images: Sequence[tuple[Path, str]], pool: ThreadPoolExecutor
    ) -> Iterator[list[ImagePrediction]]:
        """Decode images (path and SHA-256) in the pool, and yield their predictions in batches."""
        if self._tagger is None:
            self.on_load(f"Loading {self.files.name}")
            self._tagger = self.files.load(on_cpu=self.on_cpu)
        tagger = self._tagger

        def decoded(image: tuple[Path, str]) -> Any:
            # JPEGs are decoded at a reduced size: twice the model's input leaves enough for its own resampling.
            return tagger.preprocess(decode(image[0], min_side=2 * tagger.image_size).image)

        waiting: list[tuple[Path, str, Any]] = []
        results = zip(images, pool.map(_returning_input_errors(decoded), images), strict=True)
        for number, ((path, sha256), model_input) in enumerate(results, 1):
            if isinstance(model_input, InputError):
                yield [ImagePrediction(path, model_input)]
            else:
                waiting.append((path, sha256, model_input))
            while waiting and (len(waiting) >= self.batch.size or number == len(images)):
                batch = waiting[: self.batch.size]
                predictions = self._predict_batch([model_input for _, _, model_input in batch])
                if predictions is None:
                    continue
                waiting = waiting[len(batch) :]
                for (_, batch_sha256, _), prediction in zip(batch, predictions, strict=True):
                    self.cache.add(batch_sha256, prediction)
                paths = [path for path, _, _ in batch]
                yield list(map(ImagePrediction, paths, predictions))

    def _predict_batch(self, inputs: Sequence[Any]) -> list[Prediction] | None:
        """Return the predictions of a batch, or None if it ran out of memory and a smaller one can be tried.

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
        free_gpu_cache()  # not inside the except clause, where the traceback holds the tensors that did not fit
        return None


def image_sha256(path: Path) -> str:
    """Return the SHA-256 of an image file; raises InputError if it cannot be read."""
    try:
        return file_sha256(path)
    except OSError as error:
        raise InputError(
            f"The image {path.name!r} cannot be read: {error.strerror}.", "Check its permissions.", code="unreadable"
        ) from error


def _returning_input_errors(work: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Return `work` with an InputError as its result instead of raised, so that one image does not end the job."""

    def wrapped(given: Any) -> Any:
        try:
            return work(given)
        except InputError as error:
            return error

    return wrapped
