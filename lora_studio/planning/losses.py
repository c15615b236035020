"""Reading a loss curve with honest error bars.

The loss of a single step of diffusion training says little: it depends mostly on which timesteps were drawn. So nothing
here trusts a difference that chance alone could make. Losses are a list by step; None, NaN and infinities are gaps.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite, sqrt

import numpy as np
from numpy.typing import NDArray

Losses = Sequence[float | None]
MAX_WINDOWS = 20
# Two-sided p = 0.003 with the 18 degrees of freedom of 20 windows, 0.005 with 11.
MIN_STANDARD_ERRORS = 3.5


@dataclass(frozen=True)
class LossChange:
    """How a loss changed over `steps` steps: `start` and `end` by the trend, and its standard error, all absolute."""

    start: float
    end: float
    error: float
    steps: int

    @property
    def relative(self) -> float:
        """The change as a share of where it started: -0.2 is a fall by a fifth."""
        return (self.end - self.start) / self.start

    @property
    def relative_error(self) -> float:
        """The standard error as a share of where it started."""
        return self.error / self.start

    @property
    def falls(self) -> bool:
        """Whether the fall is beyond chance."""
        return self.start - self.end > MIN_STANDARD_ERRORS * self.error

    @property
    def rises(self) -> bool:
        """Whether the rise is beyond chance."""
        return self.end - self.start > MIN_STANDARD_ERRORS * self.error


def smooth(losses: Losses, half_life: float | None = None) -> list[float | None]:
    """An exponential average, corrected for its start (Kingma and Ba 2015, section 3); gaps keep the value before.

    `half_life` is in steps; by default a twenty-fifth of the curve, at least ten.
    """
    half_life = half_life or max(10.0, len(losses) / 25)
    keep = 0.5 ** (1 / half_life)
    total = weight = 0.0
    smoothed: list[float | None] = []
    for loss in losses:
        if loss is not None and isfinite(loss):
            total = keep * total + (1 - keep) * loss
            weight = keep * weight + (1 - keep)
        smoothed.append(total / weight if weight else None)
    return smoothed


def finite_losses(losses: Losses) -> NDArray[np.float64]:
    """The losses that are numbers, with spikes lowered to Tukey's outer fence, Q3 + 3 (Q3 - Q1), of their window."""
    values = np.array([loss for loss in losses if loss is not None and isfinite(loss)], dtype=np.float64)
    for window in np.array_split(values, max(1, min(MAX_WINDOWS, len(values) // 10))):  # views: changed in place
        if len(window) >= 8:
            lower, upper = np.quantile(window, (0.25, 0.75))
            np.minimum(window, upper + 3 * (upper - lower), out=window)
    return values


def fit_trend(losses: Losses) -> LossChange:
    """The straight line through the curve, fitted to the means of up to 20 windows of equal length.

    Means of windows have errors that are nearly normal and, unlike single steps, nearly independent, so that the
    scatter about the line gives its standard error (the method of batch means). Needs 8 finite losses.
    """
    values = finite_losses(losses)
    windows = min(MAX_WINDOWS, len(values) // 2)
    length = len(values) // windows
    means = values[len(values) - windows * length :].reshape(windows, length).mean(axis=1)
    places = np.arange(windows) - (windows - 1) / 2
    spread = float((places**2).sum())
    slope = float((places * means).sum()) / spread
    scatter = means - means.mean() - slope * places
    error = sqrt(float((scatter**2).sum()) / (windows - 2) / spread)
    half = slope * windows / 2
    middle = float(means.mean())
    return LossChange(max(middle - half, 1e-12), middle + half, error * windows, len(values))


def total_change(losses: Losses) -> LossChange:
    """From the mean of the curve's first tenth, where most is learned, to that of its last half. Needs 20 losses."""
    values = finite_losses(losses)
    first, last = values[: max(2, len(values) // 10)], values[len(values) // 2 :]
    error = sqrt(float(first.var(ddof=1)) / len(first) + float(last.var(ddof=1)) / len(last))
    return LossChange(max(float(first.mean()), 1e-12), float(last.mean()), error, len(values))
