"""The mean loss by timestep: at which noise levels a LoRA can still improve."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise

from pydantic import BaseModel, Field

from lora_studio.events import TimestepsEvent

BINS = 10


class TimestepLosses(BaseModel):
    """Accumulates the losses of an epoch's samples in `BINS` equal bins over the base's `total` timesteps."""

    total: int = 1000
    sums: list[float] = Field(default_factory=lambda: [0.0] * BINS)
    counts: list[int] = Field(default_factory=lambda: [0] * BINS)

    def bins_of(self, timesteps: Iterable[int]) -> list[int]:
        """Return the bin of each timestep, counted from 0."""
        return [timestep * BINS // self.total for timestep in timesteps]

    def add(self, timesteps: Iterable[int], losses: Iterable[float]) -> None:
        """Add samples: their timesteps and weighted losses."""
        for index, loss in zip(self.bins_of(timesteps), losses, strict=True):
            self.sums[index] += loss
            self.counts[index] += 1

    def event(self, epoch: int) -> TimestepsEvent:
        """Return the values of a `timesteps` event: `bins` as [first, end), mean `loss` (None if empty), `count`."""
        edges = [-(-index * self.total // BINS) for index in range(BINS + 1)]
        means = [total / count if count else None for total, count in zip(self.sums, self.counts, strict=True)]
        return TimestepsEvent(epoch=epoch, bins=list(pairwise(edges)), loss=means, count=list(self.counts))

    def clear(self) -> None:
        """Empty the bins, for the next epoch."""
        self.sums, self.counts = [0.0] * BINS, [0] * BINS
