"""Count the large tensors that code allocates, and let one of the allocations run out of memory."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

MIN_BYTES = 4096  # smaller tensors fit into memory that an allocator has left over


@dataclass
class Allocations:
    """The number of large tensors allocated so far; number `failing` (counted from 1) runs out of memory.

    `sizes` are their sizes in bytes.
    """

    failing: int = 0
    sizes: list[int] = field(default_factory=list)

    @property
    def failed(self) -> bool:
        """True if the allocation that was to fail was reached."""
        return 0 < self.failing <= len(self.sizes)

    def add(self, size: int) -> None:
        """Count an allocation. Raises torch.OutOfMemoryError if it is the failing one."""
        self.sizes.append(size)
        if len(self.sizes) == self.failing:
            raise torch.OutOfMemoryError(f"CUDA out of memory. Tried to allocate {size} bytes.")


class _CountingMode(TorchDispatchMode):
    def __init__(self, found: Allocations) -> None:
        super().__init__()
        self._found = found

    def __torch_dispatch__(self, function: Any, types: Any, given: Any = (), named: Any = None) -> Any:
        result = function(*given, **(named or {}))
        inputs = {
            value.untyped_storage().data_ptr() for value in tree_leaves((given, named)) if isinstance(value, Tensor)
        }
        for value in tree_leaves(result):
            if isinstance(value, Tensor) and value.untyped_storage().data_ptr() not in inputs:
                size = value.untyped_storage().nbytes()
                if size >= MIN_BYTES:
                    self._found.add(size)
        return result


@contextmanager
def counted_allocations(failing: int = 0) -> Iterator[Allocations]:
    """Count the large allocations within the block, in this thread; number `failing` runs out of memory."""
    found = Allocations(failing)
    with _CountingMode(found):
        yield found
