"""The parts of a training run: models, optimizer, data. They are chosen once and do not change from step to step."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import nn
from torch.optim.lr_scheduler import LRScheduler

from lora_studio.lora.inject import Adapters
from lora_studio.measures.samples import SampleMeasurer
from lora_studio.models.load import Base
from lora_studio.planning.steps import StepCount, text_encoder_stop
from lora_studio.settings.job_specs import TrainJob
from lora_studio.settings.recipe import Recipe
from lora_studio.training.batch_loss import BatchLoss
from lora_studio.training.data.batch import StepBatches
from lora_studio.training.data.collate import Collator
from lora_studio.training.data.dataset import Dataset
from lora_studio.training.data.prefetch import Prefetch
from lora_studio.training.distributed import RankGroup
from lora_studio.training.optim.ema import AveragedWeights
from lora_studio.training.optim.flat_params import FlatParameters
from lora_studio.training.speed.gradient_pass import GradientPass
from lora_studio.training.speed.recompute import BlockCheckpointing

PRECISIONS = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}


@dataclass(frozen=True)
class Trainer:
    """The parts of a run in `folder`; `Progress` has what changes.

    `weights` are the trained weights, of which `adapters` are the layers. `device` and `dtype` are those of the forward
    pass. Without `decodes_in_half` samples are decoded in fp32, without a `sample_measurer` they are not measured.
    """

    job: TrainJob
    folder: Path
    counts: StepCount
    base: Base
    adapters: Adapters
    weights: FlatParameters
    block_checkpointing: BlockCheckpointing
    optimizer: torch.optim.Optimizer
    lr_scheduler: LRScheduler
    scaler: torch.amp.GradScaler
    averaged_weights: AveragedWeights
    collator: Collator
    prefetch: Prefetch[StepBatches]
    device: torch.device
    dtype: torch.dtype
    ranks: RankGroup
    batch_loss: BatchLoss
    gradient_pass: GradientPass
    decodes_in_half: bool = True
    sample_measurer: SampleMeasurer | None = None

    @property
    def recipe(self) -> Recipe:
        """The settings of the run."""
        return self.job.recipe

    @property
    def dataset(self) -> Dataset:
        """The images that the run trains on."""
        return self.collator.dataset

    @property
    def precision(self) -> str:
        """The precision of the forward pass: fp32, bf16 or fp16."""
        return PRECISIONS[self.dtype]

    @cached_property
    def text_encoder_stop(self) -> int:
        """The number of steps after which the text encoders are not trained further; all steps if they never are."""
        setting = self.recipe.stop_text_encoder_training if self.recipe.trains_text_encoders else 0
        return text_encoder_stop(setting, self.counts.total_steps)

    def freeze_text_encoders(self) -> None:
        """Leave the text encoders as they are in all further steps: no gradients, no updates, no dropout."""
        self.weights.freeze("text_encoder", "text_encoder_2")
        for encoder in self.base.text_encoders:
            encoder.eval()

    @cached_property
    def skips_nonfinite_on_gpu(self) -> bool:
        """True if the optimizer itself skips non-finite steps on the GPU, so that the CPU need not wait for the loss.

        Fused AdamW does, as long as neither an EMA nor a gradient scaler is in use.
        """
        fused = isinstance(self.optimizer, torch.optim.AdamW) and bool(self.optimizer.defaults["fused"])
        return fused and self.device.type == "cuda" and not (self.recipe.ema_decay or self.scaler.is_enabled())


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
