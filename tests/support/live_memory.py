"""The memory of tensors, counted on any device: the meta device, which has no data, can be a GPU.

torch.distributed's MemTracker counts in the same way, but refuses a module that is called twice, as a decoder is for
two tiles, and knows no limit.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LiveTensors(TorchDispatchMode):
    """Counts the bytes of the storages that operations within it return, for as long as they live.

    Only those on devices of type `device` count, if it is given. An operation that would exceed `limit` bytes raises
    torch.OutOfMemoryError.
    """

    def __init__(self, device: str | None = None, limit: float = math.inf) -> None:
        super().__init__()
        self.device, self.limit = device, limit
        self.now = 0
        self.peak = 0
        self._known: set[int] = set()

    def reset_peak(self) -> None:
        """Start to measure the peak from the tensors that live now."""
        self.peak = self.now

    def __torch_dispatch__(
        self, function: Callable[..., Any], types: Any, given: tuple[Any, ...] = (), named: Any = None
    ) -> Any:
        result = self.run(function, given, named or {})
        for value in tree_leaves(result):
            if isinstance(value, torch.Tensor) and self.device in (None, value.device.type):
                self._count(value.untyped_storage())
        if self.now > self.limit:
            result = value = None  # not allocated
            raise torch.OutOfMemoryError(f"CUDA out of memory: {self.now} of {self.limit:.0f} bytes are allocated.")
        self.peak = max(self.peak, self.now)
        return result

    def run(self, function: Callable[..., Any], given: tuple[Any, ...], named: dict[str, Any]) -> Any:
        """Run an operation; a subclass can replace some."""
        return function(*given, **named)

    def _count(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key not in self._known:
            self._known.add(key)
            self.now += size
            weakref.finalize(storage, self._freed, key, size)

    def _freed(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.now -= size


def saved_bytes(forward: Callable[[], object], ignored: Iterable[torch.Tensor]) -> int:
    """Return the bytes that autograd saves in a forward pass, except those of `ignored` tensors."""
    saved: list[torch.Tensor] = []

    def pack(tensor: torch.Tensor) -> None:
        saved.append(tensor)

    with saved_tensors_hooks(pack, lambda nothing: nothing):
        forward()
    ids = {tensor.untyped_storage()._cdata for tensor in ignored}
    sizes = {tensor.untyped_storage()._cdata: tensor.untyped_storage().nbytes() for tensor in saved}
    return sum(size for storage, size in sizes.items() if storage not in ids)
