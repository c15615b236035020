"""Measures of a run's samples: against each other, the training images and those of the validation split."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from lora_studio.dataset.tagging.interface import ModelFiles, Prediction, Tagger
from lora_studio.dataset.tagging.selection import confidence_by_tag
from lora_studio.events import PhaseEvent, Report, SampleMeasuresEvent
from lora_studio.measures.adherence import adherence, prompt_tags
from lora_studio.measures.colours import Colours, mean_colour
from lora_studio.measures.distances import mean, mean_pairwise
from lora_studio.measures.estimate import Estimate
from lora_studio.measures.features import ImageFeatures, ImageFile, predictions_of, thumbnail_colours, vectors
from lora_studio.measures.models import feature_model
from lora_studio.measures.thumbnails import ThumbnailModel
from lora_studio.measures.training_images import closeness, memorisation
from lora_studio.measures.variety import prompt_variety
from lora_studio.workspace.project import Home

DIGITS = 4  # of figures in events


class DrawnSample(NamedTuple):
    """A sample: the number of its prompt, counted from 0, the prompt and the image."""

    number: int
    prompt: str
    image: Image.Image


@dataclass
class SampleMeasurer:
    """Measures the samples of a run, with a model that stays loaded on the CPU: the GPU is full.

    `model` is the setting's name of the model; empty: the tagger of the images. Images and the model are read when the
    first samples are measured.
    """

    model: str
    training: Sequence[ImageFile]
    validation: Sequence[ImageFile]
    trigger_word: str
    home: Home
    report: Report
    should_stop: Callable[[], bool]

    def measure(self, samples: Sequence[DrawnSample], *, step: int, epoch: int | None) -> SampleMeasuresEvent | None:
        """Return the measures of the samples of a step; None without samples, or if too few images can be compared.

        Raises InputError if the model cannot be loaded, StopRequested after a stop request while images are read.
        """
        if not samples:
            return None
        images, usual = self._training_features, self._training_colours
        if usual is None or not len(images.vectors):
            return None
        predictions = self._predict(samples)
        pictures = vectors(self._files, predictions)[:, None]
        nearest = memorisation(pictures, images.vectors)
        if nearest is None:
            return None
        found = thumbnail_colours(_thumbnails([sample.image for sample in samples]))
        return SampleMeasuresEvent(
            step=step,
            epoch=epoch,
            features=self._files.name,
            images=len(images.paths),
            indices=[sample.number for sample in samples],
            nearest=[str(images.paths[number]) for number in nearest.nearest[:, 0]],
            nearest_ratio=[_rounded(ratio) for ratio in nearest.ratios[:, 0]],
            variety=_measured(prompt_variety(pictures)),
            training_variety=_rounded(mean_pairwise(images.vectors)),
            closeness=_measured(closeness(pictures, images.vectors)),
            validation_closeness=_measured(closeness(pictures, self._validation_features.vectors)),
            adherence=_measured(self._adherence(samples, predictions)),
            contrast=_known(mean_colour(found.contrast[:, None])),
            saturation=_known(mean_colour(found.saturation[:, None])),
            clipped=_known(mean_colour(found.clipped[:, None])),
            training_contrast=_rounded(mean(usual.contrast)),
            training_saturation=_rounded(mean(usual.saturation)),
            training_clipped=_rounded(mean(usual.clipped)),
        )

    @cached_property
    def _files(self) -> ModelFiles:
        return feature_model(self.model, [image.sha256 for image in self.training], self.home)

    @cached_property
    def _loaded(self) -> Tagger:
        if not isinstance(self._files, ThumbnailModel):
            self.report(PhaseEvent(message=f"Loading {self._files.name}"))
        return self._files.load(on_cpu=True)

    @cached_property
    def _training_features(self) -> ImageFeatures:
        return self._features(self.training)

    @cached_property
    def _validation_features(self) -> ImageFeatures:
        return self._features(self.validation)

    @cached_property
    def _training_colours(self) -> Colours | None:
        copies = self._predictions(ThumbnailModel(), self.training)
        return thumbnail_colours(list(copies.values())) if copies else None

    def _predictions(self, files: ModelFiles, images: Sequence[ImageFile]) -> Mapping[Path, Prediction]:
        return predictions_of(files, images, self.home, report=self.report, should_stop=self.should_stop, on_cpu=True)

    def _features(self, images: Sequence[ImageFile]) -> ImageFeatures:
        return ImageFeatures.of(self._files, self._predictions(self._files, images))

    def _predict(self, samples: Sequence[DrawnSample]) -> list[Prediction]:
        model = self._loaded
        return [model.predict([model.preprocess(sample.image)])[0] for sample in samples]

    def _adherence(self, samples: Sequence[DrawnSample], predictions: Sequence[Prediction]) -> Estimate | None:
        labels = self._files.labels
        if not labels:
            return None
        names = [label.name for label in labels]
        return adherence(
            [[confidence_by_tag(prediction, labels)] for prediction in predictions],
            [prompt_tags(sample.prompt, names, self.trigger_word) for sample in samples],
        )


def _thumbnails(images: Sequence[Image.Image]) -> list[Prediction]:
    model = ThumbnailModel()
    return model.predict([model.preprocess(image) for image in images])


def _rounded(value: float) -> float:
    return round(float(value), DIGITS)


def _measured(estimate: Estimate | None) -> tuple[float, float | None] | None:
    return None if estimate is None else _known(estimate)


def _known(estimate: Estimate | None) -> tuple[float, float | None]:
    assert estimate is not None, "the samples are finite"
    return _rounded(estimate.value), None if estimate.error is None else _rounded(estimate.error)
