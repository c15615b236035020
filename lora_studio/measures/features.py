"""Features of image files, from the cache or the model."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple, Self

import numpy as np

from lora_studio.dataset.tagging.cache import FEATURES, TagCache
from lora_studio.dataset.tagging.interface import ModelFiles, Prediction
from lora_studio.dataset.tagging.runner import TaggerRunner
from lora_studio.errors import StopRequested
from lora_studio.events import PhaseEvent, Report
from lora_studio.measures.colours import Colours, colour_histograms, colours
from lora_studio.measures.distances import Vectors, concatenate_features, pixel_vectors, unit_vectors
from lora_studio.measures.models import cache_kind
from lora_studio.measures.thumbnails import ThumbnailModel, as_pixels
from lora_studio.workspace.project import Home


class ImageFile(NamedTuple):
    """An image and the SHA-256 of its file."""

    path: Path
    sha256: str


class ImageFeatures(NamedTuple):
    """Images with their features [N, F] as unit vectors."""

    paths: list[Path]
    vectors: Vectors

    @classmethod
    def of(cls, files: ModelFiles, predictions: Mapping[Path, Prediction]) -> Self:
        """Return the features of a model's predictions for images."""
        return cls(list(predictions), vectors(files, list(predictions.values())))


class ColouredFeatures(NamedTuple):
    """Images with their features [N, F] as unit vectors, and those with colour histograms beside [N, F + bins]."""

    paths: list[Path]
    vectors: Vectors
    with_colours: Vectors

    @classmethod
    def of(
        cls, files: ModelFiles, predictions: Mapping[Path, Prediction], thumbnails: Mapping[Path, Prediction]
    ) -> Self:
        """Return the features of a model's predictions for images that have a thumbnail."""
        paths = [path for path in predictions if path in thumbnails]
        found = vectors(files, [predictions[path] for path in paths])
        if not paths:
            return cls(paths, found, found)
        copies = as_pixels(np.stack([thumbnails[path].features for path in paths]))
        return cls(paths, found, concatenate_features(found, colour_histograms(copies)))


def predictions_of(
    files: ModelFiles,
    images: Sequence[ImageFile],
    home: Home,
    *,
    report: Report,
    should_stop: Callable[[], bool],
    generated: bool = False,
    on_cpu: bool = False,
) -> dict[Path, Prediction]:
    """Return a model's predictions for images, in their order, cached by content.

    Images that cannot be read are left out. A tagger shares its cache with tagging, except for `generated` images.
    Raises InputError if the model cannot be loaded, StopRequested.
    """
    cache = TagCache.of(files, home, FEATURES if generated else cache_kind(files))
    known = {image.path: cache.predictions.get(image.sha256) for image in images}
    hashes = {image.path: image.sha256 for image in images}
    missing = [path for path, prediction in known.items() if prediction is None]
    runner = TaggerRunner(files, cache, partial(_report_phase, report), on_cpu=on_cpu)
    for results in runner.predict(missing, hashes.__getitem__):
        known |= {path: found for path, found in results if isinstance(found, Prediction)}
        done = len(images) - list(known.values()).count(None)
        # As text: the counts of a phase would replace the job's own, of steps or cells.
        report(PhaseEvent(message=f"Comparing images by {files.name}: {done} of {len(images)}"))
        if should_stop():
            raise StopRequested
    return {path: prediction for path, prediction in known.items() if prediction is not None}


def _report_phase(report: Report, message: str) -> None:
    report(PhaseEvent(message=message))


def vectors(files: ModelFiles, predictions: Sequence[Prediction]) -> Vectors:
    """Return the features of predictions as unit vectors [N, F]."""
    if not predictions:
        return np.empty((0, 0), np.float32)
    features = np.stack([prediction.features for prediction in predictions])
    return pixel_vectors(features) if isinstance(files, ThumbnailModel) else unit_vectors(features)


def thumbnail_colours(copies: Sequence[Prediction]) -> Colours:
    """Return the colour figures [N] of predictions of the thumbnail model."""
    return colours(as_pixels(np.stack([copy.features for copy in copies])))
