"""Batched Lucas-Kanade registration of image pairs, and the largest local difference that remains.

Perceptual hashes are cheap but imprecise: in a set of drawings of one style, different images can be as close as a
cropped copy is to its original. This module verifies the pairs that the hashes propose. It estimates the window of one
image that the other shows (cropping moves it a little) together with gain and offset, and then takes the largest
difference of any small neighbourhood: duplicates differ little everywhere, other images differ much somewhere.

The registration is the forwards-additive algorithm of Lucas and Kanade (1981), as named by Baker and Matthews (2004,
"Lucas-Kanade 20 years on"): Gauss-Newton on the sum of squared differences, with the gradients of the warped image
evaluated again in each iteration. The warp is axis-aligned scaling and translation.

All functions work on batches of P pairs. Windows are [P, 4]: (left, right, top, bottom) of `other` in units of the
sides of `base`; (0, 1, 0, 1) is the whole image.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating[Any]]

MAX_CROP = 0.25  # of a side; a window that differs more is another image
GAIN_RANGE = (0.4, 2.5)  # range of the change in contrast that still counts as a duplicate

# Initial windows: the whole image, crops of 3, 6 and 10 percent per side, and their inverses.
_INITIAL_ZOOMS = (0.0, 0.03, 0.06, 0.1, -0.03, -0.065, -0.12)
_COARSE_STEPS = 6
_FINE_STEPS = 5
_MAX_STEP = 0.05
_MAX_COARSE_ERROR = 0.3  # of the variance; duplicates are below 0.1 after the coarse step
_MAX_GREY_RESIDUAL = 0.45  # of the contrast; duplicates are below 0.2, also with clipped highlights
_CLIPPING_MARGIN = 0.03  # of the contrast; another fit of gain and offset must be better by this much to set the gain
_MIN_CONTRAST = 0.15  # of black to white; below it, compression noise would count as a difference


@dataclass(frozen=True)
class Alignment:
    """For each of P pairs: the window [P, 4], the gain (factor of contrast) from `base` to `other`, and the residual.

    `residual` is the largest local difference after registration, in units of the contrast of the images; 1 or more for
    pairs that cannot be aligned.
    """

    window: Floats
    gain: Floats
    residual: Floats


def align_uint8(base: NDArray[np.uint8], other: NDArray[np.uint8], initial: NDArray[np.float32]) -> Alignment:
    """Align images with values from 0 to 255, which are smaller to send to another process than floats."""
    return align(base.astype(np.float32) / 255, other.astype(np.float32) / 255, initial)


def align(base: Floats, other: Floats, initial: Floats) -> Alignment:
    """Align pairs of images, `base` and `other` [P, n, n, 3] from 0 to 1; `initial` [P, 4] is one more initial window.

    Lucas-Kanade, coarse to fine, with gain and offset as further parameters. The warp is separable, so that it is one
    matrix product per axis. Pairs with a large error after the coarse level are not refined.
    """
    grey_base, grey_other = base.mean(axis=3), other.mean(axis=3)
    coarse = _blur(_halve(grey_base)), _blur(_halve(grey_other))
    window = _best_initial_window(*coarse, initial)
    window = _gauss_newton(*coarse, window, _COARSE_STEPS)
    gain = np.ones(len(base), np.float32)
    residual = np.ones(len(base), np.float32)
    candidates = np.flatnonzero(_unexplained_variance(*coarse, window) < _MAX_COARSE_ERROR)
    if len(candidates):
        fine = _gauss_newton(
            _blur(grey_base[candidates]), _blur(grey_other[candidates]), window[candidates], _FINE_STEPS
        )
        # Clipped highlights can mislead the descent, and most duplicates are not cropped: try the whole image too.
        whole = np.tile(np.array([0, 1, 0, 1], np.float32), (len(candidates), 1))
        near = (
            np.minimum(*(_grey_residual(base[candidates], other[candidates], tried) for tried in (fine, whole)))
            < _MAX_GREY_RESIDUAL
        )
        candidates, fine, whole = candidates[near], fine[near], whole[near]
    if len(candidates):
        base, other = base[candidates], other[candidates]
        (gain_fine, residual_fine), (gain_whole, residual_whole) = (
            _symmetric_residual(base, other, fine),
            _symmetric_residual(base, other, whole),
        )
        better = residual_whole <= residual_fine
        window[candidates] = np.where(better[:, None], whole, fine)
        gain[candidates] = np.where(better, gain_whole, gain_fine)
        residual[candidates] = np.minimum(residual_whole, residual_fine)
    return Alignment(window, gain, residual)


def _best_initial_window(base: Floats, other: Floats, initial: Floats) -> Floats:
    """Return, per pair, the initial window with the smallest error."""
    zooms = [np.tile(np.array([zoom, 1 - zoom] * 2, np.float32), (len(base), 1)) for zoom in _INITIAL_ZOOMS]
    windows = np.stack([*zooms, initial])  # [starts, P, 4]
    errors = [_unexplained_variance(base, other, window) for window in windows]
    best: Floats = windows[np.argmin(errors, axis=0), np.arange(len(base))]
    return best


def _unexplained_variance(base: Floats, other: Floats, window: Floats) -> Floats:
    """Return the share of the variance of `other` that `base` does not explain: 0 for a duplicate, 1 for unrelated."""
    rows, columns, weight = _sampling_matrices(window, base.shape[1])
    warped = rows @ base @ columns.transpose(0, 2, 1)
    gain, offset = _fit_gain_and_offset(warped, other, weight)
    error = (gain[:, None, None] * warped + offset[:, None, None] - other) ** 2 * weight
    unexplained: Floats = error.mean(axis=(1, 2)) / other.var(axis=(1, 2)).clip(1e-4)
    return unexplained


def _gauss_newton(base: Floats, other: Floats, window: Floats, steps: int) -> Floats:
    """Refine the windows of grey images [P, n, n] by damped Gauss-Newton steps on window, gain and offset."""
    n = base.shape[1]
    position = ((np.arange(n) + 0.5) / n).astype(np.float32)  # of each sample within the window
    gradient_x, gradient_y = np.gradient(base, axis=2) * n, np.gradient(base, axis=1) * n
    lowest = np.array([-MAX_CROP, 1 - MAX_CROP] * 2, np.float32)
    for _ in range(steps):
        rows, columns, weight = _sampling_matrices(window, n)
        across = columns.transpose(0, 2, 1)
        warped = rows @ base @ across
        gain, offset = (value[:, None, None] for value in _fit_gain_and_offset(warped, other, weight))
        step_x, step_y = gain * (rows @ gradient_x @ across), gain * (rows @ gradient_y @ across)
        # [P, n * n, 6]: derivatives with respect to left, right, top, bottom, gain, offset
        parts = (
            step_x * (1 - position),
            step_x * position,
            step_y * (1 - position)[:, None],
            step_y * position[:, None],
            warped,
            np.ones_like(warped),
        )
        jacobian = np.stack([(part * weight).reshape(len(base), -1) for part in parts], axis=2)
        error = ((gain * warped + offset - other) * weight).reshape(len(base), -1, 1)
        normal = jacobian.transpose(0, 2, 1) @ jacobian
        diagonal = np.arange(6)
        normal[:, diagonal, diagonal] = normal[:, diagonal, diagonal] * 1.001 + 1e-3
        step = np.linalg.solve(normal, jacobian.transpose(0, 2, 1) @ error)[:, :4, 0]
        window = np.clip(window - np.clip(step, -_MAX_STEP, _MAX_STEP), lowest, lowest + 2 * MAX_CROP)
    return window


def _symmetric_residual(base: Floats, other: Floats, window: Floats) -> tuple[Floats, Floats]:
    """Return the gain and the smaller residual of both directions: one image may have lost its highlights."""
    gain, forward = _colour_residual(base, other, window)
    _, backward = _colour_residual(other, base, _inverse_window(window))
    return gain, np.minimum(forward, backward)


def _grey_residual(base: Floats, other: Floats, window: Floats) -> Floats:
    """Return the largest local difference of the grey images; a sixth of the work of `_symmetric_residual`."""
    rows, columns, weight = _sampling_matrices(window, base.shape[1])
    target = other.mean(axis=3)
    warped = rows @ base.mean(axis=3) @ columns.transpose(0, 2, 1)
    gain, offset = _fit_gain_and_offset(warped, target, weight)
    adjusted = (gain[:, None, None] * warped + offset[:, None, None]).clip(0, 1)
    contrast = np.ptp(_blur(target), axis=(1, 2)).clip(_MIN_CONTRAST)
    largest: Floats = np.abs(_blur((adjusted - target) * weight)).max(axis=(1, 2)) / contrast
    return largest


def _colour_residual(base: Floats, other: Floats, window: Floats) -> tuple[Floats, Floats]:
    """Return the gain and the largest local difference in any channel, for the best of three photometric fits."""
    rows, columns, weight = _sampling_matrices(window, base.shape[1])
    target = other.transpose(0, 3, 1, 2)  # [P, 3, n, n]
    warped = rows[:, None] @ base.transpose(0, 3, 1, 2) @ columns.transpose(0, 2, 1)[:, None]
    weight = np.broadcast_to(weight[:, None], warped.shape)
    contrast = np.ptp(_blur(target).mean(axis=1), axis=(1, 2)).clip(_MIN_CONTRAST)
    best_gain, best = np.ones(len(base), np.float32), np.full(len(base), np.inf, np.float32)
    unclipped = weight * ((target > 0.02) & (target < 0.98))
    # A brightened image is clipped at white: fit all pixels, only unclipped ones, and a gain without offset.
    for gain, offset in (
        _fit_gain_and_offset(warped, target, weight),
        _fit_gain_and_offset(warped, target, unclipped),
        _fit_gain_only(warped, target, unclipped),
    ):
        adjusted = (gain[:, None, None, None] * warped + offset[:, None, None, None]).clip(0, 1)
        residual = np.abs(_blur((adjusted - target) * weight)).max(axis=(1, 2, 3)) / contrast
        residual = np.where((gain < GAIN_RANGE[0]) | (gain > GAIN_RANGE[1]), np.float32(1), residual)
        # The fit of all pixels estimates the gain best, unless clipping spoils it.
        best_gain, best = np.where(residual < best - _CLIPPING_MARGIN, gain, best_gain), np.minimum(residual, best)
    return best_gain, best


def _fit_gain_only(warped: Floats, target: Floats, weight: Floats) -> tuple[Floats, Floats]:
    """Return the median ratio of `target` to `warped` where both are well above black, and an offset of 0."""
    valid = (weight > 0) & (warped > 0.1) & (target > 0.1)
    ratio = np.where(valid, target / warped.clip(0.1), np.nan).reshape(len(warped), -1)
    ratio[:, 0] = np.where(valid.any(axis=(1, 2, 3)), ratio[:, 0], 1)
    gain = np.nanmedian(ratio, axis=1).astype(np.float32)
    return gain, np.zeros_like(gain)


def _inverse_window(window: Floats) -> Floats:
    """Return the window of `base` in units of `other`."""
    low, high = window[:, 0::2], window[:, 1::2]  # [P, 2]
    length = (high - low).clip(1e-3)
    result = np.empty_like(window)
    result[:, 0::2], result[:, 1::2] = -low / length, (1 - low) / length
    return result


def _fit_gain_and_offset(warped: Floats, other: Floats, weight: Floats) -> tuple[Floats, Floats]:
    """Solve the weighted least squares `other = gain * warped + offset` per pair; gain is 1 where `warped` is flat."""
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


def _sampling_matrices(window: Floats, n: int) -> tuple[Floats, Floats, Floats]:
    """Return interpolation matrices [P, n, n] for rows and columns, and weights [P, n, n]: 1 for samples in `base`."""
    position = ((np.arange(n) + 0.5) / n).astype(np.float32)
    x = window[:, :1] + (window[:, 1:2] - window[:, :1]) * position
    y = window[:, 2:3] + (window[:, 3:] - window[:, 2:3]) * position
    inside = ((y >= 0) & (y <= 1))[:, :, None] & ((x >= 0) & (x <= 1))[:, None, :]
    return _interpolation_matrices(y), _interpolation_matrices(x), inside.astype(np.float32)


def _interpolation_matrices(positions: Floats) -> Floats:
    """Return matrices [P, n, n] that interpolate linearly at `positions` [P, n] (0 to 1)."""
    n = positions.shape[1]
    pixel = (positions * n - 0.5).clip(0, n - 1)
    matrices: Floats = (1 - np.abs(pixel[:, :, None] - np.arange(n, dtype=np.float32))).clip(0)
    return matrices


def _halve(image: Floats) -> Floats:
    """Halve both sides of images [P, n, n] by averaging 2 x 2 pixels."""
    return (image[:, ::2, ::2] + image[:, 1::2, ::2] + image[:, ::2, 1::2] + image[:, 1::2, 1::2]) / 4


def _blur(image: Floats) -> Floats:
    """Blur the last two axes with a binomial 3 x 3 kernel."""
    padded = np.pad(image, [(0, 0)] * (image.ndim - 2) + [(1, 1), (1, 1)], mode="edge")
    rows = (padded[..., :-2, :] + 2 * padded[..., 1:-1, :] + padded[..., 2:, :]) / 4
    blurred: Floats = (rows[..., :-2] + 2 * rows[..., 1:-1] + rows[..., 2:]) / 4
    return blurred
