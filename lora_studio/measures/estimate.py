"""A figure with its uncertainty over prompts and seeds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import isfinite, sqrt
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Indices = NDArray[np.intp]


class Estimate(NamedTuple):
    """A value with its standard error; the error is None where it cannot be estimated, as from a single picture."""

    value: float
    error: float | None = None


def jackknife(statistic: Callable[..., float], counts: Sequence[int]) -> Estimate | None:
    """Return a statistic of pictures with its standard error; None if it is not finite.

    `statistic` takes an array of indices per axis (prompts, seeds), of which `counts` has the lengths. The error is
    that of the delete-one jackknife (Efron and Tibshirani 1993, An Introduction to the Bootstrap, chapter 11): along
    each axis that has two values or more, every value is left out in turn, and var = (n - 1) / n * sum((t_i - mean)^2).
    The variances of the axes are added, which counts the noise of single pictures twice: the error is rather too
    large than too small. An axis counts only if the statistic is finite without any of its values.
    """
    everything = [np.arange(count) for count in counts]
    value = float(statistic(*everything))
    if not isfinite(value):
        return None
    variances = []
    for axis, count in enumerate(counts):
        if count < 2:
            continue
        left_out = [
            float(statistic(*(np.delete(all_, number) if at == axis else all_ for at, all_ in enumerate(everything))))
            for number in range(count)
        ]
        if all(map(isfinite, left_out)):
            variances.append((count - 1) / count * float(((np.array(left_out) - np.mean(left_out)) ** 2).sum()))
    return Estimate(value, sqrt(sum(variances)) if variances else None)
