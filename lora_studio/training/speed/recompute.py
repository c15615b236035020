"""Activation checkpointing per UNet block: which blocks recompute their activations, and what that saves.

A recomputed block saves only its input in the forward pass and runs its forward pass again during the backward pass
(Chen et al. 2016, arXiv:1604.06174); the result is the same, bit for bit. What each block would save is measured in one
forward pass, so that it is right for any network type, precision and attention kernel; it grows with the pixels of a
batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

# diffusers can recompute every module of these lists except one.
BLOCK_LISTS = ["resnets"], ["transformer_blocks"]
NOT_RECOMPUTABLE = "mid_block.resnets.0"


@dataclass(frozen=True)
class BlockCost:
    """The bytes that a block saves for the backward pass beside its input, and the FLOPs of its forward pass."""

    saved_bytes: int
    flops: int


class BlockCheckpointing:
    """Chooses which of a UNet's resnets and transformer blocks recompute their activations; none at first.

    `blocks` are in the order of the forward pass once `measure` has run. `preserve_rng_state` is needed for blocks with
    dropout, whose random numbers must be the same in both forward passes.
    """

    def __init__(self, unet: UNet2DConditionModel, *, preserve_rng_state: bool) -> None:
        self.unet = unet
        self.preserve_rng_state = preserve_rng_state
        names = {name: module for name, module in unet.named_modules() if name.split(".")[-2:-1] in BLOCK_LISTS}
        names.pop(NOT_RECOMPUTABLE, None)
        self.blocks: list[nn.Module] = list(names.values())
        self.recomputed: set[nn.Module] = set()
        self._meter: _SavedTensorMeter | None = None

    def __call__(self, block: nn.Module, *arguments: Any) -> Any:
        """Run the forward pass of a block; diffusers calls this as its gradient checkpointing function."""
        if self._meter is not None:
            return self._meter.run(block, arguments)
        if block in self.recomputed:
            return checkpoint(block, *arguments, use_reentrant=False, preserve_rng_state=self.preserve_rng_state)
        return block(*arguments)

    def recompute_only(self, indices: Iterable[int]) -> None:
        """Recompute the blocks with these indices, and no others."""
        self._set({self.blocks[index] for index in indices})

    def recompute_all(self) -> None:
        """Recompute every block."""
        self._set(set(self.blocks))

    def recompute_more(self) -> bool:
        """Recompute half of the remaining blocks as well, the first ones first; return False if none remained."""
        remaining = [block for block in self.blocks if block not in self.recomputed]
        self._set(self.recomputed | set(remaining[: -(-len(remaining) // 2)]))
        return bool(remaining)

    def measure(self, forward: Callable[[], object], ignored: Iterable[Tensor] = ()) -> tuple[int, list[BlockCost]]:
        """Run a forward pass; return the bytes saved outside of blocks (their inputs included) and each block's cost.

        It takes as much memory as if every block were recomputed, and no backward pass may follow. Neither the UNet's
        weights nor the `ignored` tensors are counted.
        """
        weights = {_storage_id(tensor) for tensor in (*self.unet.parameters(), *self.unet.buffers(), *ignored)}
        self._meter = meter = _SavedTensorMeter(weights)
        self.unet.enable_gradient_checkpointing(self)
        try:
            with meter.recording(meter.outside):
                forward()
        finally:
            self._meter = None
            self._set(self.recomputed)
        self.blocks = list(meter.costs)
        return meter.outside.bytes_without(weights), list(meter.costs.values())

    def _set(self, recomputed: set[nn.Module]) -> None:
        self.recomputed = recomputed
        if recomputed:
            self.unet.enable_gradient_checkpointing(self)
        else:
            self.unet.disable_gradient_checkpointing()


class _Storages:
    """The sizes of storages in bytes, each counted once, without keeping their memory.

    Autograd's graph holds on to its hooks: one that held the tensors would never free them.
    """

    def __init__(self) -> None:
        self._found: dict[int, tuple[StorageWeakRef, int]] = {}  # a weak reference keeps the id from being used again

    def add(self, tensor: Tensor) -> None:
        """Count the storage of a tensor."""
        storage = tensor.untyped_storage()
        self._found[storage._cdata] = StorageWeakRef(storage), storage.nbytes()

    def bytes_without(self, others: set[int]) -> int:
        """Return the bytes of all storages except those with these ids."""
        return sum(size for number, (_, size) in self._found.items() if number not in others)

    def __len__(self) -> int:
        return len(self._found)


class _SavedTensorMeter:
    """Records what autograd would save within each block and outside of them, except `weights` (storage ids)."""

    def __init__(self, weights: set[int]) -> None:
        self.weights = weights
        self.outside = _Storages()
        self.costs: dict[nn.Module, BlockCost] = {}

    def run(self, block: nn.Module, arguments: tuple[Any, ...]) -> Any:
        """Run the forward pass of a block and record its cost."""
        inputs = [argument for argument in arguments if isinstance(argument, Tensor)]
        saved = _Storages()
        with self.recording(saved), FlopCounterMode(display=False) as counter:
            result = block(*arguments)
        if saved:
            for tensor in inputs:
                self.outside.add(tensor)
        own = saved.bytes_without(self.weights | {_storage_id(tensor) for tensor in inputs})
        self.costs[block] = BlockCost(own, counter.get_total_flops())
        return result

    @contextmanager
    def recording(self, saved: _Storages) -> Iterator[None]:
        """Add to `saved` what autograd would save in this block; autograd itself saves nothing."""

        def unpack(nothing: None) -> Tensor:
            raise RuntimeError("There is no backward pass after measuring.")

        with saved_tensors_hooks(saved.add, unpack):
            yield


def choose_recomputed(costs: Sequence[BlockCost], budget: float) -> list[int]:
    """Return the indices of the blocks to recompute, so that the others save at most `budget` bytes.

    Blocks that save most per FLOP come first; of equal ones those at the beginning of the UNet, which the backward pass
    reaches last, when the activations of the others are free again. Returns all blocks if even that is not enough, and
    no block that is not needed.
    """
    order = sorted(range(len(costs)), key=lambda index: -costs[index].saved_bytes / max(1, costs[index].flops))
    saved = sum(cost.saved_bytes for cost in costs)
    chosen: list[int] = []
    for index in order:
        if saved <= budget:
            break
        chosen.append(index)
        saved -= costs[index].saved_bytes
    for index in reversed(chosen[:-1]):
        if saved + costs[index].saved_bytes <= budget:
            chosen.remove(index)
            saved += costs[index].saved_bytes
    return sorted(chosen)


def _storage_id(tensor: Tensor) -> int:
    """Return an id of a tensor's storage, on any device; it is unique while the tensor lives."""
    address: int = tensor.untyped_storage()._cdata
    return address
