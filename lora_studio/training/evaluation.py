"""Losses at fixed images, noise and timesteps, without augmentation: two evaluations differ by the weights alone.

An evaluation point is one image at one timestep with one noise. Weights of timesteps and masks are as in training, but
neither a noise offset nor an input perturbation is added. All draws have generators of their own, so that evaluations
do not change a run.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lora_studio.dataset.buckets import Size
from lora_studio.training.data.augment import all_augmentations, image_seed
from lora_studio.training.data.caption_variants import fixed_caption
from lora_studio.training.data.dataset import TrainItem
from lora_studio.training.data.rng import generator
from lora_studio.training.trainer import Trainer, eval_mode


@dataclass(frozen=True)
class EvaluationPoint:
    """An image with its caption, a timestep, and the `number` of the noise."""

    item: TrainItem
    caption: str
    timestep: int
    number: int


def training_points(trainer: Trainer, count: int) -> list[EvaluationPoint]:
    """Return `count` evaluation points on training images, with one augmentation and caption variant of each."""
    job, items = trainer.job, evenly_spaced(trainer.dataset.items, count)
    plain = [all_augmentations(item, trainer.recipe)[0] for item in items]
    return _spread(trainer, plain, [fixed_caption(item, job) for item in items], count)


def validation_points(trainer: Trainer, count: int) -> list[EvaluationPoint]:
    """Return `count` evaluation points on images of the validation split, with their captions as they are."""
    items = evenly_spaced(trainer.dataset.validation_items, count)
    return _spread(trainer, items, [item.caption for item in items], count)


def evaluate(
    trainer: Trainer, points: Sequence[EvaluationPoint], should_stop: Callable[[], bool]
) -> list[float] | None:
    """Return the weighted loss at each point with the weights as they are; None after a stop request."""
    losses = [0.0] * len(points)
    with eval_mode(trainer.base.unet, *trainer.base.text_encoders), torch.no_grad():
        for numbers in _batches(points, trainer.recipe.batch_size):
            if should_stop():
                return None
            found = _losses(trainer, [points[number] for number in numbers])
            for number, loss in zip(numbers, found.tolist(), strict=True):
                losses[number] = loss
    return losses


def evenly_spaced(items: Sequence[TrainItem], limit: int) -> list[TrainItem]:
    """Return at most `limit` of the items, evenly spaced."""
    count = min(limit, len(items))
    return [items[place * len(items) // count] for place in range(count)]


def _spread(trainer: Trainer, items: Sequence[TrainItem], captions: Sequence[str], count: int) -> list[EvaluationPoint]:
    """Return points at the midpoints of `count` equal parts of the recipe's timestep range; images take turns."""
    recipe = trainer.recipe
    total = trainer.base.noise_scheduler.config["num_train_timesteps"]
    begin, end = recipe.min_timestep, min(recipe.max_timestep, total)
    return [
        EvaluationPoint(
            items[number % len(items)],
            captions[number % len(items)],
            begin + int((number + 0.5) / count * (end - begin)),
            number,
        )
        for number in range(count)
    ]


def _losses(trainer: Trainer, points: Sequence[EvaluationPoint]) -> Tensor:
    """Return the weighted losses [B] of points of one bucket, on the CPU."""
    items = [point.item for point in points]
    means = torch.stack([trainer.collator.latents.load(item)[0] for item in items])
    noise = torch.stack([_noise(means.shape[1:], trainer.recipe.seed, point) for point in points])
    t = torch.tensor([point.timestep for point in points])
    captions = [point.caption for point in points]
    inputs = trainer.collator.assemble(items, captions, means, noise, t, len(points))
    return trainer.batch_loss(inputs.to(trainer.device)).cpu()


def _noise(shape: torch.Size, seed: int, point: EvaluationPoint) -> Tensor:
    return torch.randn(shape, generator=generator(seed, "fixed noise", image_seed(point.item), point.number))


def _batches(points: Sequence[EvaluationPoint], batch_size: int) -> Iterator[list[int]]:
    """Yield the numbers of the points in batches of one bucket each."""
    buckets: dict[Size, list[int]] = defaultdict(list)
    for number, point in enumerate(points):
        buckets[point.item.placement.bucket].append(number)
    for _, numbers in sorted(buckets.items()):
        for start in range(0, len(numbers), batch_size):
            yield numbers[start : start + batch_size]
