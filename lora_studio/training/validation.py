"""The validation loss: how well the LoRA does on images that it is not trained on.

The loss of a training step depends mostly on its random timesteps and noise. Here both are fixed: each image is
evaluated with one noise at each of four timesteps, without image or caption augmentation, so that two evaluations
differ by the LoRA's weights alone. Timesteps and masks are weighted as in training: with enough images the mean is
comparable with the training loss, except that neither a noise offset nor an input perturbation is added.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from lora_studio.dataset.buckets import Size
from lora_studio.device import warn_if_out_of_memory
from lora_studio.events import PhaseEvent, Report, ValidationEvent
from lora_studio.training.data.augment import image_seed
from lora_studio.training.data.dataset import Batch, TrainItem
from lora_studio.training.data.rng import generator
from lora_studio.training.progress import Progress, ValidationLoss
from lora_studio.training.trainer import Trainer, eval_mode

# Of the recipe's timestep range: the midpoints of four equal parts (midpoint rule).
TIMESTEP_FRACTIONS = (1 / 8, 3 / 8, 5 / 8, 7 / 8)


def validate(
    trainer: Trainer, progress: Progress, epoch: int, *, report: Report, should_stop: Callable[[], bool]
) -> None:
    """Compute and report the validation loss, if there are validation images and no stop is requested meanwhile.

    `epoch` is the one that has ended, 0 before the first step. If memory runs out, a warning is reported instead.
    """
    if not trainer.dataset.validation_items:
        return
    report(PhaseEvent(message="Computing the validation loss"))
    loss = None
    with warn_if_out_of_memory(report, "validation_out_of_memory", "Memory ran out while computing validation loss."):
        loss = _validation_loss(trainer, should_stop)
    if loss is None:
        return
    progress.validation_losses.append(ValidationLoss(step=progress.step, epoch=epoch, loss=loss))
    report(ValidationEvent(step=progress.step, epoch=epoch, loss=loss))


def _validation_loss(trainer: Trainer, should_stop: Callable[[], bool]) -> float | None:
    """Return the mean loss over validation images and timesteps, None after a stop request."""
    items = trainer.dataset.validation_items
    total = torch.zeros((), dtype=torch.float64)
    with eval_mode(trainer.base.unet, *trainer.base.text_encoders), torch.no_grad():
        for batch in _batches(items, trainer.recipe.batch_size):
            if should_stop():
                return None
            total += sum(losses.cpu().double().sum() for losses in _losses(trainer, batch))
    return float(total) / (len(items) * len(TIMESTEP_FRACTIONS))


def _losses(trainer: Trainer, batch: Batch) -> Iterator[Tensor]:
    """Yield the weighted losses [B] of a batch at each of the timesteps."""
    recipe = trainer.recipe
    begin, end = (
        recipe.min_timestep,
        min(recipe.max_timestep, trainer.base.noise_scheduler.config["num_train_timesteps"]),
    )
    means = torch.stack([trainer.collator.latents.load(item)[0] for item in batch])
    captions = [item.caption for item in batch]
    for number, fraction in enumerate(TIMESTEP_FRACTIONS):
        t = torch.full((len(batch),), begin + int(fraction * (end - begin)))
        noise = torch.stack([_noise(means.shape[1:], recipe.seed, item, number) for item in batch])
        inputs = trainer.collator.assemble(batch, captions, means, noise, t, len(batch))
        yield trainer.batch_loss(inputs.to(trainer.device))


def _noise(shape: torch.Size, seed: int, item: TrainItem, number: int) -> Tensor:
    return torch.randn(shape, generator=generator(seed, "held-out noise", image_seed(item), number))


def _batches(items: list[TrainItem], batch_size: int) -> Iterator[Batch]:
    buckets: dict[Size, list[TrainItem]] = defaultdict(list)
    for item in items:
        buckets[item.placement.bucket].append(item)
    for _, members in sorted(buckets.items()):
        for start in range(0, len(members), batch_size):
            yield members[start : start + batch_size]
