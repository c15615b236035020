"""How long a run should be, so that it learns about as much with any number of images, batch size and GPU.

An optimizer of Adam's kind moves each weight by about the learning rate in every step, whatever the size of the
gradient. Runs learn equally if steps x rate x sqrt(batch) are equal: the square root scaling rule (Malladi et al. 2022,
arXiv:2205.10287). So at one rate a batch of 4 needs 1/sqrt(2) of the steps of a batch of 2, with sqrt(2) times its
images.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil, log, sqrt

from lora_studio import guide
from lora_studio.planning.rates import usual_rate
from lora_studio.settings.choices import LoraKind
from lora_studio.settings.recipe import Recipe

FEW_STEPS, MANY_STEPS = 500, 5000  # steps at batch size 1 that LoRA calculators call too few and too many
MAX_VIEWS_PER_IMAGE = 300  # times that a run shows the same image
TOLERANCE = 0.1  # of the target; within it the epochs decide


@dataclass(frozen=True)
class Length:
    """How often each image is shown in an epoch, and the number of epochs."""

    repeats: int
    epochs: int


def batch_of(recipe: Recipe, processes: int = 1) -> int:
    """Return the number of images in an optimizer step of `processes` GPUs together."""
    return recipe.batch_size * recipe.gradient_accumulation_steps * processes


def target_steps(kind: LoraKind, batch: int) -> float:
    """Return the number of steps that a kind of LoRA takes at the guide's rate with `batch` images a step."""
    return guide.KINDS[kind.value].steps * sqrt(guide.RECIPE["batch_size"].value / batch)


def steps_at_batch_one(recipe: Recipe, steps: int, processes: int = 1) -> float:
    """Return the number of steps of one image at the guide's rate that learn as much as `steps` of this recipe."""
    optimizer = guide.OPTIMIZERS[recipe.optimizer.value]
    share = 1.0
    if recipe.unet_lr and not optimizer.learning_rate_free:
        share = recipe.unet_lr / usual_rate("unet_lr", recipe)
    return steps * share * sqrt(batch_of(recipe, processes))


def choose_length(
    images: int,
    batch: int,
    target: float,
    tier: guide.Tier,
    *,
    repeats: int | None = None,
    epochs: int | None = None,
) -> Length:
    """Return the length whose steps are near `target`, with epochs within the tier's range; given values are kept.

    Among lengths within `TOLERANCE` of the target it is the one whose epochs are nearest to those of `usual_epochs`. No
    image is shown more than MAX_VIEWS_PER_IMAGE times, so that a few images get fewer steps.
    """
    usual = usual_epochs(tier, images)

    def distance(length: Length) -> tuple[float, int, float]:
        error = abs(log(images * length.repeats * length.epochs / batch / target))
        return max(error, log(1 + TOLERANCE)), abs(length.epochs - usual), error

    low, high = tier.epochs
    options = []
    for count in [epochs] if epochs is not None else range(low, high + 1):
        exact = min(target * batch / (images * count), MAX_VIEWS_PER_IMAGE // count)
        options += [Length(shown, count) for shown in ([repeats] if repeats else [max(1, int(exact)), ceil(exact)])]
    return min(options, key=distance)


def usual_epochs(tier: guide.Tier, images: int) -> int:
    """Interpolate the epochs within the tier's range, linearly over the logarithm of the number of images."""
    low, high = tier.epochs
    last = tier.high or 4 * tier.low
    share = (log(max(images, tier.low)) - log(tier.low)) / (log(last) - log(tier.low))
    return round(high - min(1.0, share) * (high - low))


def split_batch(batch: int, most: int) -> tuple[int, int]:
    """Return the batch size, at most `most`, and the accumulation steps that make `batch` images a step."""
    size = max(size for size in range(1, min(batch, most) + 1) if batch % size == 0)
    return size, batch // size
