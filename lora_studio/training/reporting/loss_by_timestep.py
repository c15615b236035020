"""The loss by timestep: where in the noise a LoRA still has something to learn."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise
from typing import Any

BINS = 10


class TimestepLosses:
    """Sums the samples' losses over bins of timesteps, from one epoch's end to the next."""

    def __init__(self, total: int) -> None:
        """`total` is the number of timesteps of the base."""
        self._total = total
        self._sums = [0.0] * BINS
        self._counts = [0] * BINS

    def add(self, timesteps: Iterable[int], losses: Iterable[float]) -> None:
        """Take in samples: their timesteps, and their losses as they counted."""
        for timestep, loss in zip(timesteps, losses, strict=True):
            place = timestep * BINS // self._total
            self._sums[place] += loss
            self._counts[place] += 1

    def event(self) -> dict[str, Any]:
        """The values of a `timesteps` event: `bins` as [first, end), mean `loss` (None without a sample), `count`."""
        edges = [-(-place * self._total // BINS) for place in range(BINS + 1)]
        means = [total / count if count else None for total, count in zip(self._sums, self._counts, strict=True)]
        return {"bins": list(map(list, pairwise(edges))), "loss": means, "count": list(self._counts)}

    def clear(self) -> None:
        """Begin anew, with the next epoch."""
        self._sums, self._counts = [0.0] * BINS, [0] * BINS

    def state(self) -> dict[str, Any]:
        """What is needed to go on, as JSON."""
        return {"sums": list(self._sums), "counts": list(self._counts)}

    def load_state(self, state: dict[str, Any]) -> None:
        """Take back what `state` gave."""
        self._sums, self._counts = list(state["sums"]), list(state["counts"])
