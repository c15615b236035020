"""Retry a step that failed before it changed the weights: after out of memory, or without CUDA graphs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import torch

from lora_studio.events import Report, WarningEvent
from lora_studio.training.optim.flat_params import FlatParameters
from lora_studio.training.speed.cuda_graph_policy import CudaGraphError
from lora_studio.training.speed.recompute import BlockCheckpointing

T = TypeVar("T")


@dataclass(frozen=True)
class StepRetry:
    """Retries steps that failed before they changed the weights.

    With `adaptive`, each out of memory lets more UNet blocks be recomputed before the retry.
    """

    checkpointing: BlockCheckpointing
    weights: FlatParameters
    report: Report
    adaptive: bool

    def __call__(self, step: Callable[[], T]) -> T:
        """Return what `step` returns. Raises torch.OutOfMemoryError if no further block can be recomputed."""
        while True:
            try:
                return step()
            except CudaGraphError:
                continue
            except torch.OutOfMemoryError:
                if not (self.weights.consistent and self.adaptive and self.checkpointing.recompute_more()):
                    raise
            self.weights.zero_gradients()
            torch.cuda.empty_cache()
            self.report(
                WarningEvent(
                    code="memory_short",
                    message="A step ran out of GPU memory. Gradient checkpointing now covers "
                    f"{len(self.checkpointing.recomputed)} of {len(self.checkpointing.blocks)} UNet blocks.",
                )
            )
