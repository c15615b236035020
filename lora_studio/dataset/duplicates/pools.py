"""Executors that cancel pending work on exit."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Executor
from contextlib import contextmanager
from typing import TypeVar

Pool = TypeVar("Pool", bound=Executor)


@contextmanager
def cancel_on_exit(pool: Pool) -> Iterator[Pool]:
    """Yield the executor; on exit, also by an exception, cancel pending work and wait only for what is running."""
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)
