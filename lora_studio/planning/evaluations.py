"""How many evaluations of the base and of the fixed-noise loss a run can afford."""

from __future__ import annotations

from typing import NamedTuple

# Of the run's compute: more would be felt, and the curve of 100 evaluations is as smooth as is needed.
MAX_SHARE = 0.03
FORWARDS_PER_SAMPLE = 3  # a backward pass takes as long as two forward passes
# For the base's loss by timestep: fewer leave gaps, more change the curve by less than the noise of a sample.
MIN_BASE_POINTS, MAX_BASE_POINTS = 24, 96
# For one fixed-noise loss; below, the chosen images matter more than the LoRA.
MIN_POINTS, MAX_POINTS = 8, 48
MIN_EPOCHS = 4  # after which it is computed even in the shortest run


class Evaluations(NamedTuple):
    """The points of the base's curve and of one fixed-noise loss, which is computed every `every` epochs."""

    base_points: int
    points: int
    every: int

    def share(self, samples: int, epochs: int) -> float:
        """Return the share of the compute of a run of this many samples (steps times batch) and epochs."""
        measurements = 1 + -(-epochs // self.every)
        return (self.base_points + measurements * self.points) / (FORWARDS_PER_SAMPLE * samples)

    def due(self, epoch: int, epochs: int) -> bool:
        """Return True if the fixed-noise loss is computed after an epoch, counted from 1; always after the last."""
        return epoch % self.every == 0 or epoch == epochs


def plan_evaluations(samples: int, epochs: int) -> Evaluations:
    """Return the evaluations of a run of this many samples and epochs: at most `MAX_SHARE` of its compute.

    In very short runs the minimum is more than that share, but less than loading the base takes.
    """
    budget = int(MAX_SHARE * FORWARDS_PER_SAMPLE * samples)
    base_points = min(max(budget // 4, MIN_BASE_POINTS), MAX_BASE_POINTS)
    left = max(budget - base_points, (1 + min(epochs, MIN_EPOCHS)) * MIN_POINTS)
    points = min(max(left // (epochs + 1), MIN_POINTS), MAX_POINTS)
    every = -(-epochs // (left // points - 1))
    return Evaluations(base_points, points, every)
