"""The loss of a batch: text encoding, the UNet's prediction, and its error."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor

from lora_studio.models.load import Base
from lora_studio.models.text_encoding import encode_tokens
from lora_studio.settings.recipe import Recipe
from lora_studio.training.data.batch import BatchTensors
from lora_studio.training.objective import sample_losses


@dataclass(frozen=True)
class BatchLoss:
    """Computes the losses of batches with the models as they are trained, in precision `dtype`.

    With `half_only` all trained weights that the models read are in half precision, so that no autocast is needed.
    """

    base: Base
    recipe: Recipe
    device: torch.device
    dtype: torch.dtype
    half_only: bool

    def autocast(self) -> AbstractContextManager[object]:
        """Return the autocast context of the forward pass; a no-op in fp32, or if all weights are in half precision."""
        same_dtype = self.dtype == torch.float32 or self.half_only
        return nullcontext() if same_dtype else torch.autocast(self.device.type, self.dtype)

    def __call__(self, batch: BatchTensors) -> Tensor:
        """Return the weighted loss [B] of each sample of a batch that is on the device.

        It never waits for the device, and all that differs between two batches of the same shape is in their tensors:
        so it can be captured in a CUDA graph.
        """
        with self.autocast():
            hidden, pooled = batch.hidden, batch.pooled
            if batch.tokens is not None:
                hidden, pooled = encode_tokens(self.base.text_encoders, batch.tokens, self.recipe.clip_skip)
            prediction: Tensor = self.base.unet(
                batch.noisy,
                batch.t,
                encoder_hidden_states=hidden,
                added_cond_kwargs={"text_embeds": pooled, "time_ids": batch.time_ids},
                return_dict=False,
            )[0]
        losses = sample_losses(
            prediction, batch.target, loss_type=self.recipe.loss_type, thresholds=batch.thresholds, mask=batch.masks
        )
        return losses * batch.weights
