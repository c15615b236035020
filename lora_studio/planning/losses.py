"""Trends of a loss curve with error bars.

The loss of a single diffusion step says little: it depends mostly on which timesteps were sampled. A change therefore
counts only if it is significant against that noise. Losses are a list by step; None, NaN and infinities are gaps.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite, sqrt

import numpy as np
from numpy.typing import NDArray

Losses = Sequence[float | None]
MAX_WINDOWS = 20
MAX_NAN_STEPS = 5  # steps in a row without a finite loss at which a run has diverged
NAN_WINDOW = 20  # steps of which half without a finite loss mean the same
# Two-sided p = 0.003 with the 18 degrees of freedom of 20 windows, 0.005 with 11.
MIN_STANDARD_ERRORS = 3.5


@dataclass(frozen=True)
class LossChange:
    """A change of the loss over `steps` steps: from `start` to `end`, with its standard error, in units of the loss."""

    start: float
    end: float
    error: float
    steps: int

    @property
    def relative(self) -> float:
        """The change relative to `start`: -0.2 is a fall by a fifth."""
        return (self.end - self.start) / self.start

    @property
    def relative_error(self) -> float:
        """The standard error relative to `start`."""
        return self.error / self.start

    @property
    def falls(self) -> bool:
        """True if the loss fell significantly."""
        return self.start - self.end > MIN_STANDARD_ERRORS * self.error

    @property
    def rises(self) -> bool:
        """True if the loss rose significantly."""
        return self.end - self.start > MIN_STANDARD_ERRORS * self.error


def has_diverged(losses: Losses) -> bool:
    """Return whether none of the last 5 steps, or at most half of the last 20, has a finite loss."""
    finite = [loss is not None and isfinite(loss) for loss in losses[-NAN_WINDOW:]]
    if len(finite) >= MAX_NAN_STEPS and not any(finite[-MAX_NAN_STEPS:]):
        return True
    return len(finite) == NAN_WINDOW and sum(finite) <= NAN_WINDOW // 2


def smooth(losses: Losses, half_life: float | None = None) -> list[float | None]:
    """Return the bias-corrected exponential average (Kingma and Ba 2015, section 3); gaps repeat the last value.

    `half_life` is in steps; the default is 1/25 of the curve, at least 10.
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
    """Return the finite losses, with spikes clipped to Tukey's outer fence, Q3 + 3 (Q3 - Q1), of their window."""
    values = np.array([loss for loss in losses if loss is not None and isfinite(loss)], dtype=np.float64)
    for window in np.array_split(values, max(1, min(MAX_WINDOWS, len(values) // 10))):  # views, clipped in place
        if len(window) >= 8:
            lower, upper = np.quantile(window, (0.25, 0.75))
            np.minimum(window, upper + 3 * (upper - lower), out=window)
    return values


def fit_trend(losses: Losses) -> LossChange:
    """Fit a straight line to the means of up to 20 windows of equal length, and return its change with standard error.

    Errors of window means are nearly normal and, unlike those of single steps, nearly independent, so the scatter
    about the line gives its standard error (the method of batch means). Needs 8 finite losses.
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
    """Return the change from the mean of the first tenth, where most is learned, to that of the last half.

    Needs 20 finite losses.
    """
    values = finite_losses(losses)
    first, last = values[: max(2, len(values) // 10)], values[len(values) // 2 :]
    error = sqrt(float(first.var(ddof=1)) / len(first) + float(last.var(ddof=1)) / len(last))
    return LossChange(max(float(first.mean()), 1e-12), float(last.mean()), error, len(values))
