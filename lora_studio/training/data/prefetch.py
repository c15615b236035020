"""Prefetch: collate the next steps' batches in a thread while the device computes the current step."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

import torch

PREFETCH_DEPTH = 2  # steps ahead: enough to hide a slow file, with few batches in memory

T = TypeVar("T")


class Prefetch(Generic[T]):
    """Computes values for steps up to `depth` steps ahead, in one thread; with depth 0 on demand.

    One thread suffices: a batch takes a few small files and random draws, and the thread releases the GIL while it
    reads files or computes in torch. A value may depend on the step number alone.
    """

    def __init__(self, depth: int = 0) -> None:
        self._depth = depth
        self._pool: ThreadPoolExecutor | None = None
        self._pending: dict[int, Future[T]] = {}

    def get(self, step: int, total: int, compute: Callable[[int], T]) -> T:
        """Return `compute(step)` and start the next steps, up to `total`. Raises what `compute` raised for the step."""
        if not self._depth:
            return compute(step)
        if self._pool is None:
            gpu = torch.cuda.current_device() if torch.cuda.is_available() else None
            self._pool = ThreadPoolExecutor(1, "prefetch", _select_gpu, (gpu,))
        ahead = range(step, max(step + 1, min(step + 1 + self._depth, total)))
        for number in self._pending.keys() - set(ahead):
            self._pending.pop(number).cancel()
        for number in ahead:
            if number not in self._pending:
                self._pending[number] = self._pool.submit(compute, number)
        return self._pending.pop(step).result()

    def close(self) -> None:
        """Stop the thread after the value that it is computing; `get` starts it again."""
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
        self._pool = None
        self._pending.clear()


def _select_gpu(gpu: int | None) -> None:
    """Select the GPU in a thread: page-locked memory is allocated through it, and each thread begins with the first."""
    if gpu is not None:
        torch.cuda.set_device(gpu)


def prefetch_depth(device: torch.device) -> int:
    """Return how many steps to prefetch: none on a CPU, where the thread would compete with the training itself."""
    return 0 if device.type == "cpu" else PREFETCH_DEPTH
