"""Checks of a recipe against the guide: errors (`recipe_errors`) and warnings (`check_recipe`).

Errors are reported together and stop a run before it starts. Warnings are advice: they never stop anything.
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
    tier_for,
)
from lora_studio.models.catalogue import KnownBase
from lora_studio.planning.cautions import Caution
from lora_studio.planning.length import (
    FEW_STEPS,
    MANY_STEPS,
    MAX_VIEWS_PER_IMAGE,
    batch_of,
    steps_at_batch_one,
)
from lora_studio.planning.memory import DESKTOP_GIB, saving_advice
from lora_studio.planning.optimizers import MAX_RATE_RATIO, optimizer_cautions, optimizer_errors
from lora_studio.planning.planned_memory import ESTIMATED, PlannedMemory, plan_memory
from lora_studio.planning.rates import usual_rate
from lora_studio.planning.steps import StepCount
from lora_studio.planning.timing import SecondsRange, describe_duration
from lora_studio.planning.trigger import check_trigger
from lora_studio.plurals import format_count, format_share
from lora_studio.settings.choices import GradientCheckpointing, NetworkType, PredictionType, ZeroTerminalSnr
from lora_studio.settings.recipe import Recipe
from lora_studio.settings.sample_prompts import sample_prompt_errors

NO_NOISE_OFFSET = "Zero terminal SNR reaches full black and white by itself."
NO_MIN_SNR = (
    "Min-SNR gives the noisiest tenth of the timesteps 0.03% of the loss, and pure noise none: what zero terminal SNR "
    "is for would not be trained."
)
RANGE_CHECKED = ("unet_lr", "text_encoder_lr", "network_dim", "noise_offset", "clip_skip")
# Warn above these.
MAX_EMPTY_SHARE = 0.2  # share of the slots in an epoch's batches that short batches leave empty
MANY_VIEWS = 30  # of each image; a large set needs its steps to be seen at all
MAX_AREA_RATIO = 4.0  # pixels of the largest image over those of the smallest


@dataclass(frozen=True, kw_only=True)
class CheckContext:
    """What is known about a run besides its recipe; checks of a value that is None are skipped.

    `sizes` are (width, height) in px. `own_share` is the share of the dataset's images in an epoch's samples; the rest
    are regularisation images.
    """

    base: KnownBase | None = None
    images: int | None = None
    sizes: Sequence[tuple[int, int]] | None = None
    own_share: float = 1.0
    count: StepCount | None = None
    vram_gib: float | None = None
    memory: PlannedMemory | None = None
    processes: int = 1
    trigger_word: str | None = None
    seconds: SecondsRange | None = None
    hours: float | None = None


def recipe_errors(recipe: Recipe, base: KnownBase | None = None) -> list[str]:
    """Return a sentence with the remedy for each setting that cannot work with the others or with this base."""
    found = optimizer_errors(recipe)
    if base is not None and recipe.prediction_type not in (PredictionType.AUTO, base.prediction_type):
        found.append(
            f"prediction_type is {recipe.prediction_type.value}, but {base.name} predicts {base.prediction_type}. "
            "Set prediction_type to auto."
        )
    predicts = recipe.prediction_type.value
    if recipe.prediction_type is PredictionType.AUTO:
        predicts = base.prediction_type if base else ""
    zero_snr = base is not None and base.zero_terminal_snr
    return found + zero_snr_errors(recipe, predicts, zero_snr) + sample_errors(recipe, zero_snr)


def sample_errors(recipe: Recipe, zero_terminal_snr: bool) -> list[str]:
    """Return a sentence with the remedy for each wrong option of a sample prompt, and each sampler that cannot work.

    `zero_terminal_snr` says whether the base was trained with it.
    """
    return sample_prompt_errors(recipe, zero_terminal_snr=uses_zero_snr(recipe, zero_terminal_snr))


def zero_snr_errors(recipe: Recipe, prediction_type: str, zero_terminal_snr: bool) -> list[str]:
    """Return an error if zero terminal SNR is combined with epsilon prediction.

    The arguments are what the run will predict ("" if unknown) and whether the base was trained with zero terminal SNR.
    """
    if prediction_type != "epsilon" or not uses_zero_snr(recipe, zero_terminal_snr):
        return []
    remedy = "prediction_type to auto, or zero_terminal_snr to off"
    if recipe.zero_terminal_snr is ZeroTerminalSnr.ON:
        remedy = "zero_terminal_snr to auto, or choose a base that predicts v"
    elif recipe.prediction_type is PredictionType.AUTO:
        remedy = "zero_terminal_snr to off"
    return [
        "Zero terminal SNR does not work with epsilon prediction: at its last timestep the input is pure noise, so "
        f"predicting the noise teaches nothing. Set {remedy}."
    ]


def uses_zero_snr(recipe: Recipe, zero_terminal_snr: bool) -> bool:
    """Return whether a run uses zero terminal SNR, given whether its base was trained with it."""
    if recipe.zero_terminal_snr is ZeroTerminalSnr.AUTO:
        return zero_terminal_snr
    return recipe.zero_terminal_snr is ZeroTerminalSnr.ON


def require_valid(recipe: Recipe, base: KnownBase | None = None) -> None:
    """Raise ConfigError with all `recipe_errors`, if there are any."""
    if found := recipe_errors(recipe, base):
        raise ConfigError(found)


def check_recipe(recipe: Recipe, context: CheckContext) -> list[Caution]:
    """Return the guide's warnings about a recipe, the most consequential first."""
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
    memory = context.memory or plan_memory(recipe, context.base, vram, processes=context.processes)
    if not memory.fits(vram):
        yield Caution(
            code="memory",
            message=f"The run needs roughly {memory.least:.1f} GiB; about {vram - DESKTOP_GIB:.1f} of {vram:g} GiB are "
            f"free. {saving_advice(recipe)}",
            why="A run that is out of memory ends."
            + (" The estimate is rough: it may fit all the same." if memory.source == ESTIMATED else ""),
        )
    limit = RECIPE["gradient_checkpointing"].high
    off = recipe.gradient_checkpointing is GradientCheckpointing.OFF
    if limit is not None and vram < limit and off and memory.fits(vram):
        yield Caution(
            code="checkpointing",
            message=f"Gradient checkpointing is off with {vram:g} GiB; the guide suggests it below {limit:g}.",
            why=RECIPE["gradient_checkpointing"].why,
        )


