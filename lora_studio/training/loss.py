"""The loss of a batch: noise onto latents, the UNet's answer, and how far off it is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lora_studio.choices import LossType
from lora_studio.training.batches import Batch, Item
from lora_studio.training.inputs import gather
from lora_studio.training.objective import draw_latent, draw_noise, draw_timestep, sample_losses, training_target

if TYPE_CHECKING:
    from lora_studio.training.loop import Run


def step_timesteps(run: Run, first: int, count: int) -> list[int]:
    """The timesteps of the `count` samples of the current step that begin with number `first`."""
    recipe, total = run.job.recipe, run.base.noise_scheduler.config.num_train_timesteps
    return [
        draw_timestep(
            recipe.seed,
            run.step,
            sample,
            min(recipe.max_timestep, total),
            begin=recipe.min_timestep,
            sampling=recipe.timestep_sampling,
        )
        for sample in range(first, first + count)
    ]


def batch_losses(run: Run, batch: Batch, first: int) -> Tensor:
    """The weighted loss [B] of each sample of a batch; `first` is the number of its first sample within the step."""
    recipe, scheduler = run.job.recipe, run.base.noise_scheduler
    inputs = gather(run, batch, first)
    latents, noise = [], []
    for sample, item in enumerate(inputs.items, first):
        mean, logvar = run.latents.load(item)
        key = (recipe.seed, run.step, sample)
        latents.append(draw_latent(mean, logvar, *key) * run.base.vae.config.scaling_factor)
        noise.append(
            draw_noise(
                tuple(mean.shape),
                *key,
                recipe.noise_offset,
                multires_iterations=recipe.multires_noise_iterations,
                multires_discount=recipe.multires_noise_discount,
            )
        )
    device = run.device
    t = torch.tensor(step_timesteps(run, first, len(batch)))
    clean, noisy = torch.stack(latents), torch.stack(noise)
    target = training_target(scheduler, run.base.prediction_type, clean, noisy, t).to(device, non_blocking=True)
    prediction = answer(run, scheduler.add_noise(clean, noisy, t), t, inputs.captions, inputs.items)
    return weighted_losses(run, prediction, target, t, inputs.masks) * inputs.weights.to(device, non_blocking=True)


def weighted_losses(run: Run, prediction: Tensor, target: Tensor, t: Tensor, masks: Tensor | None) -> Tensor:
    """The losses [B] of answers at timesteps t [B], as the recipe weighs them; `masks` [B, 1, H, W] say what counts."""
    device, loss_type = run.device, run.job.recipe.loss_type
    masks = None if masks is None else masks.to(device, non_blocking=True)
    thresholds = None
    if loss_type is not LossType.L2:
        thresholds = run.huber_thresholds[t].to(device, non_blocking=True)
    losses = sample_losses(prediction, target, loss_type=loss_type, thresholds=thresholds, mask=masks)
    return losses * run.loss_weights[t].to(device, non_blocking=True)


def answer(run: Run, noisy: Tensor, t: Tensor, captions: Sequence[str], items: Sequence[Item]) -> Tensor:
    """What the UNet says [B, C, H, W] to noisy latents at timesteps [B], with captions and size conditioning."""
    time_ids = torch.tensor([item.time_ids for item in items], device=run.device)
    with run.autocast():
        text = run.encode(captions)
        prediction: Tensor = run.base.unet(
            noisy.to(run.device, run.dtype, non_blocking=True),
            t.to(run.device),
            encoder_hidden_states=text.hidden.to(run.dtype),
            added_cond_kwargs={"text_embeds": text.pooled, "time_ids": time_ids},
            return_dict=False,
        )[0]
    return prediction
