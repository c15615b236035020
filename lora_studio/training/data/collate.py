"""What a batch goes into a step with: all that varies from step to step, made on the CPU from the caches.

It depends on the job, the number of the step and of its samples, and on nothing else. So it can be made ahead of time
and in another thread, and a run that was stopped goes on with the numbers that it would have had.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lora_studio.models.text_encoding import tokenize
from lora_studio.settings.choices import LossType, MaskedLoss
from lora_studio.training.data.augment import view_of
from lora_studio.training.data.caption_variants import caption_of
from lora_studio.training.data.dataset import Batch, Item
from lora_studio.training.objective import draw_latent, draw_noise, draw_timestep, training_target

if TYPE_CHECKING:
    from lora_studio.training.loop import Run


@dataclass(frozen=True)
class Prepared:
    """A batch of B samples as tensors.

    `noisy` [B, C, H/8, W/8] in the run's precision and `target` of the same shape in fp32; `t` [B] and `time_ids`
    [B, 6] as integers; `weights` [B] of the losses. Text is `hidden` [B, 77 n, D] and `pooled` [B, P], or, where the
    text encoders are trained, `tokens` [encoders, B, n, 77]. `thresholds` [B] are there with a Huber loss, `masks`
    [B, 1, H/8, W/8] in 0..1 with masked loss.
    """

    noisy: Tensor
    target: Tensor
    t: Tensor
    time_ids: Tensor
    weights: Tensor
    hidden: Tensor | None = None
    pooled: Tensor | None = None
    tokens: Tensor | None = None
    thresholds: Tensor | None = None
    masks: Tensor | None = None

    @property
    def tensors(self) -> dict[str, Tensor]:
        """Those that are there, by name."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: value for name, value in values.items() if value is not None}

    def pinned(self) -> Prepared:
        """The batch in page-locked memory, from which a CUDA GPU copies while the CPU goes on."""
        return replace(self, **{name: value.pin_memory() for name, value in self.tensors.items()})

    def to(self, device: torch.device) -> Prepared:
        """The batch on a device; nobody waits for the copy."""
        return replace(self, **{name: value.to(device, non_blocking=True) for name, value in self.tensors.items()})


@dataclass(frozen=True)
class StepInputs:
    """The samples of a step: how many all processes have together, and this one's batches.

    Each batch comes with the number of its first sample within the step.
    """

    samples: int
    batches: list[tuple[int, Prepared]]


def prepare_step(run: Run, step: int) -> StepInputs:
    """This process's share of the batches of a step (counted from 0). Raises JobError if a cache file is gone."""
    found: list[tuple[int, Prepared]] = []
    first = 0
    for batch in run.batches(step):
        place, share = run.ranks.shard(batch)
        if share:
            prepared = prepare(run, step, list(share), first + place)
            found.append((first + place, prepared.pinned() if run.device.type == "cuda" else prepared))
        first += len(batch)
    return StepInputs(first, found)


def prepare(run: Run, step: int, batch: Batch, first: int) -> Prepared:
    """The samples of a batch as a step shows them; `first` is the number of its first sample within the step."""
    recipe, cached = run.job.recipe, run.texts is not None
    items = [view_of(item, recipe, step, sample) for sample, item in enumerate(batch, first)]
    captions = [caption_of(item, run.job, step, sample, cached=cached) for sample, item in enumerate(items, first)]
    latents, noise = [], []
    for sample, item in enumerate(items, first):
        mean, logvar = run.latents.load(item)
        key = (recipe.seed, step, sample)
        latents.append(draw_latent(mean, logvar, *key))
        noise.append(
            draw_noise(
                tuple(mean.shape),
                *key,
                recipe.noise_offset,
                multires_iterations=recipe.multires_noise_iterations,
                multires_discount=recipe.multires_noise_discount,
            )
        )
    t = torch.tensor(step_timesteps(run, step, first, len(batch)))
    return assemble(run, items, captions, torch.stack(latents), torch.stack(noise), t)


def step_timesteps(run: Run, step: int, first: int, count: int) -> list[int]:
    """The timesteps of the `count` samples of a step that begin with number `first`."""
    recipe, total = run.job.recipe, run.base.noise_scheduler.config.num_train_timesteps
    return [
        draw_timestep(
            recipe.seed,
            step,
            sample,
            min(recipe.max_timestep, total),
            begin=recipe.min_timestep,
            sampling=recipe.timestep_sampling,
        )
        for sample in range(first, first + count)
    ]


def assemble(
    run: Run, items: Sequence[Item], captions: Sequence[str], latents: Tensor, noise: Tensor, t: Tensor
) -> Prepared:
    """A batch of latents as the VAE gives them, with noise, both [B, C, H/8, W/8] in fp32, at timesteps [B]."""
    recipe, scheduler = run.job.recipe, run.base.noise_scheduler
    clean = latents * run.base.vae.config.scaling_factor
    hidden = pooled = tokens = None
    if run.texts is None:
        tokens = tokenize(run.base.tokenizers, captions, recipe.max_token_length)
    else:
        hidden, pooled = run.texts.load(captions, run.dtype)
    masked = recipe.masked_loss is not MaskedLoss.OFF
    shares = torch.tensor([recipe.prior_loss_weight if item.prior else 1.0 for item in items])
    return Prepared(
        noisy=scheduler.add_noise(clean, noise, t).to(run.dtype),
        target=training_target(scheduler, run.base.prediction_type, clean, noise, t),
        t=t,
        time_ids=torch.tensor([item.time_ids for item in items]),
        weights=run.loss_weights[t] * shares,
        hidden=hidden,
        pooled=pooled,
        tokens=tokens,
        thresholds=None if recipe.loss_type is LossType.L2 else run.huber_thresholds[t],
        masks=torch.stack([run.latents.load_mask(item) for item in items]) if masked else None,
    )
