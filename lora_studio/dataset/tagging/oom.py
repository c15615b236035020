"""Telling that a batch is too large for the memory from everything else that can go wrong."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar

import torch

from lora_studio.dataset.tagging.interface import TooMany

P = ParamSpec("P")
T = TypeVar("T")


def too_many_at_once(work: Callable[P, T]) -> Callable[P, T]:
    """Let `work` raise TooMany where memory runs out, on a GPU or a CPU, with what it held given back."""

    @wraps(work)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return work(*args, **kwargs)
        except (MemoryError, RuntimeError) as error:
            if isinstance(error, TooMany) or not _is_out_of_memory(error):
                raise
            cause: Exception = error.with_traceback(None)  # its frames hold the tensors that did not fit
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        raise TooMany("The pictures do not fit into memory together.") from cause

    return wrapped


def _is_out_of_memory(error: Exception) -> bool:
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return "out of memory" in str(error).lower() or "can't allocate memory" in str(error).lower()
