"""The guide applied to a recipe: what cannot work (`recipe_errors`) and what is worth a second look (`check_recipe`).

Problems are told all at once and stop a run before it starts. Cautions are advice: they never stop anything.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from lora_studio.errors import ConfigError
from lora_studio.guide import (
    MIN_IMAGES,
    MIN_IMAGES_FOR_VALIDATION,
    MIN_SIDE,
    OPTIMIZERS,
    RECIPE,
    WARNING_SIGNS,
    BaseModel,
    tier_for,
)
from lora_studio.planning.cautions import Caution
from lora_studio.planning.memory import DESKTOP_GIB, estimate_vram_gib, fits, next_saving
from lora_studio.planning.optimizers import optimizer_cautions, optimizer_errors
from lora_studio.planning.steps import StepCount
from lora_studio.planning.timing import SecondsRange, format_duration
from lora_studio.planning.trigger import check_trigger
from lora_studio.settings.choices import GradientCheckpointing, PredictionType, ZeroTerminalSnr
from lora_studio.settings.recipe import Recipe

RANGE_CHECKED = ("unet_lr", "text_encoder_lr", "network_dim", "noise_offset", "clip_skip")
MAX_EMPTY_SHARE = 0.2  # share of an epoch's places that may stay empty before it is worth a word
MAX_VIEWS_PER_IMAGE = 300  # times that one image is shown in a run before it is worth a word
MAX_AREA_RATIO = 4.0  # largest over smallest image, in pixels


@dataclass(frozen=True, kw_only=True)
class CheckContext:
    """What checks may know beside the recipe; what is None is not checked. `sizes` are (width, height) in px.

    `own_share` is that of the dataset's images in an epoch's samples; the rest is regularisation.
    """

    base: BaseModel | None = None
    images: int | None = None
    sizes: Sequence[tuple[int, int]] | None = None
    own_share: float = 1.0
    count: StepCount | None = None
    vram_gib: float | None = None
    trigger_word: str | None = None
    seconds: SecondsRange | None = None


def recipe_errors(recipe: Recipe, base: BaseModel | None = None) -> list[str]:
    """Settings that cannot work together or with this base, a sentence each with the remedy; empty if all is well."""
    found = optimizer_errors(recipe)
    if base is not None and recipe.prediction_type not in (PredictionType.AUTO, base.prediction_type):
        found.append(
            f"prediction_type is {recipe.prediction_type.value}, but {base.name} predicts {base.prediction_type}. "
            "Set prediction_type to auto."
        )
    predicts = recipe.prediction_type.value
    if recipe.prediction_type is PredictionType.AUTO:
        predicts = base.prediction_type if base else ""
    return found + zero_snr_errors(recipe, predicts, base is not None and base.zero_terminal_snr)


def zero_snr_errors(recipe: Recipe, prediction_type: str, zero_terminal_snr: bool) -> list[str]:
    """Whether zero terminal SNR can work; the arguments are what will be predicted, and whether the base is so made."""
    if prediction_type != "epsilon" or not uses_zero_snr(recipe, zero_terminal_snr):
        return []
    remedy = "prediction_type to auto, or zero_terminal_snr to off"
    if recipe.zero_terminal_snr is ZeroTerminalSnr.ON:
        remedy = "zero_terminal_snr to auto, or choose a base that predicts v"
    elif recipe.prediction_type is PredictionType.AUTO:
        remedy = "zero_terminal_snr to off"
    return [
        "Zero terminal SNR cannot go with a prediction of the noise (epsilon): its last timestep has no signal, only "
        f"the noise that is asked for. Set {remedy}."
    ]


def uses_zero_snr(recipe: Recipe, zero_terminal_snr: bool) -> bool:
    """Whether a run ends its noise schedule in pure noise, on a base that was made so or not."""
    if recipe.zero_terminal_snr is ZeroTerminalSnr.AUTO:
        return zero_terminal_snr
    return recipe.zero_terminal_snr is ZeroTerminalSnr.ON


def require_valid(recipe: Recipe, base: BaseModel | None = None) -> None:
    """Raise ConfigError with all `recipe_errors` of a recipe, if there are any."""
    if found := recipe_errors(recipe, base):
        raise ConfigError(found)


def check_recipe(recipe: Recipe, context: CheckContext) -> list[Caution]:
    """What the guide would have a second look at, the most consequential first."""
    return [
        *_memory(recipe, context),
        *_images(recipe, context),
        *_rates(recipe, context),
        *optimizer_cautions(recipe),
        *_objective(recipe, context),
        *_network(recipe, context),
        *_length(recipe, context),
        *(check_trigger(context.trigger_word) if context.trigger_word is not None else ()),
    ]


def _memory(recipe: Recipe, context: CheckContext) -> Iterator[Caution]:
    vram = context.vram_gib
    if vram is None:
        return
    needed = estimate_vram_gib(recipe, context.base)
    if not fits(recipe, context.base, vram):
        yield Caution(
            code="memory",
            message=f"The run needs roughly {needed:.1f} GiB; of {vram:g} GiB about {vram - DESKTOP_GIB:.1f} are free. "
            f"{next_saving(recipe)}",
            why="When the memory runs out, the run ends. The estimate is rough: it may fit all the same.",
        )
    limit = RECIPE["gradient_checkpointing"].high
    off = recipe.gradient_checkpointing is GradientCheckpointing.OFF
    if limit is not None and vram < limit and off and fits(recipe, context.base, vram):
        yield Caution(
            code="checkpointing",
            message=f"Gradient checkpointing is off with {vram:g} GiB; the guide suggests it below {limit:g}.",
            why=RECIPE["gradient_checkpointing"].why,
        )


def _images(recipe: Recipe, context: CheckContext) -> Iterator[Caution]:
    if context.images is not None and context.images < MIN_IMAGES.value:
        yield Caution(
            code="few_images",
            message=f"{context.images} images are fewer than the guide's smallest set of {MIN_IMAGES.value}.",
            why=MIN_IMAGES.why,
        )
    if recipe.validation_split and context.images is not None and context.images < MIN_IMAGES_FOR_VALIDATION:
        yield Caution(
            code="held_out_few",
            message=f"validation_split is {recipe.validation_split:g} of only {context.images} images.",
            why="So few are missed in training, and too few are held out to tell anything.",
        )
    avoid = OPTIMIZERS[recipe.optimizer.value].avoid_above_images
    if avoid is not None and context.images is not None and context.images > avoid:
        yield Caution(
            code="optimizer_large",
            message=f"The guide avoids {recipe.optimizer.value} with {context.images} images; try AdamW8bit.",
            why=OPTIMIZERS[recipe.optimizer.value].why,
        )
    if context.sizes:
        yield from _sizes(recipe, context.sizes, context.base)
    count = context.count
    if count is not None and count.empty_slots > MAX_EMPTY_SHARE * (count.samples_per_epoch + count.empty_slots):
        share = count.empty_slots / (count.samples_per_epoch + count.empty_slots)
        yield Caution(
            code="bucket_waste",
            message=f"{share:.0%} of the places in an epoch's {count.batches_per_epoch} batches of {recipe.batch_size} "
            "stay empty. Crop images to fewer shapes, or lower the batch size.",
            why="A batch holds images of one bucket; one that only a few images share fills it badly.",
        )


def _sizes(recipe: Recipe, sizes: Sequence[tuple[int, int]], base: BaseModel | None) -> Iterator[Caution]:
    least = min(MIN_SIDE.value, base.resolution if base else MIN_SIDE.value)
    small = sum(min(size) < least for size in sizes)
    if small:
        yield Caution(
            code="small_images",
            message=f"{small} of {len(sizes)} images are below {least} px on their shorter side. "
            "Look for larger originals.",
            why=MIN_SIDE.why,
        )
    areas = [width * height for width, height in sizes]
    if max(areas) > MAX_AREA_RATIO * min(areas) and min(areas) < recipe.resolution**2:
        yield Caution(
            code="mixed_resolution",
            message=f"The largest image has {max(areas) / min(areas):.0f} times the pixels of the smallest.",
            why="The guide asks for images of like resolution: a mix teaches two levels of detail.",
        )


def _rates(recipe: Recipe, context: CheckContext) -> Iterator[Caution]:
    learning_rate_free = OPTIMIZERS[recipe.optimizer.value].learning_rate_free
    zero_snr = uses_zero_snr(recipe, context.base is not None and context.base.zero_terminal_snr)
    for name in RANGE_CHECKED:
        value, advice = getattr(recipe, name), RECIPE[name]
        if name.endswith("_lr") and (learning_rate_free or _is_embedded(context)):  # a small model takes larger steps
            continue
        if name in ("unet_lr", "text_encoder_lr") and value == 0:
            continue
        if name == "noise_offset" and value == 0 and (zero_snr or recipe.multires_noise_iterations):
            continue
        low, high = advice.low, advice.high
        if (low is not None and value < low) or (high is not None and value > high):
            bounds = f"{low:g} to {high:g}" if low is not None else f"up to {high:g}"
            yield Caution(
                code=f"{name}_range",
                message=f"{name} is {value:g}; the guide suggests {bounds}.",
                why=advice.why,
            )
    if not learning_rate_free and recipe.text_encoder_lr > recipe.unet_lr > 0:
        yield Caution(
            code="text_encoder_rate",
            message=f"text_encoder_lr {recipe.text_encoder_lr:g} is above unet_lr {recipe.unet_lr:g}; "
            f"the guide suggests a fifth of it, {recipe.unet_lr / 5:g}.",
            why=RECIPE["text_encoder_lr"].why,
        )
    if zero_snr and recipe.noise_offset > 0:
        yield Caution(
            code="noise_offset_zero_snr",
            message=f"noise_offset is {recipe.noise_offset:g}; "
            f"{context.base.name if context.base else 'zero terminal SNR'} needs none.",
            why="Zero terminal SNR reaches full black and white by itself.",
        )


def _objective(recipe: Recipe, context: CheckContext) -> Iterator[Caution]:
    base = context.base
    if base is not None and base.zero_terminal_snr and recipe.zero_terminal_snr is ZeroTerminalSnr.OFF:
        yield Caution(
            code="zero_snr_off",
            message=f"zero_terminal_snr is off, but {base.name} was made with it. Set it to auto.",
            why="A LoRA of another noise schedule takes back the base's full black and white.",
        )
    if recipe.min_snr_gamma and recipe.debiased_estimation_loss:
        yield Caution(
            code="weighted_twice",
            message=f"min_snr_gamma is {recipe.min_snr_gamma:g} and debiased_estimation_loss is on: both weigh "
            "timesteps. Set min_snr_gamma to 0 for the paper's weights.",
            why="The two are multiplied, which leaves little of the timesteps with little noise.",
        )
    if recipe.noise_offset and recipe.multires_noise_iterations:
        yield Caution(
            code="offset_twice",
            message=f"noise_offset is {recipe.noise_offset:g} and multires noise is on. Set one of them to 0.",
            why="Both teach dark and bright pictures; together they overdo it.",
        )


def _network(recipe: Recipe, context: CheckContext) -> Iterator[Caution]:
    if context.base is None and recipe.prediction_type is not PredictionType.AUTO:
        yield Caution(
            code="prediction_type_set",
            message=f"prediction_type is {recipe.prediction_type.value}; the studio does not know this base.",
            why=f"{WARNING_SIGNS['washed_out'].sign} tell of a wrong one. {WARNING_SIGNS['washed_out'].remedy}",
        )
    if recipe.network_alpha > recipe.network_dim and not recipe.rank_stabilized:
        yield Caution(
            code="alpha_above_dim",
            message=f"network_alpha {recipe.network_alpha:g} is above network_dim {recipe.network_dim}; "
            f"the guide suggests half of it, {recipe.network_dim / 2:g}.",
            why=f"Every update is multiplied by {recipe.network_alpha / recipe.network_dim:g}.",
        )


def _length(recipe: Recipe, context: CheckContext) -> Iterator[Caution]:
    embedded = _is_embedded(context)
    if context.images is not None and context.count is not None:
        batch = recipe.batch_size * recipe.gradient_accumulation_steps
        shown = min(context.count.total_steps * batch, context.count.samples_per_epoch * context.count.epochs)
        shown = round(shown * context.own_share)
        if shown > MAX_VIEWS_PER_IMAGE * context.images:
            yield Caution(
                code="shown_often",
                message=f"Every image is shown about {shown / context.images:.0f} times. Fewer repeats or epochs "
                f"would do; watch the samples for this: {WARNING_SIGNS['overfit'].sign.lower()}.",
                why=WARNING_SIGNS["overfit"].cause,
            )
    if context.images is not None and not embedded:
        tier = tier_for(context.images)
        low, high = tier.epochs
        if not low <= recipe.epochs <= high:
            yield Caution(
                code="epochs_tier",
                message=f"{recipe.epochs} epochs; the guide suggests {low} to {high} for {tier.describe()}.",
                why=WARNING_SIGNS["overfit" if recipe.epochs > high else "no_improvement"].sign
                + " is what it may lead to.",
            )
        if recipe.batch_size > tier.batch_size[1]:
            yield Caution(
                code="batch_size_tier",
                message=f"batch_size is {recipe.batch_size}; the guide suggests {tier.batch_size[0]} to "
                f"{tier.batch_size[1]} for {tier.describe()}.",
                why="Large batches average away what is special in a few images.",
            )
    if context.count is not None and recipe.lr_warmup_steps >= max(1, context.count.total_steps):
        yield Caution(
            code="warmup_long",
            message=f"lr_warmup_steps is {recipe.lr_warmup_steps:g}, but the run ends at step "
            f"{context.count.total_steps}: the rate never gets to its value.",
            why="A twentieth of the run is plenty.",
        )
    hours = RECIPE["training_hours"].high
    if context.seconds is not None and hours is not None and context.seconds.low > hours * 3600:
        yield Caution(
            code="time",
            message=f"The run takes {format_duration(context.seconds.low)} at least, by a rough estimate.",
            why=RECIPE["training_hours"].why,
        )


def _is_embedded(context: CheckContext) -> bool:
    return context.base is not None and context.base.is_embedded
