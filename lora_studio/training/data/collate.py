"""Collate batches: read cached latents and text embeddings, draw noise and timesteps, and build the training tensors.

A batch depends on the job, the step number and the sample numbers within the step, and on nothing else. So it can be
prefetched in another thread, and a resumed run gets the same numbers as an uninterrupted one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from math import ceil

import torch
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from torch import Tensor
from transformers import CLIPTokenizer

from lora_studio.models.text_encoding import tokenize
from lora_studio.settings.choices import LossType, MaskedLoss
from lora_studio.settings.job_specs import TrainJob
from lora_studio.training.data.augment import augment
from lora_studio.training.data.batch import BatchTensors, StepBatches
from lora_studio.training.data.cache import LatentCache, TextCache
from lora_studio.training.data.caption_variants import training_caption
from lora_studio.training.data.dataset import Batch, Dataset, TrainItem, epoch_steps
from lora_studio.training.distributed import RankGroup
from lora_studio.training.objective import (
    adaptive_noise_offset,
    draw_latent,
    draw_noise,
    draw_perturbation,
    draw_timestep,
    huber_thresholds,
    random_strength,
    signal_to_noise,
    timestep_weights,
    training_target,
)


@dataclass
class Collator:
    """Builds the batches of a run from its dataset and caches.

    `texts` is None where the text encoders are trained; `scaling_factor` is the VAE's, `device` and `dtype` are those
    of the forward pass.
    """

    job: TrainJob
    dataset: Dataset
    steps_per_epoch: int
    total_steps: int
    noise_scheduler: DDPMScheduler
    prediction_type: str
    scaling_factor: float
    tokenizers: list[CLIPTokenizer]
    latents: LatentCache
    texts: TextCache | None
    device: torch.device
    dtype: torch.dtype
    ranks: RankGroup = field(default_factory=RankGroup)
    # the batches of the steps of the last epochs: the prefetching thread may be an epoch ahead
    _epoch_steps: dict[int, list[list[Batch]]] = field(default_factory=dict)

    @cached_property
    def loss_weights(self) -> Tensor:
        """The loss weight of each timestep [T], on the CPU."""
        recipe = self.job.recipe
        return timestep_weights(
            signal_to_noise(self.noise_scheduler),
            self.prediction_type,
            gamma=recipe.min_snr_gamma,
            debiased=recipe.debiased_estimation_loss,
        )

    @cached_property
    def huber_thresholds(self) -> Tensor:
        """The threshold of the Huber loss at each timestep [T], on the CPU."""
        recipe = self.job.recipe
        return huber_thresholds(self.noise_scheduler, recipe.huber_schedule, recipe.huber_c)

    def batches(self, step: int) -> list[Batch]:
        """Return the batches of a step (counted from 0), over all ranks."""
        epoch, position = divmod(step, self.steps_per_epoch)
        steps = self._epoch_steps.get(epoch)
        if steps is None:
            steps = epoch_steps(self.dataset, self.job.recipe, epoch)
            recent = {number: found for number, found in self._epoch_steps.items() if abs(number - epoch) == 1}
            self._epoch_steps = {**recent, epoch: steps}
        return steps[position]

    def images(self, step: int) -> list[str | None]:
        """Return the path of the image of each sample of a step, over all ranks; None for regularisation images."""
        return [None if item.prior else str(item.path) for batch in self.batches(step) for item in batch]

    def batch_pixels(self, step: int) -> int:
        """Return the pixels of the largest shard of the batches of a step."""
        return max(ceil(len(batch) / self.ranks.world_size) * _area(batch) for batch in self.batches(step))

    def largest_batch(self) -> Batch:
        """Return this rank's shard of the batch of the first epoch that has the most pixels."""
        batches = [batch for step in epoch_steps(self.dataset, self.job.recipe, 0) for batch in step]
        largest = max(batches, key=lambda batch: len(batch) * _area(batch))
        return list(self.ranks.shard(largest)[1]) or largest[:1]

    def collate_step(self, step: int) -> StepBatches:
        """Build this rank's shard of the batches of a step (counted from 0). Raises JobError if a file is missing."""
        sample_count = sum(len(batch) for batch in self.batches(step))
        found: list[tuple[int, BatchTensors]] = []
        for first, shard in self.shards(step):
            tensors = self.collate(step, shard, first, sample_count)
            found.append((first, tensors.pin_memory() if self.device.type == "cuda" else tensors))
        return StepBatches(sample_count, found)

    def shards(self, step: int) -> Iterator[tuple[int, Batch]]:
        """Yield this rank's shard of each batch of a step that has one, and the index of its first sample therein."""
        start = 0
        for batch in self.batches(step):
            offset, shard = self.ranks.shard(batch)
            if shard:
                yield start + offset, list(shard)
            start += len(batch)

    def collate(self, step: int, batch: Batch, first: int, sample_count: int) -> BatchTensors:
        """Build the tensors of a batch of a step of `sample_count` samples; `first` is the index of its first one."""
        recipe, cached = self.job.recipe, self.texts is not None
        items = [augment(item, recipe, step, sample) for sample, item in enumerate(batch, first)]
        captions = [
            training_caption(item, self.job, step, sample, cached=cached, total_steps=self.total_steps)
            for sample, item in enumerate(items, first)
        ]
        latents, noise, perturbations = [], [], []
        for sample, item in enumerate(items, first):
            mean, logvar = self.latents.load(item)
            latents.append(draw_latent(mean, logvar, recipe.seed, step, sample))
            noise.append(self._noise(latents[-1], step, sample))
            if recipe.ip_noise_gamma:
                perturbations.append(self._perturbation(latents[-1], step, sample))
        t = torch.tensor(self.timesteps(step, first, len(batch)))
        perturbation = torch.stack(perturbations) if perturbations else None
        return self.assemble(items, captions, torch.stack(latents), torch.stack(noise), t, sample_count, perturbation)

    def _noise(self, latents: Tensor, step: int, sample: int) -> Tensor:
        """Draw the noise of a sample with unscaled latents, both [C, H/8, W/8]."""
        recipe = self.job.recipe
        key = (recipe.seed, step, sample)
        strength = recipe.noise_offset
        if recipe.noise_offset_random_strength:
            strength = random_strength(strength, "noise offset", *key)
        offset: float | Tensor = strength
        if recipe.adaptive_noise_scale:
            offset = adaptive_noise_offset(strength, recipe.adaptive_noise_scale, latents * self.scaling_factor)
        return draw_noise(
            tuple(latents.shape),
            *key,
            offset,
            multires_iterations=recipe.multires_noise_iterations,
            multires_discount=recipe.multires_noise_discount,
        )

    def _perturbation(self, latents: Tensor, step: int, sample: int) -> Tensor:
        """Draw the input perturbation of a sample."""
        recipe = self.job.recipe
        key = (recipe.seed, step, sample)
        gamma = recipe.ip_noise_gamma
        if recipe.ip_noise_gamma_random_strength:
            gamma = random_strength(gamma, "perturbation", *key)
        return draw_perturbation(tuple(latents.shape), gamma, *key)

    def timesteps(self, step: int, first: int, count: int) -> list[int]:
        """Return the timesteps of `count` samples of a step, from sample `first` on."""
        recipe, total = self.job.recipe, self.noise_scheduler.config["num_train_timesteps"]
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
        self,
        items: Sequence[TrainItem],
        captions: Sequence[str],
        latents: Tensor,
        noise: Tensor,
        t: Tensor,
        sample_count: int,
        perturbation: Tensor | None = None,
    ) -> BatchTensors:
        """Build a batch from unscaled latents and noise, both [B, C, H/8, W/8] in fp32, and timesteps [B].

        `perturbation`, of the same shape, is added to the noise in the UNet's input only.
        """
        recipe = self.job.recipe
        clean = latents * self.scaling_factor
        added = noise if perturbation is None else noise + perturbation
        hidden = pooled = tokens = None
        if self.texts is None:
            tokens = tokenize(self.tokenizers, captions, recipe.max_token_length)
        else:
            hidden, pooled = self.texts.load(captions, self.dtype)
        set_weights = torch.tensor([recipe.prior_loss_weight if item.prior else 1.0 for item in items])
        return BatchTensors(
            noisy=self.noise_scheduler.add_noise(clean, added, t).to(self.dtype),  # type: ignore[arg-type]
            target=training_target(self.noise_scheduler, self.prediction_type, clean, noise, t),
            t=t,
            time_ids=torch.tensor([item.time_ids for item in items]),
            weights=self.loss_weights[t] * set_weights,
            sample_count=torch.tensor(float(sample_count)),
            hidden=hidden,
            pooled=pooled,
            tokens=tokens,
            thresholds=None if recipe.loss_type is LossType.L2 else self.huber_thresholds[t],
            masks=self._masks(items),
        )

    def _masks(self, items: Sequence[TrainItem]) -> Tensor | None:
        """Return the loss weights [B, 1, H/8, W/8] of masked loss, at least the recipe's unmasked_weight."""
        recipe = self.job.recipe
        if recipe.masked_loss is MaskedLoss.OFF:
            return None
        return torch.stack([self.latents.load_mask(item) for item in items]).clamp(min=recipe.unmasked_weight)


def _area(batch: Batch) -> int:
    """Return the pixels of each image of a batch, which is of one bucket."""
    width, height = batch[0].placement.bucket
    return width * height
