"""What a batch goes into a step with: views of images, captions, masks and weights, drawn for each sample."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lora_studio.choices import MaskedLoss
from lora_studio.training.batches import Batch, Item
from lora_studio.training.captions import caption_of
from lora_studio.training.views import view_of

if TYPE_CHECKING:
    from lora_studio.training.loop import Run


@dataclass(frozen=True)
class Inputs:
    """A batch of B samples: `masks` [B, 1, H/8, W/8] in 0..1, None without masked loss; `weights` [B] of the losses."""

    items: list[Item]
    captions: list[str]
    masks: Tensor | None
    weights: Tensor


def gather(run: Run, batch: Batch, first: int) -> Inputs:
    """The samples of a batch in this step of the run; `first` is the number of its first sample within the step."""
    job, recipe = run.job, run.job.recipe
    cached = run.texts is not None
    items = [view_of(item, recipe, run.step, sample) for sample, item in enumerate(batch, first)]
    masked = recipe.masked_loss is not MaskedLoss.OFF
    return Inputs(
        items=items,
        captions=[caption_of(item, job, run.step, sample, cached=cached) for sample, item in enumerate(items, first)],
        masks=torch.stack([run.latents.load_mask(item) for item in items]) if masked else None,
        weights=torch.tensor([recipe.prior_loss_weight if item.prior else 1.0 for item in items]),
    )
