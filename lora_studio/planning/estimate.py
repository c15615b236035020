"""The length, the duration and the memory of a run on given images."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from math import ceil
from typing import Any

from lora_studio.dataset.buckets import Size
from lora_studio.dataset.training_images import DatasetImages, samples_per_bucket
from lora_studio.models.catalogue import KnownBase
from lora_studio.planning.planned_memory import PlannedMemory, plan_memory
from lora_studio.planning.speeds import MeasuredSpeed
from lora_studio.planning.steps import StepCount, count_steps, with_global_batch
from lora_studio.planning.timing import SecondsRange, measured_step, run_seconds
from lora_studio.settings.recipe import Recipe

# What the samples of an epoch and their buckets depend on.
SAMPLE_SETTINGS = (
    "repeats",
    "validation_split",
    "seed",
    "resolution",
    "enable_bucket",
    "min_bucket_reso",
    "max_bucket_reso",
    "bucket_reso_steps",
    "bucket_no_upscale",
)


@dataclass(frozen=True)
class RunEstimator:
    """Counts the steps of recipes on these images, and estimates how long they take.

    `gpu` is the GPU's name, if it is known. `speeds` are those of runs with the same base on it, the latest last.
    Steps are those of all `processes` together; recipes have the batch size of each. `samples` caches how many samples
    of an epoch each bucket has: own images and regularisation images.
    """

    images: DatasetImages
    regularization: DatasetImages | None
    base: KnownBase | None
    vram_gib: float | None
    gpu: str
    speeds: Sequence[MeasuredSpeed]
    processes: int = 1
    samples: dict[tuple[Any, ...], tuple[Counter[Size], Counter[Size]]] = field(default_factory=dict)

    def steps(self, recipe: Recipe) -> StepCount:
        """Return the length of a run; raises InputError if there is nothing to train on."""
        own, regularization = self._samples(recipe)
        return count_steps(
            own + regularization,
            batch_size=with_global_batch(recipe, self.processes).batch_size,
            gradient_accumulation_steps=recipe.gradient_accumulation_steps,
            epochs=recipe.epochs,
            max_train_steps=recipe.max_train_steps,
        )

    def largest_batch_pixels(self, recipe: Recipe) -> int:
        """Return the pixels of the largest shard of a batch on one GPU."""
        whole, (own, regularization) = with_global_batch(recipe, self.processes).batch_size, self._samples(recipe)
        counts = (own + regularization).items()
        return max(width * height * ceil(min(count, whole) / self.processes) for (width, height), count in counts)

    def memory(self, recipe: Recipe) -> PlannedMemory:
        """Return the memory of a run."""
        return plan_memory(
            recipe,
            self.base,
            self.vram_gib,
            processes=self.processes,
            runs=self.speeds,
            pixels=self.largest_batch_pixels(recipe),
        )

    def own_share(self, recipe: Recipe) -> float:
        """Return the share of an epoch's samples that are not regularisation images."""
        return self._samples(recipe)[0].total() / self.steps(recipe).samples_per_epoch

    def seconds(self, recipe: Recipe) -> SecondsRange:
        """Return how long a run takes."""
        return run_seconds(
            recipe,
            self.steps(recipe),
            images=self.images.total,
            processes=self.processes,
            base=self.base,
            vram_gib=self.vram_gib,
            gpu=self.gpu,
            measured=measured_step(self.speeds, recipe, self.base, self.vram_gib, processes=self.processes),
        )

    def _samples(self, recipe: Recipe) -> tuple[Counter[Size], Counter[Size]]:
        key = tuple(getattr(recipe, name) for name in SAMPLE_SETTINGS)
        if key not in self.samples:
            split = self.images.split(recipe, self.regularization)
            self.samples[key] = (
                samples_per_bucket(split.training, recipe),
                samples_per_bucket(split.regularization, recipe),
            )
        return self.samples[key]
