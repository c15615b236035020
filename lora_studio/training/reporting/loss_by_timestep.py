"""The mean loss by timestep: at which noise levels a LoRA can still improve."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise
from typing import Any

from lora_studio.events import TimestepsEvent

BINS = 10


class TimestepLosses:
    """Accumulates the losses of an epoch's samples in bins of timesteps."""

    def __init__(self, total: int) -> None:
        """Begin with empty bins over the base's `total` timesteps."""
        self._total = total
        self._sums = [0.0] * BINS
        self._counts = [0] * BINS

    def add(self, timesteps: Iterable[int], losses: Iterable[float]) -> None:
        """Add samples: their timesteps and weighted losses."""
        for timestep, loss in zip(timesteps, losses, strict=True):
            index = timestep * BINS // self._total
            self._sums[index] += loss
            self._counts[index] += 1

    def event(self, epoch: int) -> TimestepsEvent:
        """Return the values of a `timesteps` event: `bins` as [first, end), mean `loss` (None if empty), `count`."""
        edges = [-(-index * self._total // BINS) for index in range(BINS + 1)]
        means = [total / count if count else None for total, count in zip(self._sums, self._counts, strict=True)]
        return TimestepsEvent(epoch=epoch, bins=list(pairwise(edges)), loss=means, count=list(self._counts))

    def clear(self) -> None:
        """Empty the bins, for the next epoch."""
        self._sums, self._counts = [0.0] * BINS, [0] * BINS

    def state(self) -> dict[str, Any]:
        """Return what a resumed run needs, as JSON values."""
        return {"sums": list(self._sums), "counts": list(self._counts)}

    def load_state(self, state: dict[str, Any]) -> None:
        """Restore what `state` returned."""
        self._sums, self._counts = list(state["sums"]), list(state["counts"])
