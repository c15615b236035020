"""Pixels of small copies as features, for when no other model is known: they compare pictures by layout and colour."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image

from lora_studio.dataset.tagging.interface import Prediction
from lora_studio.dataset.tagging.labels import Label

SIDE = 32  # px
NAME = "thumbnails"


@dataclass(frozen=True)
class ThumbnailModel:
    """Makes square RGB copies of `SIDE` px, whatever the aspect ratio, as features [SIDE * SIDE * 3] between 0 and 1.

    It has the interface of a tagger and of its files, so that copies are cached by content as other features are.
    """

    name: str = NAME
    labels: tuple[Label, ...] = ()
    image_size: int = SIDE

    def content_hash(self) -> str:
        """Return what changes whenever the copies would be others."""
        return f"{NAME} {SIDE} 1"

    def load(self, *, on_cpu: bool = False) -> ThumbnailModel:
        """Return the model itself: there is nothing to load."""
        return self

    def preprocess(self, image: Image.Image) -> NDArray[np.float16]:
        """Return the copy of an RGB image."""
        small = image.resize((SIDE, SIDE), Image.Resampling.BOX)
        return (np.asarray(small, dtype=np.float32) / 255).astype(np.float16)

    def predict(self, inputs: Sequence[NDArray[np.float16]]) -> list[Prediction]:
        """Return the copies as features."""
        return [Prediction(features=copy.ravel()) for copy in inputs]


def as_pixels(features: ArrayLike) -> NDArray[np.float32]:
    """Return features [..., F] of this model as pixels [..., SIDE, SIDE, 3]."""
    flat = np.asarray(features, dtype=np.float32)
    return flat.reshape(*flat.shape[:-1], SIDE, SIDE, 3)
