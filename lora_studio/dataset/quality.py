"""Quality issues that show in the pixels: blur, darkness, compression artefacts, bars and borders.

Everything except compression is measured on a greyscale copy whose shorter side is `SIDE` pixels, so that an image is
judged the same at any resolution. An issue asks for a check and is not a verdict: drawings with soft shades and night
scenes are flagged too, and the user can keep them. The thresholds separate sharp from blurred and clean from damaged
images, generated ones and the example set (tests/unit/dataset/test_quality.py).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from lora_studio.dataset.images.decode import DecodedImage, Issue

SIDE = 384  # px

MIN_SHARPNESS = 0.04  # share of the contrast; sharp drawings have 0.5 and more, soft photographs 0.1
MIN_CONTRAST = 12.0  # of 255; with less, sharpness cannot be measured
MAX_DARK_LEVEL = 70.0  # of 255: the 99th percentile of a dark image is below
MIN_BRIGHT_LEVEL = 190.0  # of 255: the 1st percentile of a washed-out image is above
MIN_JPEG_QUALITY = 50.0  # of 100
MAX_BLOCKING = 5.0  # steps at edges of 8 x 8 blocks / steps inside; JPEG quality 50 has 4, drawings at most 3.5

MIN_BAND_SHARE = 0.02  # of the side; a narrower band is a thin line
MAX_BAND_SHARE = 0.35
_SAME = 10  # grey levels; pixels that differ by no more count as one colour
_PLAIN = 0.97  # min share of a bar's outermost row that is one colour
_TEXT = 0.5  # min share of a bar's colour in each of its rows; letters on the bar take the rest
_STRAIGHT = 0.4  # max share of the bar's colour in the first row after it; the margin of a drawing has more

_REACHES = 0.05  # max distance from the end of a row, as a share of the row
_SAME_PLACE = 0.9  # min share of the rows

# Sum of the luminance quantization table in annex K of the JPEG standard, used at quality 50 and scaled for others.
_STANDARD_TABLE = 3688

Grey = NDArray[np.uint8]


def downscale(image: Image.Image) -> Image.Image:
    """Return the image reduced by a whole factor, with a shorter side of at least SIDE pixels."""
    factor = min(image.size) // SIDE
    return image.reduce(factor) if factor > 1 else image


def quality_issues(picture: DecodedImage, small: Image.Image) -> list[Issue]:
    """Return the quality issues of a decoded image; `small` is the same image after `downscale`."""
    image = _grey(small)
    grey = np.asarray(image)
    counts = np.cumsum(image.histogram())
    found = [_blur(grey, counts), _light(counts), _compression(picture), _bars(grey)]
    return [issue for issue in found if issue is not None]


def _grey(image: Image.Image) -> Image.Image:
    """Return the image in greyscale with a shorter side of SIDE pixels; smaller images keep their size."""
    grey = image.convert("L")
    scale = SIDE / min(image.size)
    if scale >= 1:
        return grey
    size = max(1, round(image.width * scale)), max(1, round(image.height * scale))
    return grey.resize(size, Image.Resampling.BOX)


def _percentile(counts: NDArray[np.int64], percent: float) -> float:
    """Return a percentile of whole numbers from 0, given the cumulative counts of their histogram."""
    return float(np.searchsorted(counts, percent / 100 * counts[-1]))


def _blur(grey: Grey, counts: NDArray[np.int64]) -> Issue | None:
    contrast = _percentile(counts, 99.5) - _percentile(counts, 0.5)
    if min(grey.shape) < 8 or contrast < MIN_CONTRAST:
        return None
    sharpness = _sharpest(grey) / contrast
    if sharpness >= MIN_SHARPNESS:
        return None
    return Issue(
        code="blurred",
        message=f"Blurred: even its sharpest areas have {sharpness / MIN_SHARPNESS:.0%} of the sharpness of a soft "
        "photograph. Training learns the blur.",
    )


def _sharpest(grey: Grey) -> float:
    """Return the 99.5th percentile of the absolute Laplacian.

    The usual measure, its variance (Pech-Pacheco et al. 2000), would flag drawings with large plain areas and
    photographs with a soft background as blurred.
    """
    wide = grey.astype(np.int16)
    laplacian = wide[:-2, 1:-1] + wide[2:, 1:-1]
    laplacian += wide[1:-1, :-2]
    laplacian += wide[1:-1, 2:]
    laplacian -= 4 * wide[1:-1, 1:-1]
    return _percentile(np.cumsum(np.bincount(np.abs(laplacian, out=laplacian).ravel())), 99.5)


def _light(counts: NDArray[np.int64]) -> Issue | None:
    darkest, lightest = _percentile(counts, 1), _percentile(counts, 99)
    if lightest < MAX_DARK_LEVEL:
        return Issue(
            code="dark",
            message=f"Dark: its brightest areas reach {lightest / 255:.0%} of white. Raise the levels.",
        )
    if darkest > MIN_BRIGHT_LEVEL:
        return Issue(
            code="bright",
            message=f"Washed out: its darkest areas are at {darkest / 255:.0%} of white. Lower the levels.",
        )
    return None


def _compression(picture: DecodedImage) -> Issue | None:
    if picture.quantization:
        quality = jpeg_quality(picture.quantization)
        if quality < MIN_JPEG_QUALITY:
            return Issue(
                code="compressed",
                message=f"Strongly compressed: JPEG quality {quality:.0f}. Training learns its blocks and halos.",
            )
        return None
    if picture.image.size != picture.size or not (blocking := _blocking(picture.image)) > MAX_BLOCKING:
        return None
    return Issue(
        code="compressed",
        message=f"It was once a strongly compressed JPEG: steps at the edges of its 8 x 8 blocks are {blocking:.0f} "
        "times as large as those inside. Find the original.",
    )


def jpeg_quality(table: tuple[int, ...]) -> float:
    """Return the IJG quality (1 to 100) that belongs to a luminance quantization table, from the table's sum.

    Below 20 the result is somewhat too high, as the entries are clipped at 255.
    """
    scale = 100 * sum(table) / _STANDARD_TABLE
    return max(1.0, min(100.0, (200 - scale) / 2 if scale <= 100 else 5000 / scale))


def _blocking(image: Image.Image) -> float:
    """Return the mean step between neighbours at edges of 8 x 8 blocks over that elsewhere, the lower of both axes.

    Only the central 512 x 512 px are measured. The result is 0 if most neighbours are equal, as in pixel art.
    """
    width, height = (min(512, side // 8 * 8) for side in image.size)
    if min(width, height) < 64:
        return 0.0
    left, top = ((whole - part) // 16 * 8 for whole, part in zip(image.size, (width, height), strict=True))
    grey = np.asarray(image.crop((left, top, left + width, top + height)).convert("L"), dtype=np.int16)
    ratios = []
    for steps in (np.abs(np.diff(grey, axis=1)).sum(axis=0), np.abs(np.diff(grey, axis=0)).sum(axis=1)):
        means = [float(steps[place::8].mean()) / len(grey) for place in range(8)]
        within = float(np.median(means[:7]))
        ratios.append(means[7] / within if within > 0.02 else 0.0)
    return min(ratios)


def _bars(grey: Grey) -> Issue | None:
    """Return the issue of bands of one colour, with or without text, that end in a straight line, as no margin does."""
    sides: dict[str, Any] = {"top": grey, "bottom": grey[::-1], "left": grey.T, "right": grey.T[::-1]}
    bands = {name: band for name, rows in sides.items() if (band := _band(rows))}
    if not bands:
        return None
    where = " and ".join(f"{name} ({share:.0%})" for name, share in bands.items())
    opposite = {"top", "bottom"} <= bands.keys() or {"left", "right"} <= bands.keys()
    if opposite:
        return Issue(code="border", message=f"A border: {where}. Training learns it as part of every image; crop it.")
    return Issue(
        code="bar", message=f"A bar at the {where}, as of a watermark or letterbox. Crop it, or training learns it."
    )


def _band(rows: Grey) -> float:
    """Return the share of the rows, from the first, that belongs to a band; 0 if there is none."""
    colour = int(np.median(rows[0]))
    if (np.abs(rows[0].astype(np.int16) - colour) <= _SAME).mean() < _PLAIN:
        return 0.0
    same = (rows >= max(0, colour - _SAME)) & (rows <= min(255, colour + _SAME))
    like = same.mean(axis=1)  # share of each row that has the band's colour
    length = int(np.argmax(like < _TEXT)) if (like < _TEXT).any() else len(rows)
    if not MIN_BAND_SHARE * len(rows) <= length <= MAX_BAND_SHARE * len(rows):
        return 0.0
    inside = same[length + 1 : len(rows) - length]  # the row at the edge may be a blend of both
    if not len(inside) or inside[0].mean() > _STRAIGHT:
        return 0.0
    straight = all(_straight(part) for part in (inside, inside[:, ::-1]))
    return length / len(rows) if straight else 0.0


def _straight(inside: NDArray[np.bool_]) -> bool:
    """Return whether the picture reaches this end of its rows, or ends at the same place in nearly all rows (a frame).

    Around a drawing the band's colour continues into the picture, farther in some rows than in others.
    """
    runs = np.argmax(~inside, axis=1)
    return bool(runs[0] <= _REACHES * inside.shape[1] or (np.abs(runs - runs[0]) <= 1).mean() > _SAME_PLACE)
