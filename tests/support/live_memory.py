"""The memory of tensors, counted on any device, meta included: what a GPU would need at least.

torch.distributed's MemTracker does the same, but refuses a module that is called twice, as a decoder is for two tiles.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch.autograd.graph import saved_tensors_hooks
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

COUNTED = 2**20  # bytes; smaller storages do not matter


class LiveTensors(TorchDispatchMode):
    """Counts the bytes of the storages that operations within it return, for as long as they live."""

    def __init__(self) -> None:
        super().__init__()
        self.peak = 0
        self._live: dict[int, tuple[StorageWeakRef, int]] = {}

    def __torch_dispatch__(
        self, function: Callable[..., Any], types: Any, given: tuple[Any, ...] = (), named: Any = None
    ) -> Any:
        result = function(*given, **(named or {}))
        storages = [tensor.untyped_storage() for tensor in tree_leaves(result) if isinstance(tensor, torch.Tensor)]
        large = [storage for storage in storages if storage.nbytes() >= COUNTED]
        if large:
            self._live = {key: (ref, size) for key, (ref, size) in self._live.items() if not ref.expired()}
            for storage in large:
                self._live.setdefault(storage._cdata, (StorageWeakRef(storage), storage.nbytes()))
            self.peak = max(self.peak, sum(size for _, size in self._live.values()))
        return result


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
