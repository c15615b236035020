"""What the next steps need, made while the device works on this one."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

import torch

PREFETCH_DEPTH = 2  # steps ahead: a slow file does not hold the device up, and few batches are held

T = TypeVar("T")


class Prefetch(Generic[T]):
    """Makes what steps need, `depth` of them ahead, in one thread; with depth 0 each when it is asked for.

    One thread suffices: a batch is a few small files and a few draws of noise, and whatever the thread waits for or
    computes in torch leaves Python to the loop. What is made may depend on the number of the step alone.
    """

    def __init__(self, depth: int = 0) -> None:
        self._depth = depth
        self._pool: ThreadPoolExecutor | None = None
        self._coming: dict[int, Future[T]] = {}

    def get(self, step: int, total: int, make: Callable[[int], T]) -> T:
        """What `make` gives for a step, and a start on the next ones of `total`. Raises what `make` raised for it."""
        if not self._depth:
            return make(step)
        if self._pool is None:
            gpu = torch.cuda.current_device() if torch.cuda.is_available() else None
            self._pool = ThreadPoolExecutor(1, "prefetch", _enter, (gpu,))
        ahead = range(step, max(step + 1, min(step + 1 + self._depth, total)))
        for number in self._coming.keys() - set(ahead):
            self._coming.pop(number).cancel()
        for number in ahead:
            if number not in self._coming:
                self._coming[number] = self._pool.submit(make, number)
        return self._coming.pop(step).result()

    def close(self) -> None:
        """End the thread, after what it is making at most; another `take` starts it again."""
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
        self._pool = None
        self._coming.clear()


def _enter(gpu: int | None) -> None:
    """Page-locked memory is asked of a thread's own GPU, which is the first one unless it is told."""
    if gpu is not None:
        torch.cuda.set_device(gpu)


def prefetch_depth(device: torch.device) -> int:
    """How far ahead pays: not at all on a CPU, where the thread would take its time from the arithmetic."""
    return 0 if device.type == "cpu" else PREFETCH_DEPTH
