"""Make a recommended recipe fit a GPU's memory and a limit on the time."""

from __future__ import annotations

from bisect import bisect_right

from lora_studio import guide
from lora_studio.models.catalogue import KnownBase
from lora_studio.planning.estimate import RunEstimator
from lora_studio.planning.length import batch_of, split_batch
from lora_studio.planning.memory import fit_vram
from lora_studio.planning.recommend import RecipeDraft, accumulation_reason
from lora_studio.planning.timing import describe_duration
from lora_studio.settings.recipe import Recipe


def fit_memory(
    draft: RecipeDraft, recipe: Recipe, base: KnownBase | None, vram_gib: float, *, processes: int = 1
) -> Recipe:
    """Lower the recipe's memory until it fits `vram_gib`, with as many images in a step as before.

    Values that the caller gave are kept.
    """
    fitted, savings = fit_vram(recipe, base, vram_gib, keep=draft.given, processes=processes)
    for saving in savings:
        value = getattr(fitted, saving.setting)
        draft.set(saving.setting, value, f"To fit {vram_gib:g} GiB. {saving.why}", guided=saving.guide)
    if draft.given.keys() & {"batch_size", "gradient_accumulation_steps"} or fitted.batch_size == recipe.batch_size:
        return fitted
    size, count = split_batch(batch_of(recipe), fitted.batch_size)
    draft.set("batch_size", size)
    draft.set("gradient_accumulation_steps", count, accumulation_reason(size, count, processes))
    return fitted.model_copy(update={"batch_size": size, "gradient_accumulation_steps": count})


def fit_time(
    draft: RecipeDraft, recipe: Recipe, run: RunEstimator, hours: float, tier: guide.Tier, least_steps: int
) -> Recipe:
    """Shorten a run until it takes about `hours`.

    Repeats go first, then epochs down to the tier's fewest, then steps down to `least_steps`. Values that the caller
    gave are kept.
    """
    limit = hours * 3600
    why = f"To take about {describe_duration(limit)}, by a rough estimate. {guide.RECIPE['training_hours'].why}"

    def seconds(recipe: Recipe) -> float:
        return run.seconds(recipe).middle

    for setting, least in (("repeats", 1), ("epochs", tier.epochs[0])):
        while setting not in draft.given and (getattr(recipe, setting) or 0) > least and seconds(recipe) > limit:
            draft.set(setting, getattr(recipe, setting) - 1, why)
            recipe = recipe.model_copy(update={setting: draft.get(setting)})
    steps = range(least_steps, run.steps(recipe).total_steps)
    if seconds(recipe) <= limit or "max_train_steps" in draft.given or not steps:
        return recipe
    fitting = bisect_right(steps, limit, key=lambda most: seconds(recipe.model_copy(update={"max_train_steps": most})))
    most = steps[max(0, fitting - 1)]
    draft.set("max_train_steps", most, why)
    return recipe.model_copy(update={"max_train_steps": most})
