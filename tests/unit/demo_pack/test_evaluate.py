"""The colour of a background is read from the border of an image."""

from __future__ import annotations

import numpy as np
from demo_pack.evaluate import BACKGROUNDS, BORDER, nearest_colour


def test_nearest_colour_is_that_of_the_border_whatever_the_centre_shows() -> None:
    images = np.zeros((len(BACKGROUNDS), 32, 32, 3), np.uint8)
    for image, colour in zip(images, BACKGROUNDS.values(), strict=True):
        image[:] = np.clip(np.array(colour) * 255 + 8, 0, 255)
        image[BORDER:-BORDER, BORDER:-BORDER] = (250, 20, 30)
    assert nearest_colour(images) == list(BACKGROUNDS)
