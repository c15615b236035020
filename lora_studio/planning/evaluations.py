"""How many evaluations of the base and of the fixed-noise loss a run can afford."""

from __future__ import annotations

from typing import NamedTuple

# Of the run's compute: more would be felt, and the curve of 100 evaluations is as smooth as is needed.
MAX_SHARE = 0.03
FORWARDS_PER_SAMPLE = 3  # a backward pass takes as long as two forward passes
# For the base's loss by timestep: fewer leave gaps, more change the curve by less than the noise of a sample.
MIN_BASE_POINTS, MAX_BASE_POINTS = 24, 96
# For one fixed-noise loss; below, the chosen images matter more than the LoRA.
MIN_POINTS, MAX_POINTS = 6, 48
MIN_TIMES = 4  # after which it is computed even in the shortest run
WANTED_TIMES = 10  # fewer name a plateau or a rise too late


class Evaluations(NamedTuple):
    """The points of the base's curve and of one fixed-noise loss.

    That is computed before the first step, after every `every`-th epoch, and `parts` times per epoch where they are
    long.
    """

    base_points: int
    points: int
    every: int = 1
    parts: int = 1

    def share(self, samples: int, epochs: int) -> float:
        """Return the share of the compute of a run of this many samples (steps times batch) and epochs."""
        times = 1 + -(-epochs // self.every) * self.parts
        return (self.base_points + times * self.points) / (FORWARDS_PER_SAMPLE * samples)

    def due_after_epoch(self, epoch: int, epochs: int) -> bool:
        """Return True if the fixed-noise loss is computed after an epoch, counted from 1; always after the last."""
        return epoch % self.every == 0 or epoch == epochs

    def due_within_epoch(self, step: int, steps_per_epoch: int) -> bool:
        """Return True if it is computed after a step that does not end an epoch, counted from 1 over the run."""
        place = step % steps_per_epoch
        return place > 0 and place * self.parts // steps_per_epoch > (place - 1) * self.parts // steps_per_epoch


def plan_evaluations(samples: int, epochs: int) -> Evaluations:
    """Return the evaluations of a run of this many samples and epochs: at most `MAX_SHARE` of its compute.

    In very short runs the minimum is more than that share, but less than loading the base takes.
    """
    budget = int(MAX_SHARE * FORWARDS_PER_SAMPLE * samples)
    base_points = min(max(budget // 4, MIN_BASE_POINTS), MAX_BASE_POINTS)
    left = max(budget - base_points, (1 + min(epochs, MIN_TIMES)) * MIN_POINTS)
    times = left // MIN_POINTS - 1  # that the run can afford
    every = -(-epochs // times)
    parts = max(1, min(times, WANTED_TIMES + epochs - 1) // epochs)
    points = left // (1 + -(-epochs // every) * parts)
    return Evaluations(base_points, min(max(points, MIN_POINTS), MAX_POINTS), every, parts)
