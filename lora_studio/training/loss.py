"""The loss of a batch: noise onto latents, the UNet's answer, and how far off it is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lora_studio.training.batches import Batch, Item
from lora_studio.training.inputs import gather
from lora_studio.training.objective import draw_latent, draw_noise, draw_timestep, sample_losses, training_target

if TYPE_CHECKING:
    from lora_studio.training.loop import Run


def batch_losses(run: Run, batch: Batch, first: int) -> Tensor:
    """The weighted loss [B] of each sample of a batch; `first` is the number of its first sample within the step."""
    recipe, scheduler = run.job.recipe, run.base.noise_scheduler
    inputs = gather(run, batch, first)
    timesteps, latents, noise = [], [], []
    for sample, item in enumerate(inputs.items, first):
        mean, logvar = run.latents.load(item)
        key = (recipe.seed, run.step, sample)
        timesteps.append(draw_timestep(*key, scheduler.config.num_train_timesteps))
        latents.append(draw_latent(mean, logvar, *key) * run.base.vae.config.scaling_factor)
        noise.append(draw_noise(tuple(mean.shape), *key, recipe.noise_offset))
    device = run.device
    t = torch.tensor(timesteps)
    clean, noisy = torch.stack(latents), torch.stack(noise)
    target = training_target(scheduler, run.base.prediction_type, clean, noisy, t).to(device, non_blocking=True)
    prediction = answer(run, scheduler.add_noise(clean, noisy, t), t, inputs.captions, inputs.items)
    return weighted_losses(run, prediction, target, t, inputs.masks) * inputs.weights.to(device, non_blocking=True)


def weighted_losses(run: Run, prediction: Tensor, target: Tensor, t: Tensor, masks: Tensor | None) -> Tensor:
    """The losses [B] of answers at timesteps t [B], as the recipe weighs them; `masks` [B, 1, H, W] say what counts."""
    device = run.device
    masks = None if masks is None else masks.to(device, non_blocking=True)
    return sample_losses(prediction, target, mask=masks) * run.loss_weights[t].to(device, non_blocking=True)


def answer(run: Run, noisy: Tensor, t: Tensor, captions: Sequence[str], items: Sequence[Item]) -> Tensor:
    """What the UNet says [B, C, H, W] to noisy latents at timesteps [B], with captions and size conditioning."""
    time_ids = torch.tensor([item.time_ids for item in items], device=run.device)
    with run.autocast():
        text = run.encode(captions)
        prediction: Tensor = run.base.unet(
            noisy.to(run.device, run.base.unet.dtype, non_blocking=True),
            t.to(run.device),
            encoder_hidden_states=text.hidden,
            added_cond_kwargs={"text_embeds": text.pooled, "time_ids": time_ids},
            return_dict=False,
        )[0]
    return prediction
