"""The length and the duration of a run on given images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lora_studio.dataset.training_images import DatasetImages, samples_per_bucket
from lora_studio.models.catalogue import KnownBase
from lora_studio.planning.speeds import MeasuredSpeed
from lora_studio.planning.steps import StepCount, count_steps
from lora_studio.planning.timing import SecondsRange, measured_step, run_seconds
from lora_studio.settings.recipe import Recipe


@dataclass(frozen=True)
class RunEstimator:
    """Counts the steps of recipes on these images, and estimates how long they take.

    `gpu` is the GPU's name, if it is known. `speeds` are those of runs with the same base on it, the latest last.
    """

    images: DatasetImages
    regularization: DatasetImages | None
    base: KnownBase | None
    vram_gib: float | None
    gpu: str
    speeds: Sequence[MeasuredSpeed]

    def steps(self, recipe: Recipe) -> StepCount:
        """Return the length of a run; raises InputError if there is nothing to train on."""
        split = self.images.split(recipe, self.regularization)
        return count_steps(
            samples_per_bucket(split.training, recipe) + samples_per_bucket(split.regularization, recipe),
            batch_size=recipe.batch_size,
            gradient_accumulation_steps=recipe.gradient_accumulation_steps,
            epochs=recipe.epochs,
            max_train_steps=recipe.max_train_steps,
        )

    def own_share(self, recipe: Recipe) -> float:
        """Return the share of an epoch's samples that are not regularisation images."""
        own = samples_per_bucket(self.images.split(recipe, self.regularization).training, recipe).total()
        return own / self.steps(recipe).samples_per_epoch

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
