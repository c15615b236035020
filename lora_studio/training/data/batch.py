"""Batches as tensors: what the forward pass and the loss read."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor


@dataclass(frozen=True)
class BatchTensors:
    """The tensors of a batch of B samples.

    `noisy` [B, C, H/8, W/8] are the noised latents in the run's precision, `target` [B, C, H/8, W/8] what the UNet is
    to predict, in fp32; `t` [B] are the timesteps and `time_ids` [B, 6] SDXL's size conditioning, both integers;
    `weights` [B] multiply the losses; `sample_count` [] is the number of samples of the whole step, over which the
    losses are averaged. The text is `hidden` [B, 77 n, D] and `pooled` [B, P], or `tokens`
    [encoders, B, n, 77] where the text encoders are trained. `thresholds` [B] are set with a Huber loss, `masks`
    [B, 1, H/8, W/8] in 0..1 with masked loss.
    """

    noisy: Tensor
    target: Tensor
    t: Tensor
    time_ids: Tensor
    weights: Tensor
    sample_count: Tensor
    hidden: Tensor | None = None
    pooled: Tensor | None = None
    tokens: Tensor | None = None
    thresholds: Tensor | None = None
    masks: Tensor | None = None

    def __len__(self) -> int:
        return len(self.noisy)

    @property
    def tensors(self) -> dict[str, Tensor]:
        """All tensors that are set, by field name."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: value for name, value in values.items() if value is not None}

    def pin_memory(self) -> BatchTensors:
        """Return the batch in page-locked memory, from which a CUDA GPU copies without blocking the CPU."""
        return replace(self, **{name: value.pin_memory() for name, value in self.tensors.items()})

    def to(self, device: torch.device) -> BatchTensors:
        """Return the batch on a device; the copy does not block."""
        return replace(self, **{name: value.to(device, non_blocking=True) for name, value in self.tensors.items()})


@dataclass(frozen=True)
class StepBatches:
    """The micro-batches of one optimizer step that this rank computes, and the step's sample count over all ranks.

    Each batch comes with the index of its first sample within the step.
    """

    sample_count: int
    batches: list[tuple[int, BatchTensors]]
