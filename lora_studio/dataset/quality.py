"""Flaws that a look at the pixels shows: blur, darkness, compression, bars and borders. Each says why it was flagged.

All but the traces of compression is measured on the grey picture with a shorter side of `SIDE` pixels, so that the
same picture in another size is judged alike. A flag is something to look at; drawings with soft shades and night
scenes are fine, and a curator says so with a click. The thresholds are what sharp and blurred, whole and spoiled made
pictures and the example images have on either side (tests/unit/test_quality.py).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from lora_studio.dataset.images.decode import DecodedImage, Issue

SIDE = 384  # px

MIN_SHARPNESS = 0.04  # of the contrast; sharp drawings have 0.5 and more, soft photographs 0.1
MIN_CONTRAST = 12.0  # of 255; a picture with less has nothing that could be sharp
MAX_DARK_LEVEL = 70.0  # of 255: the lightest hundredth of a dark picture is darker
MIN_BRIGHT_LEVEL = 190.0  # of 255: the darkest hundredth of a washed-out picture is lighter
MIN_JPEG_QUALITY = 50.0  # of 100
MAX_BLOCKING = 5.0  # steps at the edges of 8 x 8 blocks over those within; JPEG 50 has 4, drawings have 3.5 at most

MIN_BAND_SHARE = 0.02  # of a side: a narrower band is a thin line
MAX_BAND_SHARE = 0.35
_SAME = 10  # grey levels within which pixels are one colour
_PLAIN = 0.97  # share of the outermost row that is one colour in a bar
_TEXT = 0.5  # share of a row of a bar that is its colour where there are letters on it
_STRAIGHT = 0.4  # share of the first row inside that may look like the bar: a margin around a drawing has more

_REACHES = 0.05  # share of a row
_SAME_PLACE = 0.9  # share of the rows

# Sum of the luminance table of JPEG's annex K, which quality 50 is; the libraries scale it with their quality.
_STANDARD_TABLE = 3688

Grey = NDArray[np.uint8]


def downscale(image: Image.Image) -> Image.Image:
    """The image in a whole fraction of its size, the shorter side still SIDE pixels or more: fast, and enough."""
    factor = min(image.size) // SIDE
    return image.reduce(factor) if factor > 1 else image


def quality_issues(picture: DecodedImage, small: Image.Image) -> list[Issue]:
    """What is wrong with a decoded picture; `small` is the same picture `downscale`."""
    image = _grey(small)
    grey = np.asarray(image)
    counts = np.cumsum(image.histogram())
    found = [_blur(grey, counts), _light(counts), _compression(picture), _bars(grey)]
    return [issue for issue in found if issue is not None]


def _grey(image: Image.Image) -> Image.Image:
    """The picture in grey with a shorter side of SIDE pixels; one that is smaller stays as it is."""
    grey = image.convert("L")
    scale = SIDE / min(image.size)
    if scale >= 1:
        return grey
    size = max(1, round(image.width * scale)), max(1, round(image.height * scale))
    return grey.resize(size, Image.Resampling.BOX)


def _percentile(counts: NDArray[np.int64], percent: float) -> float:
    """Of whole numbers from 0 on, by how many there are up to each of them."""
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
        message=f"Blurred: nowhere an edge, its sharpest places have {sharpness / MIN_SHARPNESS:.0%} of what a soft "
        "photograph has. Training learns the blur.",
    )


def _sharpest(grey: Grey) -> float:
    """The Laplacian of the sharpest 0.5% of the pixels.

    Its variance (Pech-Pacheco et al. 2000) would call drawings with large plain areas and photographs with a soft
    background blurred.
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
            code="dark", message=f"Dark: even its lightest parts reach only {lightest / 255:.0%}. Lift its levels."
        )
    if darkest > MIN_BRIGHT_LEVEL:
        return Issue(
            code="bright",
            message=f"Washed out: even its darkest parts are at {darkest / 255:.0%} of white. Lower its levels.",
        )
    return None


def _compression(picture: DecodedImage) -> Issue | None:
    if picture.quantization:
        quality = jpeg_quality(picture.quantization)
        if quality < MIN_JPEG_QUALITY:
            return Issue(
                code="compressed",
                message=f"Strongly compressed: JPEG of quality {quality:.0f}. Its blocks and halos are learned too.",
            )
        return None
    if picture.image.size != picture.size or not (blocking := _blocking(picture.image)) > MAX_BLOCKING:
        return None
    return Issue(
        code="compressed",
        message=f"It was a strongly compressed JPEG once: steps at the edges of its 8 x 8 blocks are {blocking:.0f} "
        "times those within. Find the original.",
    )


def jpeg_quality(table: tuple[int, ...]) -> float:
    """The quality (1 to 100) that the IJG's library would have used for a luminance table, from the table's sum.

    Below 20 it is called somewhat better than it is, as entries stop at 255.
    """
    scale = 100 * sum(table) / _STANDARD_TABLE
    return max(1.0, min(100.0, (200 - scale) / 2 if scale <= 100 else 5000 / scale))


def _blocking(image: Image.Image) -> float:
    """Mean step between neighbours at the edges of 8 x 8 blocks over that at other places; the lesser of both axes.

    Of the middle of the picture, 512 px at most. 0 where most neighbours are equal, as in pixel art.
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
    """Bands of one colour that end in a straight line, with letters on them or not; a margin ends nowhere straight."""
    sides: dict[str, Any] = {"top": grey, "bottom": grey[::-1], "left": grey.T, "right": grey.T[::-1]}
    bands = {name: band for name, rows in sides.items() if (band := _band(rows))}
    if not bands:
        return None
    where = " and ".join(f"{name} ({share:.0%})" for name, share in bands.items())
    opposite = {"top", "bottom"} <= bands.keys() or {"left", "right"} <= bands.keys()
    if opposite:
        return Issue(code="border", message=f"A border: {where}. It is learned as part of every picture; crop it.")
    return Issue(
        code="bar", message=f"A bar at the {where}, as watermarks and letterboxes have. Crop it, or it is learned."
    )


def _band(rows: Grey) -> float:
    """The share of the rows, from the first, that is a band; 0 if there is none."""
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
    """Whether a picture reaches to this end of its rows, or stops at the same place in nearly all of them: a frame.

    Around a drawing the band's colour goes on, here more and there less.
    """
    runs = np.argmax(~inside, axis=1)
    return bool(runs[0] <= _REACHES * inside.shape[1] or (np.abs(runs - runs[0]) <= 1).mean() > _SAME_PLACE)
