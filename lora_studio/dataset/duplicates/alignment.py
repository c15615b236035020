"""Whether two small pictures show the same thing: alignment, then the largest local difference.

Perceptual hashes are cheap and vague: in a set of drawings of one style unlike pictures can be as close as a cropped
copy is to its original. This is the second look at the pairs that the hashes proposed. It finds the window of one
picture that the other shows (a crop moves it a little), adjusts brightness and contrast, and asks for the largest
difference in any small place: a copy differs little everywhere, another drawing differs much somewhere.

All functions work on batches of P pairs. Windows are [P, 4]: (left, right, top, bottom) of `other` in units of the
sides of `base`; (0, 1, 0, 1) is the whole.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating[Any]]

LARGEST_CUT = 0.25  # of a side; more is another picture
GAINS = (0.4, 2.5)  # contrast that still counts as a copy

# Where the search starts: the whole, crops of 3, 6 and 10 percent a side, and their inverses.
_ZOOMS = (0.0, 0.03, 0.06, 0.1, -0.03, -0.065, -0.12)
_COARSE_STEPS = 6
_FINE_STEPS = 5
_LONGEST_STEP = 0.05
_HOPELESS = 0.3  # of the variance; copies are below 0.1 after the coarse step
_FAR = 0.45  # of the contrast, by the plain fit; copies are below 0.2, clipped ones too
_SPOILED = 0.03  # of the contrast
_LEAST_CONTRAST = 0.15  # of black to white; compression noise of a picture with less would count as a difference


@dataclass(frozen=True)
class Alignment:
    """For each of P pairs: the window [P, 4], the factor of contrast from `base` to `other`, and the difference left.

    `worst` is the largest local difference after adjustment, in units of the pictures' own contrast; 1 or more for
    pairs that cannot be brought together at all.
    """

    window: Floats
    gain: Floats
    worst: Floats


def align_pairs(base: NDArray[np.uint8], other: NDArray[np.uint8], start: NDArray[np.float32]) -> Alignment:
    """`align` for pictures from 0 to 255, which are smaller to send to another process."""
    return align(base.astype(np.float32) / 255, other.astype(np.float32) / 255, start)


def align(base: Floats, other: Floats, start: Floats) -> Alignment:
    """Align pairs of pictures, `base` and `other` [P, n, n, 3] from 0 to 1; `start` [P, 4] is one more window to try.

    Gauss-Newton on the window, coarse then fine, with gain and offset fitted in each step (Lucas and Kanade 1981; a
    window is separable, so that warping is a matrix product for each axis). Pairs that the coarse step leaves far apart
    are given up there.
    """
    grey_base, grey_other = base.mean(axis=3), other.mean(axis=3)
    coarse = _blur(_halve(grey_base)), _blur(_halve(grey_other))
    window = _best_start(*coarse, start)
    window = _descend(*coarse, window, _COARSE_STEPS)
    gain = np.ones(len(base), np.float32)
    worst = np.ones(len(base), np.float32)
    hopeful = np.flatnonzero(_unlikeness(*coarse, window) < _HOPELESS)
    if len(hopeful):
        fine = _descend(_blur(grey_base[hopeful]), _blur(grey_other[hopeful]), window[hopeful], _FINE_STEPS)
        # Clipped highlights can lead the descent astray, and most copies are not cropped: the whole is tried too.
        whole = np.tile(np.array([0, 1, 0, 1], np.float32), (len(hopeful), 1))
        near = np.minimum(*(_plainly(base[hopeful], other[hopeful], tried) for tried in (fine, whole))) < _FAR
        hopeful, fine, whole = hopeful[near], fine[near], whole[near]
    if len(hopeful):
        base, other = base[hopeful], other[hopeful]
        (gain_fine, worst_fine), (gain_whole, worst_whole) = _judge(base, other, fine), _judge(base, other, whole)
        better = worst_whole <= worst_fine
        window[hopeful] = np.where(better[:, None], whole, fine)
        gain[hopeful] = np.where(better, gain_whole, gain_fine)
        worst[hopeful] = np.minimum(worst_whole, worst_fine)
    return Alignment(window, gain, worst)


def _best_start(base: Floats, other: Floats, start: Floats) -> Floats:
    zooms = [np.tile(np.array([zoom, 1 - zoom] * 2, np.float32), (len(base), 1)) for zoom in _ZOOMS]
    windows = np.stack([*zooms, start])  # [starts, P, 4]
    errors = [_unlikeness(base, other, window) for window in windows]
    best: Floats = windows[np.argmin(errors, axis=0), np.arange(len(base))]
    return best


def _unlikeness(base: Floats, other: Floats, window: Floats) -> Floats:
    """Share of the variance of `other` that `base` does not explain: 0 for a copy, 1 for nothing in common."""
    rows, columns, weight = _sampling(window, base.shape[1])
    warped = rows @ base @ columns.transpose(0, 2, 1)
    gain, offset = _fit(warped, other, weight)
    error = (gain[:, None, None] * warped + offset[:, None, None] - other) ** 2 * weight
    unexplained: Floats = error.mean(axis=(1, 2)) / other.var(axis=(1, 2)).clip(1e-4)
    return unexplained


def _descend(base: Floats, other: Floats, window: Floats, steps: int) -> Floats:
    n = base.shape[1]
    place = ((np.arange(n) + 0.5) / n).astype(np.float32)  # of a sample within its window
    slope_x, slope_y = np.gradient(base, axis=2) * n, np.gradient(base, axis=1) * n
    lowest = np.array([-LARGEST_CUT, 1 - LARGEST_CUT] * 2, np.float32)
    for _ in range(steps):
        rows, columns, weight = _sampling(window, n)
        across = columns.transpose(0, 2, 1)
        warped = rows @ base @ across
        gain, offset = (value[:, None, None] for value in _fit(warped, other, weight))
        step_x, step_y = gain * (rows @ slope_x @ across), gain * (rows @ slope_y @ across)
        # [P, n * n, 6]: derivatives by left, right, top, bottom, gain, offset
        parts = (
            step_x * (1 - place),
            step_x * place,
            step_y * (1 - place)[:, None],
            step_y * place[:, None],
            warped,
            np.ones_like(warped),
        )
        jacobian = np.stack([(part * weight).reshape(len(base), -1) for part in parts], axis=2)
        error = ((gain * warped + offset - other) * weight).reshape(len(base), -1, 1)
        normal = jacobian.transpose(0, 2, 1) @ jacobian
        diagonal = np.arange(6)
        normal[:, diagonal, diagonal] = normal[:, diagonal, diagonal] * 1.001 + 1e-3
        step = np.linalg.solve(normal, jacobian.transpose(0, 2, 1) @ error)[:, :4, 0]
        window = np.clip(window - np.clip(step, -_LONGEST_STEP, _LONGEST_STEP), lowest, lowest + 2 * LARGEST_CUT)
    return window


def _judge(base: Floats, other: Floats, window: Floats) -> tuple[Floats, Floats]:
    """Gain and largest local difference, the smaller one of both directions: a copy may have lost highlights."""
    gain, forward = _difference(base, other, window)
    _, backward = _difference(other, base, _inverse(window))
    return gain, np.minimum(forward, backward)


def _plainly(base: Floats, other: Floats, window: Floats) -> Floats:
    """The largest local difference of the grey pictures by the plain fit: a sixth of the work of `_judge`."""
    rows, columns, weight = _sampling(window, base.shape[1])
    target = other.mean(axis=3)
    warped = rows @ base.mean(axis=3) @ columns.transpose(0, 2, 1)
    gain, offset = _fit(warped, target, weight)
    adjusted = (gain[:, None, None] * warped + offset[:, None, None]).clip(0, 1)
    contrast = np.ptp(_blur(target), axis=(1, 2)).clip(_LEAST_CONTRAST)
    largest: Floats = np.abs(_blur((adjusted - target) * weight)).max(axis=(1, 2)) / contrast
    return largest


def _difference(base: Floats, other: Floats, window: Floats) -> tuple[Floats, Floats]:
    rows, columns, weight = _sampling(window, base.shape[1])
    target = other.transpose(0, 3, 1, 2)  # [P, 3, n, n]
    warped = rows[:, None] @ base.transpose(0, 3, 1, 2) @ columns.transpose(0, 2, 1)[:, None]
    weight = np.broadcast_to(weight[:, None], warped.shape)
    contrast = np.ptp(_blur(target).mean(axis=1), axis=(1, 2)).clip(_LEAST_CONTRAST)
    best_gain, best = np.ones(len(base), np.float32), np.full(len(base), np.inf, np.float32)
    unclipped = weight * ((target > 0.02) & (target < 0.98))
    # A brightened picture is clipped at white: fit with all, without what is clipped, and a plain factor.
    for gain, offset in (
        _fit(warped, target, weight),
        _fit(warped, target, unclipped),
        _factor(warped, target, unclipped),
    ):
        adjusted = (gain[:, None, None, None] * warped + offset[:, None, None, None]).clip(0, 1)
        worst = np.abs(_blur((adjusted - target) * weight)).max(axis=(1, 2, 3)) / contrast
        worst = np.where((gain < GAINS[0]) | (gain > GAINS[1]), np.float32(1), worst)
        # The plain fit tells the gain best, unless clipping spoils it.
        best_gain, best = np.where(worst < best - _SPOILED, gain, best_gain), np.minimum(worst, best)
    return best_gain, best


def _factor(warped: Floats, target: Floats, weight: Floats) -> tuple[Floats, Floats]:
    """The median ratio of `target` to `warped` where both are well above black, and an offset of 0."""
    known = (weight > 0) & (warped > 0.1) & (target > 0.1)
    ratio = np.where(known, target / warped.clip(0.1), np.nan).reshape(len(warped), -1)
    ratio[:, 0] = np.where(known.any(axis=(1, 2, 3)), ratio[:, 0], 1)
    gain = np.nanmedian(ratio, axis=1).astype(np.float32)
    return gain, np.zeros_like(gain)


def _inverse(window: Floats) -> Floats:
    """The window of `base` in units of `other`."""
    low, high = window[:, 0::2], window[:, 1::2]  # [P, 2]
    length = (high - low).clip(1e-3)
    result = np.empty_like(window)
    result[:, 0::2], result[:, 1::2] = -low / length, (1 - low) / length
    return result


def _fit(warped: Floats, other: Floats, weight: Floats) -> tuple[Floats, Floats]:
    """Weighted least squares of `other = gain * warped + offset`, for each pair; gain 1 where `warped` is flat."""
    axes = tuple(range(1, warped.ndim))
    keep = (slice(None), *(None,) * len(axes))
    total = weight.sum(axis=axes).clip(1)
    mean_a, mean_b = (warped * weight).sum(axis=axes) / total, (other * weight).sum(axis=axes) / total
    centred = (warped - mean_a[keep]) * weight
    variance = (centred * centred).sum(axis=axes) / total
    gain = np.where(
        variance > 1e-5, (centred * (other - mean_b[keep])).sum(axis=axes) / total / variance.clip(1e-5), 1.0
    ).astype(np.float32)
    return gain, mean_b - gain * mean_a


def _sampling(window: Floats, n: int) -> tuple[Floats, Floats, Floats]:
    """Interpolation matrices [P, n, n] for rows and columns, and the weight [P, n, n] of samples inside `base`."""
    place = ((np.arange(n) + 0.5) / n).astype(np.float32)
    x = window[:, :1] + (window[:, 1:2] - window[:, :1]) * place
    y = window[:, 2:3] + (window[:, 3:] - window[:, 2:3]) * place
    inside = ((y >= 0) & (y <= 1))[:, :, None] & ((x >= 0) & (x <= 1))[:, None, :]
    return _interpolation(y), _interpolation(x), inside.astype(np.float32)


def _interpolation(positions: Floats) -> Floats:
    """Linear interpolation at `positions` [P, n] (0 to 1) as matrices [P, n, n]."""
    n = positions.shape[1]
    pixel = (positions * n - 0.5).clip(0, n - 1)
    matrices: Floats = (1 - np.abs(pixel[:, :, None] - np.arange(n, dtype=np.float32))).clip(0)
    return matrices


def _halve(image: Floats) -> Floats:
    return (image[:, ::2, ::2] + image[:, 1::2, ::2] + image[:, ::2, 1::2] + image[:, 1::2, 1::2]) / 4


def _blur(image: Floats) -> Floats:
    """Binomial 3 x 3 blur of the last two axes."""
    padded = np.pad(image, [(0, 0)] * (image.ndim - 2) + [(1, 1), (1, 1)], mode="edge")
    rows = (padded[..., :-2, :] + 2 * padded[..., 1:-1, :] + padded[..., 2:, :]) / 4
    blurred: Floats = (rows[..., :-2] + 2 * rows[..., 1:-1] + rows[..., 2:]) / 4
    return blurred
