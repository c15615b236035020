"""The loss of a batch: the UNet's answer to it, and how far off it is."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from lora_studio.models.text_encoding import encode_tokens
from lora_studio.training.data.collate import Prepared
from lora_studio.training.objective import sample_losses

if TYPE_CHECKING:
    from lora_studio.training.loop import Run


def batch_losses(run: Run, batch: Prepared) -> Tensor:
    """The weighted loss [B] of each sample of a batch that is on the run's device.

    It launches work on the device and never waits for it; all that differs between two batches of the same shape is in
    the batch's tensors.
    """
    recipe = run.job.recipe
    with run.autocast():
        hidden, pooled = batch.hidden, batch.pooled
        if batch.tokens is not None:
            hidden, pooled = encode_tokens(run.base.text_encoders, batch.tokens, recipe.clip_skip)
        prediction: Tensor = run.base.unet(
            batch.noisy,
            batch.t,
            encoder_hidden_states=hidden,
            added_cond_kwargs={"text_embeds": pooled, "time_ids": batch.time_ids},
            return_dict=False,
        )[0]
    losses = sample_losses(
        prediction, batch.target, loss_type=recipe.loss_type, thresholds=batch.thresholds, mask=batch.masks
    )
    return losses * batch.weights
