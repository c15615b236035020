"""The number of steps of a run. Plan and trainer use the same function, so they always agree.

A batch holds images of one bucket. In every epoch each bucket yields its images (times repeats) in batches, of which
the last may be short. `gradient_accumulation_steps` batches make an optimizer step; accumulation does not continue over
the end of an epoch, so its last step may be short too. Several processes share every batch: see `with_global_batch`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lora_studio.errors import InputError
from lora_studio.settings.recipe import Recipe


@dataclass(frozen=True)
class StepCount:
    """The length of a run.

    `samples_per_epoch` counts images times repeats. `empty_slots` are the unused places in an epoch's short batches.
    `total_steps` is limited by max_train_steps, and `epochs` counts the epochs that begin within it.
    """

    samples_per_epoch: int
    batches_per_epoch: int
    steps_per_epoch: int
    total_steps: int
    epochs: int
    empty_slots: int


def count_steps(
    bucket_counts: Mapping[Any, int],
    *,
    batch_size: int,
    epochs: int,
    gradient_accumulation_steps: int = 1,
    max_train_steps: int | None = None,
) -> StepCount:
    """Count batches and steps; `bucket_counts` maps a bucket to its images times their repeats.

    steps per epoch = ceil(sum over buckets of ceil(count / batch_size) / gradient_accumulation_steps).
    Raises InputError if there is nothing to train on.
    """
    samples = sum(bucket_counts.values())
    if samples < 1:
        raise InputError("The dataset has no images to train on.", "Add images to the dataset.", code="no_images")
    batches = sum(_ceil_div(count, batch_size) for count in bucket_counts.values())
    per_epoch = _ceil_div(batches, gradient_accumulation_steps)
    total = per_epoch * epochs
    if max_train_steps is not None:
        total = min(total, max_train_steps)
    return StepCount(
        samples_per_epoch=samples,
        batches_per_epoch=batches,
        steps_per_epoch=per_epoch,
        total_steps=total,
        epochs=_ceil_div(total, per_epoch),
        empty_slots=batches * batch_size - samples,
    )


def with_global_batch(recipe: Recipe, processes: int) -> Recipe:
    """Return the recipe with the batch size over all `processes`, with which a run of several is planned and trained.

    N processes with batch size B take the steps of one with batch size N * B, each with its shard of every batch.
    """
    return recipe.model_copy(update={"batch_size": recipe.batch_size * processes})


def warmup_steps(setting: float, total_steps: int) -> int:
    """Return the number of warm-up steps, at most `total_steps`; a `setting` below 1 is a share of the run."""
    return int(setting * total_steps) if setting < 1 else min(int(setting), total_steps)


def text_encoder_stop(setting: float, total_steps: int) -> int:
    """Return the number of steps after which text encoders are not trained further; a `setting` of 0 means all."""
    return max(1, warmup_steps(setting, total_steps)) if setting else total_steps


def _ceil_div(count: int, size: int) -> int:
    return -(-count // size)
