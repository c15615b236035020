"""Fingerprints of images: perceptual hashes to find candidate duplicates, and a thumbnail to verify them.

The hashes are difference hashes (imagehash.dhash, horizontal and vertical, 8 x 8 each: 128 bits) of three views: the
whole image, its content without a uniform border, and the middle of the content. Cropping moves a drawing within its
margin, or cuts a photo a little: then another pair of views matches. Before hashing, the contrast is stretched and the
grey levels are quantised, so that compression noise in flat areas does not decide a bit.
"""

from __future__ import annotations

from dataclasses import dataclass

import imagehash
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

THUMBNAIL_SIDE = 64  # px
HASH_BITS = 128
DECODE_SIDE = 192  # px; enough for all of this module
_REDUCING_GAP = 1.5  # see PIL.Image.resize: fast averaging first, down to 1.5 times the final size

# Views, and which view of one image is compared with which of the other.
FULL, CONTENT, MIDDLE = 0, 1, 2
VIEW_PAIRS = ((FULL, FULL), (CONTENT, CONTENT), (FULL, MIDDLE), (MIDDLE, FULL))

_WORK_SIDE = 128
_GREY_BITS = 5
_MIDDLE_MARGIN = 0.04  # of each side, cut off for the middle view
_BORDER_TOLERANCE = 32  # of 255 grey levels after stretching
_MIN_CONTENT = 0.3  # of each side; smaller content is a speck rather than an image with a border

Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class Fingerprint:
    """Perceptual hashes and a small version of one image.

    `hashes` and `mirrored_hashes` (of the mirrored image) are [3 views, 2 words] uint64, `thumbnail` is [64, 64, 3]
    uint8 RGB. `content_box` is (left, top, right, bottom) of the image without a uniform border, in units of its sides.
    """

    hashes: NDArray[np.uint64]
    mirrored_hashes: NDArray[np.uint64]
    thumbnail: NDArray[np.uint8]
    content_box: Box


def fingerprint(image: Image.Image) -> Fingerprint:
    """Return the fingerprint of an RGB image of any size."""
    work = image.resize((_WORK_SIDE, _WORK_SIDE), Image.Resampling.LANCZOS, reducing_gap=_REDUCING_GAP)
    grey = ImageOps.autocontrast(work.convert("L"))
    box = _content_box(grey)
    views = [_hash_inputs(view) for view in _views(grey, box)]
    return Fingerprint(
        hashes=np.stack([_hash(*view) for view in views]),
        mirrored_hashes=np.stack([_hash(ImageOps.mirror(across), ImageOps.mirror(down)) for across, down in views]),
        thumbnail=np.asarray(work.resize((THUMBNAIL_SIDE, THUMBNAIL_SIDE), Image.Resampling.BOX)),
        content_box=(box[0] / _WORK_SIDE, box[1] / _WORK_SIDE, box[2] / _WORK_SIDE, box[3] / _WORK_SIDE),
    )


def _views(grey: Image.Image, box: tuple[int, int, int, int]) -> tuple[Image.Image, Image.Image, Image.Image]:
    content_box = grey.crop(box)
    cut_x, cut_y = round(content_box.width * _MIDDLE_MARGIN), round(content_box.height * _MIDDLE_MARGIN)
    return grey, content_box, content_box.crop((cut_x, cut_y, content_box.width - cut_x, content_box.height - cut_y))


def _content_box(grey: Image.Image) -> tuple[int, int, int, int]:
    pixels = np.asarray(grey, dtype=np.int16)
    border = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
    marked = np.abs(pixels - np.median(border)) > _BORDER_TOLERANCE
    rows, columns = np.flatnonzero(marked.any(axis=1)), np.flatnonzero(marked.any(axis=0))
    if not len(rows):
        return 0, 0, *grey.size
    box = int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1
    if min(box[2] - box[0], box[3] - box[1]) < _MIN_CONTENT * _WORK_SIDE:
        return 0, 0, *grey.size
    return box


def _hash_inputs(view: Image.Image) -> tuple[Image.Image, Image.Image]:
    """Return the view in 9 x 8 and in 8 x 9 pixels, with quantised grey levels, as input of the two hashes."""
    across = view.resize((9, 8), Image.Resampling.LANCZOS)
    down = view.resize((8, 9), Image.Resampling.LANCZOS)
    return ImageOps.posterize(across, _GREY_BITS), ImageOps.posterize(down, _GREY_BITS)


def _hash(across: Image.Image, down: Image.Image) -> NDArray[np.uint64]:
    bits = [imagehash.dhash(across, 8).hash, imagehash.dhash_vertical(down, 8).hash]
    return np.packbits(np.concatenate([part.ravel() for part in bits])).view(np.uint64)
