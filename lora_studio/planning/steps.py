"""How many steps a run takes. The trainer calls this very function, so that a plan and its run never disagree.

A batch holds images of one bucket. In every epoch each bucket yields its images (times repeats) in batches, the last of
which may be short; batches are gathered into steps of `gradient_accumulation_steps`, the last of an epoch may be short
too: an accumulation does not reach over an epoch's end.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lora_studio.errors import InputError


@dataclass(frozen=True)
class StepCount:
    """The length of a run.

    `samples_per_epoch` counts images times repeats; `empty_slots` are the places that an epoch's short batches leave
    empty; `total_steps` includes the limit of max_train_steps, and `epochs` are those that begin within it.
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
        raise InputError("There are no images to train on.", "Add images to the dataset.", code="no_images")
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


def balanced_repeats(own: Sequence[int], samples: int) -> list[int]:
    """How often an epoch shows each regularisation image, beside `samples` training samples; `own` are their repeats.

    As in kohya's sd-scripts: images are taken in order, each as often as its folder says, until there are as many as
    training samples; while there are not, each is taken once more, in order. So 0 stands for images that are not
    needed, and where repeats are above 1 the last image may reach past the mark.
    """
    repeats = [0] * len(own)
    total = 0
    for index, count in enumerate(own):
        if total >= samples:
            return repeats
        repeats[index] = count
        total += count
    if own and (missing := samples - total) > 0:
        rounds, rest = divmod(missing, len(own))
        repeats = [count + rounds + (index < rest) for index, count in enumerate(repeats)]
    return repeats


def warmup_steps(setting: float, total_steps: int) -> int:
    """The steps of a warm-up: whole ones from 1 on, below that a share of the run. Never more than the run has."""
    return int(setting * total_steps) if setting < 1 else min(int(setting), total_steps)


def _ceil_div(count: int, size: int) -> int:
    return -(-count // size)
