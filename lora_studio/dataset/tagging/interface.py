"""What every tagger does, and what it makes of a picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from lora_studio.dataset.captions.text import join_tags
from lora_studio.dataset.tagging.labels import Label

MIN_CONFIDENCE = 0.01  # what is less is not kept: of a tagger's 10,000 tags some 150 a picture are more


@dataclass(frozen=True)
class Tag:
    """A tag as it stands in a caption, and how sure the tagger is of it (0 to 1)."""

    name: str
    confidence: float


@dataclass(frozen=True)
class Description:
    """What is written about one picture: tags, the surest first, or a sentence, or both."""

    tags: tuple[Tag, ...] = ()
    sentence: str = ""

    @property
    def caption(self) -> str:
        """One line, the sentence first; empty if the tagger is sure of nothing."""
        return join_tags([*([self.sentence] if self.sentence else []), *(tag.name for tag in self.tags)])


@dataclass(frozen=True)
class Prediction:
    """What a model made of one picture, before anybody chose a threshold.

    `outputs` (uint16) are the numbers of the labels of at least LEAST_CONFIDENCE and `confidences` (float16) how sure
    the model is of each; `sentence` is what a captioner says; `features` (float16) are the model's own, pooled over
    the picture.
    """

    outputs: NDArray[np.uint16] = field(default_factory=lambda: np.empty(0, np.uint16))
    confidences: NDArray[np.float16] = field(default_factory=lambda: np.empty(0, np.float16))
    sentence: str = ""
    features: NDArray[np.float16] = field(default_factory=lambda: np.empty(0, np.float16))


class Tagger(Protocol):
    """A loaded model."""

    @property
    def name(self) -> str:
        """What people call it."""

    @property
    def labels(self) -> tuple[Label, ...]:
        """The tags that it knows, one an output; none for a captioner."""

    @property
    def image_size(self) -> int:
        """Pixels of the sides that the model sees."""

    def preprocess(self, image: Image.Image) -> Any:
        """What `predict` takes, of an upright RGB image of any size and shape; any thread may call it."""

    def predict(self, inputs: Sequence[Any]) -> list[Prediction]:
        """Return the model's prediction for each of the images, in their order, in one batch.

        Raises the library's own error when memory runs out.
        """
