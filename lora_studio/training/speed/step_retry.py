"""Retry the gradients of a step: after out of memory with more blocks recomputed, or without CUDA graphs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from lora_studio.errors import PeerOutOfMemoryError
from lora_studio.events import Report, WarningEvent
from lora_studio.training.distributed import RankGroup
from lora_studio.training.optim.flat_params import FlatParameters
from lora_studio.training.speed.cuda_graph_policy import CudaGraphError
from lora_studio.training.speed.recompute import BlockCheckpointing


@dataclass(frozen=True)
class StepRetry:
    """Computes the gradients of a step, and again after a failure.

    With `adaptive`, a rank that runs out of memory recomputes more UNet blocks, and all ranks compute the step again.
    """

    checkpointing: BlockCheckpointing
    weights: FlatParameters
    ranks: RankGroup
    report: Report
    adaptive: bool

    def __call__(self, accumulate: Callable[[], Tensor]) -> Tensor:
        """Return what `accumulate` returns. Its errors must be raised on all ranks (see `RankGroup.sync_errors`).

        Raises torch.OutOfMemoryError, or PeerOutOfMemoryError on the other ranks, if a rank cannot recompute more.
        """
        while True:
            try:
                return accumulate()
            except CudaGraphError:
                continue
            except (MemoryError, torch.OutOfMemoryError, PeerOutOfMemoryError) as error:
                if not self.ranks.all_agree(self._can_retry(error)):
                    raise
                self._report_retry(error)
            self.weights.zero_gradients()
            torch.cuda.empty_cache()

    def _can_retry(self, error: Exception) -> bool:
        """Recompute more blocks if this rank has run out of GPU memory; return True if the step may fit now."""
        if not self.adaptive or isinstance(error, MemoryError):
            return False
        return isinstance(error, PeerOutOfMemoryError) or self.checkpointing.recompute_more()

    def _report_retry(self, error: Exception) -> None:
        message = (
            f"{error}. It recomputes more UNet blocks now."
            if isinstance(error, PeerOutOfMemoryError)
            else "A step ran out of GPU memory. Gradient checkpointing now covers "
            f"{len(self.checkpointing.recomputed)} of {len(self.checkpointing.blocks)} UNet blocks."
        )
        self.report(WarningEvent(code="memory_short", message=message))
