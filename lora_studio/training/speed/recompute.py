"""Gradient checkpointing block by block: which of the UNet's blocks are computed twice, and what that saves.

A block that is computed twice keeps only its input for the backward pass, where its forward pass is done anew (Chen et
al. 2016, arXiv:1604.06174); the result is the same, bit for bit. What each block would keep is measured in one forward
pass, so that it holds for any network type, precision and attention kernel; it grows with the pixels of a batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from diffusers import UNet2DConditionModel
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

# What diffusers can compute twice: all in these lists but one block.
BLOCK_LISTS = ["resnets"], ["transformer_blocks"]
NEVER = "mid_block.resnets.0"


@dataclass(frozen=True)
class Cost:
    """What a block keeps for the backward pass beside its input, in bytes, and the work of its forward pass."""

    kept: int
    flops: int


class Blocks:
    """A UNet's resnets and transformer blocks, in the order of a forward pass once one was measured.

    `twice` are those that are computed twice, none at first. `repeats_draws` is for blocks that draw random numbers
    (dropout), which must be the same both times.
    """

    def __init__(self, unet: UNet2DConditionModel, *, repeats_draws: bool) -> None:
        self.unet = unet
        self.repeats_draws = repeats_draws
        names = {name: module for name, module in unet.named_modules() if name.split(".")[-2:-1] in BLOCK_LISTS}
        names.pop(NEVER, None)
        self.order: list[nn.Module] = list(names.values())
        self.twice: set[nn.Module] = set()
        self._meter: _Meter | None = None

    def __call__(self, block: nn.Module, *arguments: Any) -> Any:
        """A block's forward pass, as diffusers asks for it."""
        if self._meter is not None:
            return self._meter.block(block, arguments)
        if block in self.twice:
            return checkpoint(block, *arguments, use_reentrant=False, preserve_rng_state=self.repeats_draws)
        return block(*arguments)

    def compute_twice(self, chosen: Iterable[int]) -> None:
        """Compute the blocks of these numbers twice, and no others."""
        self._set({self.order[number] for number in chosen})

    def compute_all_twice(self) -> None:
        """Compute every block twice."""
        self._set(set(self.order))

    def compute_more_twice(self) -> bool:
        """Compute half of the other blocks twice, too, the first ones first; False if there was none left."""
        once = [block for block in self.order if block not in self.twice]
        self._set(self.twice | set(once[: -(-len(once) // 2)]))
        return bool(once)

    def measure(self, forward: Callable[[], object], apart: Iterable[Tensor] = ()) -> tuple[int, list[Cost]]:
        """Do a forward pass, and return what it keeps outside of blocks (their inputs too), and what each block does.

        It holds as much memory as if every block were computed twice. There is no backward pass after it. Weights are
        not counted, nor the tensors `apart`.
        """
        self._meter = meter = _Meter(
            {_storage(tensor) for tensor in (*self.unet.parameters(), *self.unet.buffers(), *apart)}
        )
        self.unet.enable_gradient_checkpointing(self)
        try:
            with meter.watching(meter.outside):
                forward()
        finally:
            self._meter = None
            self._set(self.twice)
        self.order = list(meter.costs)
        return meter.bytes_of(meter.outside), list(meter.costs.values())

    def _set(self, twice: set[nn.Module]) -> None:
        self.twice = twice
        if twice:
            self.unet.enable_gradient_checkpointing(self)
        else:
            self.unet.disable_gradient_checkpointing()


class _Meter:
    """Notes what autograd keeps in each block, and outside of them, beside `weights` (numbers of storages)."""

    def __init__(self, weights: set[int]) -> None:
        self.weights = weights
        self.outside: list[Tensor] = []
        self.costs: dict[nn.Module, Cost] = {}

    def block(self, block: nn.Module, arguments: tuple[Any, ...]) -> Any:
        """Do a block's forward pass and note its cost."""
        inputs = [argument for argument in arguments if isinstance(argument, Tensor)]
        kept: list[Tensor] = []
        with self.watching(kept), FlopCounterMode(display=False) as counter:
            result = block(*arguments)
        if kept:
            self.outside += inputs
        known = {_storage(tensor) for tensor in inputs}
        own = [tensor for tensor in kept if _storage(tensor) not in known]
        self.costs[block] = Cost(self.bytes_of(own), counter.get_total_flops())
        return result

    def bytes_of(self, tensors: Iterable[Tensor]) -> int:
        """The bytes that tensors hold together, beside the weights: those of a storage count once."""
        storages = {_storage(tensor): tensor.untyped_storage().nbytes() for tensor in tensors}
        return sum(size for number, size in storages.items() if number not in self.weights)

    @contextmanager
    def watching(self, kept: list[Tensor]) -> Iterator[None]:
        """Collect what autograd would keep; it keeps nothing itself."""

        def note(tensor: Tensor) -> None:
            kept.append(tensor)

        def never(nothing: None) -> Tensor:
            raise RuntimeError("There is no backward pass after measuring.")

        with saved_tensors_hooks(note, never):
            yield


def choose(costs: Sequence[Cost], room: float) -> list[int]:
    """The numbers of the blocks to compute twice, so that the others keep `room` bytes at most.

    Those that save most for their work come first, and of like ones those of the beginning: the backward pass gets to
    them last, when the rest is free again. All if even that is not enough; no block that is not needed.
    """
    order = sorted(range(len(costs)), key=lambda number: -costs[number].kept / max(1, costs[number].flops))
    kept = sum(cost.kept for cost in costs)
    chosen: list[int] = []
    for number in order:
        if kept <= room:
            break
        chosen.append(number)
        kept -= costs[number].kept
    for number in reversed(chosen[:-1]):
        if kept + costs[number].kept <= room:
            chosen.remove(number)
            kept += costs[number].kept
    return sorted(chosen)


def _storage(tensor: Tensor) -> int:
    """A number of the memory that a tensor looks at, on any device; unique while the tensor lives."""
    number: int = tensor.untyped_storage()._cdata
    return number
