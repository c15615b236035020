"""The length and the duration of a run on given images."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from lora_studio.dataset.buckets import Size
from lora_studio.dataset.training_images import DatasetImages, samples_per_bucket
from lora_studio.models.catalogue import KnownBase
from lora_studio.planning.speeds import MeasuredSpeed
from lora_studio.planning.steps import StepCount, count_steps
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
    `samples` caches how many samples of an epoch each bucket has: own images and regularisation images.
    """

    images: DatasetImages
    regularization: DatasetImages | None
    base: KnownBase | None
    vram_gib: float | None
    gpu: str
    speeds: Sequence[MeasuredSpeed]
    samples: dict[tuple[Any, ...], tuple[Counter[Size], Counter[Size]]] = field(default_factory=dict)

    def steps(self, recipe: Recipe) -> StepCount:
        """Return the length of a run; raises InputError if there is nothing to train on."""
        own, regularization = self._samples(recipe)
        return count_steps(
            own + regularization,
            batch_size=recipe.batch_size,
            gradient_accumulation_steps=recipe.gradient_accumulation_steps,
            epochs=recipe.epochs,
            max_train_steps=recipe.max_train_steps,
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
            base=self.base,
            vram_gib=self.vram_gib,
            gpu=self.gpu,
            measured=measured_step(self.speeds, recipe, self.base, self.vram_gib),
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
