"""A training run in memory: its models, its optimizer, and its progress."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from lora_studio.lora.inject import Adapters
from lora_studio.models.load import Base
from lora_studio.models.pipeline import TextEmbeddings
from lora_studio.models.text_encoding import encode_text
from lora_studio.planning.steps import StepCount
from lora_studio.settings.job_specs import TrainJob
from lora_studio.training.data.batch import StepBatches
from lora_studio.training.data.collate import Collator
from lora_studio.training.data.dataset import Dataset
from lora_studio.training.data.prefetch import Prefetch
from lora_studio.training.data.rng import seeded
from lora_studio.training.distributed import RankGroup
from lora_studio.training.optim.ema import AveragedWeights
from lora_studio.training.optim.flat_params import FlatParameters
from lora_studio.training.reporting.health import HealthMonitor
from lora_studio.training.reporting.loss_by_timestep import TimestepLosses
from lora_studio.training.speed.cuda_graph_policy import CudaGraphs
from lora_studio.training.speed.recompute import BlockCheckpointing


@dataclass
class Run:
    """The models, data, optimizer and progress of a training run.

    `step` counts optimizer steps, `epochs_finished` the epochs whose LoRA, samples and resume state are saved.
    `updating` is True while the optimizer changes the weights: after an error within, they must not be saved.
    `saved_position` is the (step, epochs) of the last resume state, `saved_at` its monotonic time. While checkpoints
    and samples are being written, `log_offset` is the size in bytes that the event log had before: a resume repeats
    the events from there.
    """

    job: TrainJob
    folder: Path
    counts: StepCount
    base: Base
    adapters: Adapters
    weights: FlatParameters
    block_checkpointing: BlockCheckpointing
    optimizer: torch.optim.Optimizer
    lr_scheduler: LambdaLR
    scaler: torch.amp.GradScaler
    collator: Collator
    device: torch.device
    dtype: torch.dtype
    precision: str
    health: HealthMonitor
    averaged_weights: AveragedWeights
    timestep_losses: TimestepLosses
    ranks: RankGroup = field(default_factory=RankGroup)
    prefetch: Prefetch[StepBatches] = field(default_factory=Prefetch)
    cuda_graphs: CudaGraphs | None = None
    started: float = field(default_factory=time.time)
    step: int = 0
    epochs_finished: int = 0
    epoch_losses: list[float] = field(default_factory=list)
    validation_losses: list[dict[str, Any]] = field(default_factory=list)
    last_loss: float | None = None
    nan_streak: int = 0
    updating: bool = False
    saved_position: tuple[int, int] | None = None
    saved_at: float = field(default_factory=time.monotonic)
    log_offset: int | None = None

    @property
    def dataset(self) -> Dataset:
        """The images that the run trains on."""
        return self.collator.dataset

    @property
    def epoch(self) -> int:
        """The epoch of the last step, counted from 1."""
        return max(1, -(-self.step // self.counts.steps_per_epoch))

    @property
    def epochs_due(self) -> int:
        """The number of epochs that the steps so far complete; max_train_steps may cut the last one short."""
        at_end = self.step >= self.counts.total_steps
        return self.counts.epochs if at_end else self.step // self.counts.steps_per_epoch

    @cached_property
    def updates_without_sync(self) -> bool:
        """True if the optimizer itself skips non-finite steps on the GPU, so that the CPU need not wait for the loss.

        Fused AdamW does, as long as neither an EMA nor a gradient scaler is in use.
        """
        fused = isinstance(self.optimizer, torch.optim.AdamW) and bool(self.optimizer.defaults["fused"])
        return fused and self.device.type == "cuda" and not (self.job.recipe.ema_decay or self.scaler.is_enabled())

    def autocast(self) -> AbstractContextManager[object]:
        """Return the autocast context of the forward pass; a no-op in fp32, or if all weights are in half precision."""
        same_dtype = self.dtype == torch.float32 or self.weights.half_only
        return nullcontext() if same_dtype else torch.autocast(self.device.type, self.dtype)

    def seeded_dropout(self, first: int) -> AbstractContextManager[object]:
        """Seed network dropout for the batch that begins with sample `first` of the step; a no-op without dropout."""
        recipe = self.job.recipe
        if not recipe.network_dropout:
            return nullcontext()
        return seeded(recipe.seed, "dropout", self.step, first, device=self.device)

    def encode(self, captions: Sequence[str]) -> TextEmbeddings:
        """Return embeddings [B, 77 n, D] and pooled embeddings [B, P] of captions, from the cache if there is one."""
        recipe, texts = self.job.recipe, self.collator.texts
        if texts is None:
            return TextEmbeddings(
                *encode_text(
                    self.base.text_encoders, self.base.tokenizers, captions, recipe.clip_skip, recipe.max_token_length
                )
            )
        hidden, pooled = texts.load(captions, self.dtype)
        return TextEmbeddings(hidden.to(self.device), pooled.to(self.device))


@contextmanager
def eval_mode(*modules: nn.Module) -> Iterator[None]:
    """Set modules to eval mode within the block, and back to their previous mode afterwards."""
    modes = [(module, module.training) for module in modules]
    try:
        for module in modules:
            module.eval()
        yield
    finally:
        for module, training in modes:
            module.train(training)
