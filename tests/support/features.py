"""Features of pictures with known distances."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from lora_studio.measures.distances import Vectors


def at_angles(degrees: ArrayLike) -> Vectors:
    """Return unit vectors [..., 2] at angles: their cosine distance is 1 - cos of the difference."""
    radians = np.radians(np.asarray(degrees, dtype=np.float64))
    return np.stack([np.cos(radians), np.sin(radians)], axis=-1).astype(np.float32)


def distance(degrees: float) -> float:
    """Return the cosine distance of two vectors with this angle between them."""
    return float(1 - np.cos(np.radians(degrees)))
