"""The base's own loss by timestep, to which the losses of training samples are compared.

The loss of a sample depends mostly on its timestep: without noise it is some ten to a hundred times that at pure noise.
Divided by what the base's loss is at the same timestep, it says how much better the LoRA is than no LoRA.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel

KNOTS = 33
# Standard deviation of the smoothing kernel as a share of the timestep range.
BANDWIDTH = 0.06


class BaseLosses(BaseModel):
    """The base's loss at `timesteps`, log-linear between them, with the recipe's loss weights; from `evaluations`."""

    timesteps: list[int]
    losses: list[float]
    evaluations: int

    @classmethod
    def fit(
        cls, timesteps: Sequence[int], losses: Sequence[float], weight_of: Callable[[int], float]
    ) -> BaseLosses | None:
        """Fit a smooth curve to the losses of samples at timesteps with these loss weights; None if not possible.

        Local linear regression of log(loss / weight) over the timestep (Fan and Gijbels 1996, section 2.3), times the
        weight of each knot: some weights have a kink. Points whose loss or weight is 0 or not finite are left out.
        """
        pairs = [(t, loss, weight_of(t)) for t, loss in zip(timesteps, losses, strict=True)]
        points = [(t, loss / weight) for t, loss, weight in pairs if weight > 0 and 0 < loss < float("inf")]
        if len({t for t, _ in points}) < 3:
            return None
        at = np.array([t for t, _ in points], dtype=np.float64)
        knots = np.unique(np.linspace(np.min(at), np.max(at), KNOTS).round().astype(int))
        values = np.log([loss for _, loss in points])
        plain = np.exp(_local_linear(at, values, knots.astype(np.float64), BANDWIDTH * float(np.ptp(at))))
        # E[loss] = exp(E[log loss]) times a factor, that is constant if the spread is
        residuals = values - np.interp(at, knots, np.log(plain))
        plain *= float(np.exp(residuals).mean())
        found = [float(loss) * weight_of(int(t)) for t, loss in zip(knots, plain, strict=True)]
        if min(found) <= 0:
            return None
        return cls(timesteps=knots.tolist(), losses=found, evaluations=len(points))

    def expected(self, timesteps: Sequence[int]) -> NDArray[np.float64]:
        """Return the base's loss at timesteps [N]."""
        found: NDArray[np.float64] = np.exp(np.interp(timesteps, self.timesteps, np.log(self.losses)))
        return found

    def relative(self, timesteps: Sequence[int], losses: Sequence[float], factors: Sequence[float]) -> float | None:
        """Return the mean of samples' losses relative to the base's; None if no sample has a weight.

        `factors` are weights of the samples that are not those of their timesteps, like that of regularisation images.
        """
        expected = self.expected(timesteps) * np.asarray(factors)
        counted = expected > 0
        if not counted.any():
            return None
        return float((np.asarray(losses)[counted] / expected[counted]).mean())


def _local_linear(
    at: NDArray[np.float64], values: NDArray[np.float64], knots: NDArray[np.float64], bandwidth: float
) -> NDArray[np.float64]:
    """Return the local linear regression of values [N] at `at` [N], evaluated at knots [K], with a Gaussian kernel."""
    offsets = at[None, :] - knots[:, None]
    weights = np.exp(-0.5 * (offsets / bandwidth) ** 2)
    s1, s2 = (np.sum(weights * offsets**power, axis=1) for power in (1, 2))
    inner = weights * (s2[:, None] - offsets * s1[:, None])
    found: NDArray[np.float64] = (inner * values).sum(1) / inner.sum(1)
    return found