def _images(recipe: Recipe, context: CheckContext) -> Iterator[Caution]:
    if context.images is not None and context.images < MIN_IMAGES.value:
        yield Caution(
            code="few_images",
            message=f"{format_count(context.images, 'image')}: the guide's smallest set has {MIN_IMAGES.value}.",
            why=MIN_IMAGES.why,
        )
    if recipe.validation_split and context.images is not None and context.images < MIN_IMAGES_FOR_VALIDATION:
        yield Caution(
            code="held_out_few",
            message=f"validation_split is {recipe.validation_split:g} of only {context.images} images.",
            why="Training misses each of them, and a validation loss on that few images is mostly noise.",
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
        size = recipe.batch_size * context.processes
        yield Caution(
            code="bucket_waste",
            message=f"{share:.0%} of the slots in an epoch's {count.batches_per_epoch} batches of {size} "
            "stay empty. Crop images to fewer aspect ratios, or lower the batch size.",
            why="A batch holds images of one bucket; buckets with few images leave their batches partly empty.",
        )


def _sizes(recipe: Recipe, sizes: Sequence[tuple[int, int]], base: KnownBase | None) -> Iterator[Caution]:
    least = min(MIN_SIDE.value, base.resolution if base else MIN_SIDE.value)
    small = sum(min(size) < least for size in sizes)
    if small:
        yield Caution(
            code="small_images",
            message=f"{format_share(small, len(sizes), 'image', 'is', 'are')} below {least} px on the shorter side. "
            "Look for larger originals.",
            why=MIN_SIDE.why,
        )
    areas = [width * height for width, height in sizes]
    if max(areas) > MAX_AREA_RATIO * min(areas) and min(areas) < recipe.resolution**2:
        yield Caution(
            code="mixed_resolution",
            message=f"The largest image has {max(areas) / min(areas):.0f} times the pixels of the smallest.",
            why="The guide asks for images of similar resolution: a mix teaches two levels of detail.",
        )


def _rates(recipe: Recipe, context: CheckContext) -> Iterator[Caution]:
    learning_rate_free = OPTIMIZERS[recipe.optimizer.value].learning_rate_free
    zero_snr = uses_zero_snr(recipe, context.base is not None and context.base.zero_terminal_snr)
    for name in RANGE_CHECKED:
        value, advice = getattr(recipe, name), RECIPE[name]
        if name.endswith("_lr") and (learning_rate_free or _is_embedded(context)):  # a small model takes larger steps
            continue
        if name in ("unet_lr", "text_encoder_lr") and (value == 0 or recipe.network_type is NetworkType.LOHA):
            continue
        if name == "network_dim" and recipe.is_full_matrix:
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
    text_rates = {name: rate for name, rate in recipe.named_rates.items() if name.startswith("text")}
    highest = max(text_rates, key=lambda name: text_rates[name], default="")
    if not learning_rate_free and text_rates and text_rates[highest] > recipe.unet_lr > 0:
        yield Caution(
            code="text_encoder_rate",
            message=f"{highest} {text_rates[highest]:g} is above unet_lr {recipe.unet_lr:g}; "
            f"the guide suggests a fifth of it, {recipe.unet_lr / 5:g}.",
            why=RECIPE["text_encoder_lr"].why,
        )
    if zero_snr:
        yield from zero_snr_cautions(recipe)


def zero_snr_cautions(recipe: Recipe) -> Iterator[Caution]:
    """Yield the warnings about a recipe that trains with zero terminal SNR."""
    if recipe.noise_offset > 0:
        yield Caution(
            code="noise_offset_zero_snr",
            message=f"noise_offset is {recipe.noise_offset:g}; a base with zero terminal SNR needs none. Set it to 0.",
            why=NO_NOISE_OFFSET,
        )
    if recipe.min_snr_gamma > 0:
        yield Caution(
            code="min_snr_zero_snr",
            message=f"min_snr_gamma is {recipe.min_snr_gamma:g} with zero terminal SNR. Set it to 0.",
            why=NO_MIN_SNR,
        )


def _objective(recipe: Recipe, context: CheckContext) -> Iterator[Caution]:
    base = context.base
    if base is not None and base.zero_terminal_snr and recipe.zero_terminal_snr is ZeroTerminalSnr.OFF:
        yield Caution(
            code="zero_snr_off",
            message=f"zero_terminal_snr is off, but {base.name} was trained with it. Set it to auto.",
            why="A LoRA trained with another noise schedule costs the base its full black and white.",
        )
    if recipe.min_snr_gamma and recipe.debiased_estimation_loss:
        yield Caution(
            code="weighted_twice",
            message=f"min_snr_gamma is {recipe.min_snr_gamma:g} and debiased_estimation_loss is on: both weight "
            "timesteps. Set min_snr_gamma to 0 for the paper's weights.",
            why="The weights are multiplied, so timesteps with little noise hardly count.",
        )
    if recipe.noise_offset and recipe.multires_noise_iterations:
        yield Caution(
            code="offset_twice",
            message=f"noise_offset is {recipe.noise_offset:g} and multires noise is on. Set one of them to 0.",
            why="Both widen the range from dark to bright; together they overdo it.",
        )


def _network(recipe: Recipe, context: CheckContext) -> Iterator[Caution]:
    if context.base is None and recipe.prediction_type is not PredictionType.AUTO:
        yield Caution(
            code="prediction_type_set",
            message=f"prediction_type is {recipe.prediction_type.value}; the studio does not know this base.",
            why=f"{WARNING_SIGNS['washed_out'].sign} are a sign of a wrong one. {WARNING_SIGNS['washed_out'].remedy}",
        )
    if recipe.network_alpha > recipe.network_dim and not recipe.rank_stabilized:
        yield Caution(
            code="alpha_above_dim",
            message=f"network_alpha {recipe.network_alpha:g} is above network_dim {recipe.network_dim}; "
            f"the guide suggests half of it, {recipe.network_dim / 2:g}.",
            why=f"Every update is multiplied by {recipe.network_alpha / recipe.network_dim:g}.",
        )
    is_free = OPTIMIZERS[recipe.optimizer.value].learning_rate_free or _is_embedded(context)
    usual = usual_rate("unet_lr", recipe)
    if recipe.network_type is NetworkType.LOHA and recipe.unet_lr > MAX_RATE_RATIO * usual and not is_free:
        yield Caution(
            code="loha_rate",
            message=f"unet_lr is {recipe.unet_lr:g} with LoHa; with alpha {recipe.network_alpha:g} LyCORIS would use "
            f"about {usual:g}.",
            why="The first steps of a LoHa are some twenty times larger than those of a LoRA at the same rate.",
        )


def _length(recipe: Recipe, context: CheckContext) -> Iterator[Caution]:
    embedded = _is_embedded(context)
    if context.images is not None and context.count is not None:
        batch = batch_of(recipe, context.processes)
        shown = min(context.count.total_steps * batch, context.count.samples_per_epoch * context.count.epochs)
        shown = round(shown * context.own_share)
        if shown > MAX_VIEWS_PER_IMAGE * context.images:
            yield Caution(
                code="shown_often",
                message=f"Every image is shown about {shown / context.images:.0f} times. Fewer repeats or epochs "
                f"would do; watch the samples for this: {WARNING_SIGNS['overfit'].sign.lower()}.",
                why=WARNING_SIGNS["overfit"].cause,
            )
        if not embedded:
            yield from _steps_learned(recipe, context.count, context.processes, shown / context.images)
    if context.images is not None and not embedded:
        tier = tier_for(context.images)
        low, high = tier.epochs
        if not low <= recipe.epochs <= high:
            yield Caution(
                code="epochs_tier",
                message=f"{recipe.epochs} epochs; the guide suggests {low} to {high} for {tier.describe()}.",
                why="It may lead to this: "
                + WARNING_SIGNS["overfit" if recipe.epochs > high else "no_improvement"].sign.lower()
                + ".",
            )
        if (batch := batch_of(recipe, context.processes)) > tier.batch_size[1]:
            yield Caution(
                code="batch_size_tier",
                message=f"A step has {batch} images; the guide suggests {tier.batch_size[0]} to "
                f"{tier.batch_size[1]} for {tier.describe()}.",
                why="Large batches average away what is special about a few images.",
            )
    if context.count is not None and recipe.lr_warmup_steps >= max(1, context.count.total_steps):
        yield Caution(
            code="warmup_long",
            message=f"lr_warmup_steps is {recipe.lr_warmup_steps:g}, but the run ends at step "
            f"{context.count.total_steps}: the learning rate never reaches its full value.",
            why="A twentieth of the run is plenty.",
        )
    yield from _duration(context)


def _steps_learned(recipe: Recipe, count: StepCount, processes: int, views: float) -> Iterator[Caution]:
    """Yield warnings about a run that is far shorter or longer than usual; `views` is how often it shows each image."""
    steps, batch = steps_at_batch_one(recipe, count.total_steps, processes), batch_of(recipe, processes)
    text = f"{count.total_steps} steps of {batch} at this rate equal {steps:.0f} of one image at the guide's"
    if steps < FEW_STEPS:
        yield Caution(
            code="few_steps",
            message=f"{text}; LoRA calculators call fewer than {FEW_STEPS} too few. More repeats or epochs would do.",
            why=WARNING_SIGNS["no_improvement"].cause,
        )
    if steps > MANY_STEPS and views > MANY_VIEWS:
        yield Caution(
            code="many_steps",
            message=f"{text}; LoRA calculators call more than {MANY_STEPS} too many.",
            why=WARNING_SIGNS["overfit"].cause,
        )


def _duration(context: CheckContext) -> Iterator[Caution]:
    if context.seconds is None:
        return
    middle, usual = context.seconds.middle, RECIPE["training_hours"].high
    if context.hours is not None and middle > context.hours * 3600:
        yield Caution(
            code="hours",
            message=f"The run takes about {describe_duration(middle)}, by a rough estimate, although "
            f"{context.hours:g} hours were given: a shorter one would hardly learn anything.",
            why="Fewer images, a lower resolution or a faster GPU would shorten it.",
        )
    elif usual is not None and middle > usual * 3600:
        yield Caution(
            code="time",
            message=f"The run takes about {describe_duration(middle)}, by a rough estimate.",
            why=RECIPE["training_hours"].why,
        )


def _is_embedded(context: CheckContext) -> bool:
    return context.base is not None and context.base.is_embedded
