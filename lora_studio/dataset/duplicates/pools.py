"""Pools of threads and processes that can be left at any moment."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Executor
from contextlib import contextmanager
from typing import TypeVar

Pool = TypeVar("Pool", bound=Executor)


@contextmanager
def cancel_on_exit(pool: Pool) -> Iterator[Pool]:
    """A pool for use within: who leaves early, by an error too, waits for what has begun and for nothing else."""
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)
