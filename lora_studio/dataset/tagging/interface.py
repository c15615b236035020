"""The interface of taggers, and the values that they return."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from lora_studio.dataset.captions.text import join_tags
from lora_studio.dataset.tagging.labels import Label

MIN_CONFIDENCE = 0.01  # lower ones are dropped: of a tagger's 10,000 tags, about 150 per image are above it


@dataclass(frozen=True)
class Tag:
    """A tag as captions write it, and its confidence (0 to 1)."""

    name: str
    confidence: float


@dataclass(frozen=True)
class Description:
    """The content of a caption: tags, in order of falling confidence, or a sentence, or both."""

    tags: tuple[Tag, ...] = ()
    sentence: str = ""

    @property
    def caption(self) -> str:
        """The caption as one line, the sentence first; empty if no tag reached its threshold."""
        return join_tags([*([self.sentence] if self.sentence else []), *(tag.name for tag in self.tags)])


@dataclass(frozen=True)
class Prediction:
    """The raw prediction of a model for one image, before any threshold.

    `outputs` (uint16) are the indices of the labels with at least MIN_CONFIDENCE, and `confidences` (float16) their
    probabilities; `sentence` is the output of a captioner; `features` (float16) are the pooled features of the image.
    """

    outputs: NDArray[np.uint16] = field(default_factory=lambda: np.empty(0, np.uint16))
    confidences: NDArray[np.float16] = field(default_factory=lambda: np.empty(0, np.float16))
    sentence: str = ""
    features: NDArray[np.float16] = field(default_factory=lambda: np.empty(0, np.float16))


class ModelFiles(Protocol):
    """The files of a model that predicts something for an image, not loaded."""

    @property
    def name(self) -> str:
        """The name by which it was found."""

    @property
    def labels(self) -> tuple[Label, ...]:
        """Its tags, one per output; none if it predicts no tags."""

    def content_hash(self) -> str:
        """Return a hash of everything that affects its predictions."""

    def load(self, *, on_cpu: bool = False) -> Tagger:
        """Load the model onto the best device, or the CPU; raises InputError if it is broken."""


class Tagger(Protocol):
    """A loaded model."""

    @property
    def name(self) -> str:
        """The name by which it was found."""

    @property
    def labels(self) -> tuple[Label, ...]:
        """Its tags, one per output; none for a captioner."""

    @property
    def image_size(self) -> int:
        """The side of the square input, px."""

    def preprocess(self, image: Image.Image) -> Any:
        """Turn an upright RGB image of any size into an input of `predict`; thread-safe."""

    def predict(self, inputs: Sequence[Any]) -> list[Prediction]:
        """Return the predictions for one batch, in the order of the inputs.

        Raises the library's own error when memory runs out.
        """
