"""The gradient pass: forward, loss and backward of a micro-batch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from lora_studio.training.batch_loss import BatchLoss
from lora_studio.training.data.batch import BatchTensors
from lora_studio.training.optim.flat_params import FlatParameters


class GradientPass(Protocol):
    """Runs forward, loss and backward of a micro-batch."""

    def __call__(self, batch: BatchTensors) -> Tensor:
        """Add the gradients of a batch to those of the step; return its losses [B], valid until the next call."""

    def free_for_sampling(self) -> None:
        """Free the GPU memory that the next passes can allocate again."""


@dataclass(frozen=True)
class EagerPass:
    """The gradient pass that launches each kernel from Python, as PyTorch does by default."""

    batch_loss: BatchLoss
    weights: FlatParameters
    scaler: torch.amp.GradScaler

    def __call__(self, batch: BatchTensors) -> Tensor:
        """Add the gradients of a batch to those of the step; return its losses [B]."""
        batch = batch.to(self.batch_loss.device)
        losses = self.batch_loss(batch)
        self.scaler.scale(losses.sum() / batch.sample_count).backward()
        self.weights.accumulate_gradients()
        return losses.detach()

    def free_for_sampling(self) -> None:
        """Do nothing: an eager pass holds no memory."""
