"""Counters for a model on the meta device: operations that a GPU would launch, and bytes that autograd saves."""

from __future__ import annotations

import traceback
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

ATEN = torch.ops.aten
# They copy nothing, though the dispatcher does not mark them as views.
VIEWS = {ATEN.detach.default, ATEN._unsafe_view.default, ATEN._reshape_alias.default}


class CountedOperations(TorchDispatchMode):
    """Counts operations except views while it is active."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if not func.is_view and func not in VIEWS:
            self.counts[str(func)] += 1
        return func(*args, **(kwargs or {}))

    @property
    def total(self) -> int:
        return self.counts.total()


class FlashAttention(TorchFunctionMode):
    """Uses the flash attention kernel, as a GPU does; the meta device would decompose attention."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        if func is torch.nn.functional.scaled_dot_product_attention:
            return ATEN._scaled_dot_product_flash_attention(*args[:3])[0]
        return func(*args, **(kwargs or {}))


@contextmanager
def saved_bytes(weights: Iterable[Tensor]) -> Iterator[Callable[[], int]]:
    """Yield a function that returns the bytes saved by autograd in the block, each storage once, without `weights`."""
    own = {weight.untyped_storage()._cdata for weight in weights}
    kept: dict[int, torch.UntypedStorage] = {}

    def pack(value: Tensor) -> Tensor:
        storage = value.untyped_storage()
        if storage._cdata not in own:
            kept[storage._cdata] = storage  # kept alive, so that its address is not reused
        return value

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda value: value):
        yield lambda: sum(storage.nbytes() for storage in kept.values())


class HostReads(TorchDispatchMode):
    """Records which modules of the studio read a number from a tensor (a GPU sync) while it is active."""

    def __init__(self) -> None:
        super().__init__()
        self.modules: set[str] = set()

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is ATEN._local_scalar_dense.default:
            frames = (Path(frame.filename) for frame in reversed(traceback.extract_stack()))
            self.modules.add(next((path.stem for path in frames if "lora_studio" in path.parts), "a library"))
        return func(*args, **(kwargs or {}))
