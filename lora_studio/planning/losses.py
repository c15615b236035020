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

from lora_studio.planning.verdict_limits import STANDARD_ERRORS

Losses = Sequence[float | None]
MAX_WINDOWS = 20
MAX_NAN_STEPS = 5  # steps in a row without a finite loss at which a run has diverged
NAN_WINDOW = 20  # steps of which half without a finite loss mean the same


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
    def margin(self) -> float:
        """The range of the relative change to either side, within which the change may be noise alone."""
        return STANDARD_ERRORS * self.relative_error

    @property
    def falls(self) -> bool:
        """True if the loss fell significantly."""
        return self.start - self.end > STANDARD_ERRORS * self.error

    @property
    def rises(self) -> bool:
        """True if the loss rose significantly."""
        return self.end - self.start > STANDARD_ERRORS * self.error


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
    """Fit a straight line to the losses by least squares, and return its change with standard error.

    The noise of a step is taken from the differences of successive steps (von Neumann 1941), which a trend hardly
    changes: there are many, where the scatter of a few windows is uncertain itself. Needs 8 finite losses.
    """
    values = finite_losses(losses)
    count = len(values)
    places = np.arange(count) - (count - 1) / 2
    spread = float((places**2).sum())
    slope = float((places * values).sum()) / spread
    middle, half = float(values.mean()), slope * count / 2
    return LossChange(max(middle - half, 1e-12), middle + half, step_noise(values) / sqrt(spread) * count, count)


def total_change(losses: Losses) -> LossChange:
    """Return the change from the mean of the first tenth, where most is learned, to that of the last half.

    Needs 20 finite losses.
    """
    values = finite_losses(losses)
    return _difference(values[: max(2, len(values) // 10)], values[len(values) // 2 :], len(values))


def rise_above_lowest(losses: Losses, window: int) -> tuple[LossChange, int] | None:
    """Return the change from the lowest mean of `window` successive losses to that of the last ones, and its place.

    The place is the index of the window's middle among the finite losses. None for fewer than two windows.
    """
    values = finite_losses(losses)
    if len(values) < 2 * window:
        return None
    sums = np.concatenate(([0.0], np.cumsum(values)))
    means = (sums[window : len(values) - window + 1] - sums[: len(values) - 2 * window + 1]) / window
    begin = int(np.argmin(means))
    lowest, last = values[begin : begin + window], values[-window:]
    return _difference(lowest, last, len(values) - begin - window // 2), begin + window // 2


def step_noise(values: NDArray[np.float64]) -> float:
    """Return the standard deviation of the noise of a step, from the differences of successive steps."""
    return sqrt(float((np.diff(values) ** 2).mean()) / 2)


def _difference(first: NDArray[np.float64], last: NDArray[np.float64], steps: int) -> LossChange:
    """Return the change from the mean of some steps to that of others."""
    error = sqrt(step_noise(first) ** 2 / len(first) + step_noise(last) ** 2 / len(last))
    return LossChange(max(float(first.mean()), 1e-12), float(last.mean()), error, steps)
