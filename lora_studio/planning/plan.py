"""The plan: a recipe for given images, kind of LoRA, base and GPU, with reasons, length and warnings."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from math import log
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from lora_studio import guide
from lora_studio.errors import ConfigError, InputError
from lora_studio.planning.advice import CheckContext, check_recipe, require_valid
from lora_studio.planning.cautions import Caution
from lora_studio.planning.folders import ImageCounts, count_images, square_images
from lora_studio.planning.memory import estimate_vram_gib, estimate_vram_parts, fit_vram, lora_mib
from lora_studio.planning.presets import load_preset, preset_reasons
from lora_studio.planning.steps import StepCount, count_steps
from lora_studio.planning.timing import SecondsRange, format_duration, measured_step_seconds, run_seconds
from lora_studio.settings.choices import LoraKind, Optimizer
from lora_studio.settings.recipe import Recipe
from lora_studio.workspace.job_folder import JobFolder

EMBEDDED_SAMPLES_PER_EPOCH = 200  # images times repeats in an epoch on the embedded base: 25 steps of 8


class Reason(BaseModel):
    """The reason of a recipe value; `guide`: it is the guide's, `given`: the caller set the value."""

    model_config = ConfigDict(frozen=True)

    setting: str
    value: Any
    why: str
    guide: bool = True
    given: bool = False


class Plan(BaseModel):
    """A planned run: recipe, number of steps and estimates. `repeats` is the folders' average if they set them."""

    model_config = ConfigDict(frozen=True)

    images: int
    assumed: bool
    kind: LoraKind
    base: str
    tier: guide.Tier
    recipe: Recipe
    reasons: list[Reason]
    repeats: int
    steps: StepCount
    vram_gib: float
    vram_parts: dict[str, float]
    seconds: SecondsRange
    lora_mib: float
    warnings: list[Caution]
    tagger: str
    tagging: str
    base_advice: str
    prediction_type: str

    def summary(self) -> dict[str, Any]:
        """Return the plan as JSON values."""
        named = ("network_dim", "network_alpha", "unet_lr", "text_encoder_lr", "batch_size", "epochs", "resolution")
        return {
            "images": self.images,
            "assumed": self.assumed,
            "kind": self.kind.value,
            "base": self.base,
            "prediction_type": self.prediction_type,
            "tier": self.tier.name,
            **{name: getattr(self.recipe, name) for name in named},
            "optimizer": self.recipe.optimizer.value,
            "repeats": self.repeats,
            "steps_per_epoch": self.steps.steps_per_epoch,
            "total_steps": self.steps.total_steps,
            "vram_gib": self.vram_gib,
            "vram_parts": self.vram_parts,
            "seconds": self.seconds.middle,
            "seconds_range": [self.seconds.low, self.seconds.high],
            "lora_mib": self.lora_mib,
            "tagger": self.tagger,
            "recipe": self.recipe.non_defaults(),
            "reasons": [reason.model_dump(mode="json") for reason in self.reasons],
            "warnings": [warning.model_dump() for warning in self.warnings],
        }

    def describe(self) -> str:
        """Return the plan as a few sentences, one per line."""
        source = "assumed to be square and of one size" if self.assumed else "counted"
        text = self.recipe.text_encoder_lr > 0
        return "\n".join(
            [
                f"{self.images} images ({source}): a {self.tier.name} set, good for {self.tier.good_for}. "
                f"{self.tier.focus}",
                f"{self.steps.steps_per_epoch} steps per epoch, {self.steps.total_steps} in all: every image is shown "
                f"{_times_as_text(self.repeats)} per epoch, {self.steps.epochs} epochs, "
                f"batch size {self.recipe.batch_size}.",
                f"Roughly {self.vram_gib:.1f} GiB of GPU memory, and {format_duration(self.seconds.low)} to "
                f"{format_duration(self.seconds.high)}.",
                f"The {self.recipe.network_type.value} will take {self.lora_mib:.0f} MiB"
                f"{' with its text encoder part' if text else ''}.",
                f"{self.base}: {self.base_advice}",
                self.tagging,
            ]
        )


def plan(
    images: Path | str | int,
    *,
    kind: LoraKind | str = LoraKind.CHARACTER,
    base: str = "SDXL 1.0",
    vram_gib: float | None = None,
    trigger_word: str | None = None,
    overrides: Mapping[str, Any] | None = None,
    hours: float | None = None,
    runs: Sequence[JobFolder] = (),
    regularization: Path | str | None = None,
) -> Plan:
    """Plan a training run.

    `images` is a dataset's folder, whose image sizes are read, or a number of images, assumed to be square. `base` is a
    name from the catalogue, or a repository, folder or file, assumed to be an SDXL. `vram_gib` is the GPU's memory in
    GiB, which the recipe is made to fit. `overrides` are recipe values that are not changed. `hours` limits the time
    with fewer epochs, then with fewer steps. `runs` are earlier runs, oldest first, from which the time of a step is
    taken if one has the same base and speed settings. `regularization` is a folder of images that are balanced against
    the dataset's.

    Raises InputError for an empty folder or an unknown kind, ConfigError for unknown settings and values that cannot
    work.
    """
    given = _checked(overrides or {})
    kind = _kind(kind)
    for name, value in (("vram_gib", vram_gib), ("hours", hours)):
        if value is not None and not value > 0:
            raise InputError(f"{name} is {value}.", "Give a number above 0, or leave it out.", code=name)
    known = guide.find_base(base)
    if not base.strip():
        raise InputError("No base model is given.", f"Use one of {', '.join(guide.BASES)}.", code="base")
    side = known.resolution if known else guide.RECIPE["resolution"].value
    counts = _images(images, given.get("resolution") or side)
    prior = count_images(Path(regularization).expanduser()) if regularization is not None else None
    draft = _RecipeDraft(given)
    _choose_network(draft, kind, known)
    _choose_schedule(draft, kind, known, counts, vram_gib)
    _choose_rest(draft, kind, known)
    if guide.tier_for(counts.total).name == "large":
        why = "The guide keeps some images of large sets out of training: their loss rises when overfitting begins."
        draft.set("validation_split", guide.VALIDATION_SHARE, why)
    recipe = draft.recipe()
    if vram_gib is not None:
        recipe = _fit_memory(draft, recipe, known, vram_gib)
    require_valid(recipe, known)
    measured = measured_step_seconds(runs, recipe, known.name if known else base)
    rough = partial(run_seconds, images=counts.total, base=known, vram_gib=vram_gib, measured=measured)
    own = counts.buckets(recipe)
    buckets = own + prior.balanced_buckets(recipe, own.total()) if prior is not None else own
    recipe, steps, seconds = _fit_time(draft, recipe, buckets, rough, hours)
    context = CheckContext(
        base=known,
        images=counts.total,
        sizes=None if isinstance(images, int) else counts.all_sizes(),
        count=steps,
        own_share=own.total() / steps.samples_per_epoch,
        vram_gib=vram_gib,
        trigger_word=trigger_word,
        seconds=seconds,
    )
    return Plan(
        images=counts.total,
        assumed=isinstance(images, int),
        kind=kind,
        base=known.name if known else base,
        tier=guide.tier_for(counts.total),
        recipe=recipe,
        reasons=draft.reasons(recipe),
        repeats=recipe.repeats or round(sum(counts.all_repeats) / counts.total),
        steps=steps,
        vram_gib=estimate_vram_gib(recipe, known, vram_gib),
        vram_parts=estimate_vram_parts(recipe, known, vram_gib),
        seconds=seconds,
        lora_mib=round(lora_mib(recipe, known), 1),
        warnings=[*_folder_warnings(counts), *check_recipe(recipe, context)],
        tagger=known.tagger if known else "",
        tagging=_tagging(kind, known),
        base_advice=f"{known.why if known else ''} {guide.KINDS[kind.value].base}".strip(),
        prediction_type=known.prediction_type if known else recipe.prediction_type.value,
    )


class _RecipeDraft:
    """Recipe values with their reasons; values that the caller gave are never replaced."""

    def __init__(self, given: dict[str, Any]) -> None:
        self.given = given
        self.values: dict[str, Any] = {}
        self.why: dict[str, tuple[str, bool]] = {}

    def set(self, setting: str, value: Any, why: str = "", *, guided: bool = True) -> None:
        """Set a value unless the caller gave one; without `why` the earlier reason is kept."""
        if setting in self.given:
            return
        self.values[setting] = value
        if why or setting not in self.why:
            self.why[setting] = (why, guided)

    def get(self, setting: str) -> Any:
        """Return the current value; the caller's takes precedence."""
        return self.given.get(setting, self.values.get(setting))

    def recipe(self) -> Recipe:
        """Build the recipe; raises ConfigError with all of its errors."""
        return Recipe.parse({**self.values, **self.given})

    def reasons(self, recipe: Recipe) -> list[Reason]:
        """Return the reason of each value of the finished recipe, in the order of the recipe's fields."""
        plain = recipe.model_dump(mode="json")
        found = []
        for setting in Recipe.model_fields:
            if setting in self.given:
                suggestion = guide.RECIPE.get(setting)
                why = "Set by you."
                if suggestion is not None and suggestion.value != plain[setting]:
                    why += f" The guide's starting point is {suggestion.value}."
                found.append(Reason(setting=setting, value=plain[setting], why=why, guide=False, given=True))
            elif setting in self.why:
                why, guided = self.why[setting]
                found.append(Reason(setting=setting, value=plain[setting], why=why, guide=guided))
        return found


def _times_as_text(count: int) -> str:
    return {1: "once", 2: "twice"}.get(count, f"{count} times")


def _checked(overrides: Mapping[str, Any]) -> dict[str, Any]:
    unknown = sorted(set(overrides) - set(Recipe.model_fields))
    if unknown:
        raise ConfigError(
            [f"{name}: no such setting" for name in unknown], f"Use {', '.join(sorted(Recipe.model_fields))}."
        )
    Recipe.parse(dict(overrides))
    return dict(overrides)


def _kind(kind: LoraKind | str) -> LoraKind:
    try:
        return LoraKind(kind)
    except ValueError:
        raise InputError(f"kind is {kind!r}.", f"Use one of {', '.join(LoraKind)}.", code="kind") from None


def _images(images: Path | str | int, side: int) -> ImageCounts:
    if not isinstance(images, int):
        return count_images(Path(images).expanduser())
    if images < 1:
        raise InputError(f"The number of images is {images}.", "Give at least 1.", code="no_images")
    return square_images(images, side)


def _choose_network(draft: _RecipeDraft, kind: LoraKind, base: guide.BaseModel | None) -> None:
    advice = guide.KINDS[kind.value]
    draft.set("network_dim", advice.network_dim, advice.why)
    draft.set("network_alpha", advice.network_alpha, guide.RECIPE["network_alpha"].why)
    if "network_dim" in draft.given:
        dim = Recipe.parse({"network_dim": draft.given["network_dim"]}).network_dim
        draft.set("network_alpha", dim / 2, guide.RECIPE["network_alpha"].why)
    for name in ("unet_lr", "text_encoder_lr", "optimizer", "noise_offset"):
        draft.set(name, guide.RECIPE[name].value, guide.RECIPE[name].why)
    _choose_rates(draft, Recipe.parse({"optimizer": draft.get("optimizer")}).optimizer)
    if base is not None and base.zero_terminal_snr:
        draft.set("noise_offset", 0.0, "Zero terminal SNR reaches full black and white by itself.", guided=False)


def _choose_rates(draft: _RecipeDraft, optimizer: Optimizer) -> None:
    """Adapt the guide's rates and schedule, which are meant for AdamW and similar optimizers, to this one."""
    name, advice = optimizer.value, guide.OPTIMIZERS[optimizer.value]
    if advice.learning_rate_free:
        draft.set("unet_lr", 1.0, f"{name} finds the rate itself; 1 does not scale it.", guided=False)
        draft.set(
            "text_encoder_lr",
            0.0,
            f"{name} uses one rate for all, which is too high for the text encoders.",
            guided=False,
        )
    if advice.learning_rate_free and not advice.single_rate:
        ratio = guide.RECIPE["text_encoder_lr"].value / guide.RECIPE["unet_lr"].value
        why = f"{name} finds a rate for each model; a fifth, as between the guide's rates."
        draft.set("text_encoder_lr", ratio, why, guided=False)
    if advice.rate_factor != 1:
        for setting in ("unet_lr", "text_encoder_lr"):
            rate = float(f"{guide.RECIPE[setting].value * advice.rate_factor:.6g}")
            draft.set(
                setting, rate, f"{advice.rate_factor:g} times the guide's rate, which suits {name}.", guided=False
            )
    if advice.schedule_free:
        draft.set(
            "lr_scheduler", "constant", f"{name} averages its weights instead of lowering the rate.", guided=False
        )
    if optimizer is Optimizer.PRODIGY_PLUS:
        draft.set(
            "max_grad_norm",
            0.0,
            "It derives its rate from the size of the gradients, which clipping would hide.",
            guided=False,
        )


def _choose_schedule(
    draft: _RecipeDraft, kind: LoraKind, base: guide.BaseModel | None, counts: ImageCounts, vram_gib: float | None
) -> None:
    tier = guide.tier_for(counts.total)
    low, high = tier.batch_size
    # Without a known GPU: the guide's batch size, kept within the tier's range.
    batch = max(low, min(high, guide.RECIPE["batch_size"].value)) if vram_gib is None else min(high, 4)
    draft.set("batch_size", batch, f"The guide uses {low} to {high} for {tier.describe()}.")
    draft.set("epochs", _epochs(tier, counts.total), f"{tier.epochs[0]} to {tier.epochs[1]} for {tier.describe()}.")
    shown = EMBEDDED_SAMPLES_PER_EPOCH if base and base.is_embedded else guide.KINDS[kind.value].samples_per_epoch
    repeats = max(1, round(shown / counts.total))
    if len(set(counts.all_repeats)) > 1:
        draft.set("repeats", None, "Your folders' names set repeats of their own; they are kept.", guided=False)
    else:
        draft.set(
            "repeats",
            repeats,
            f"{counts.total} images shown {_times_as_text(repeats)} make {counts.total * repeats} samples per epoch.",
            guided=False,
        )
    checkpointing = guide.RECIPE["gradient_checkpointing"]
    draft.set("gradient_checkpointing", checkpointing.value, checkpointing.why)


def _choose_rest(draft: _RecipeDraft, kind: LoraKind, base: guide.BaseModel | None) -> None:
    draft.set("resolution", guide.RECIPE["resolution"].value, guide.RECIPE["resolution"].why)
    prompts = [base.prompt(text) if base else text for text in guide.KINDS[kind.value].prompts]
    why = "Sampled during training; written as this base expects its prompts."
    draft.set("sample_prompts", prompts, why, guided=False)
    if base is not None:
        draft.set("prediction_type", "auto", f"Read from the base: {base.name} predicts {base.prediction_type}.")
    if base is None or not base.is_embedded:
        return
    draft.set(
        "network_alpha",
        guide.RECIPE["network_alpha"].value,
        "The demo preset's rates were chosen with it.",
        guided=False,
    )
    reasons = preset_reasons("demo")
    for name, value in load_preset("demo").items():
        if name != "repeats":
            draft.set(name, value, f"{reasons[name][:1].upper()}{reasons[name][1:]}.", guided=False)


def _epochs(tier: guide.Tier, images: int) -> int:
    """Interpolate the epochs within the tier's range, linearly over the logarithm of the number of images."""
    low, high = tier.epochs
    last = tier.high or 4 * tier.low
    share = (log(max(images, tier.low)) - log(tier.low)) / (log(last) - log(tier.low))
    return round(high - min(1.0, share) * (high - low))


def _fit_memory(draft: _RecipeDraft, recipe: Recipe, base: guide.BaseModel | None, vram_gib: float) -> Recipe:
    fitted, savings = fit_vram(recipe, base, vram_gib, keep=draft.given)
    for saving in savings:
        value = getattr(fitted, saving.setting)
        draft.set(saving.setting, value, f"To fit {vram_gib:g} GiB. {saving.why}", guided=saving.guide)
    return fitted


def _fit_time(
    draft: _RecipeDraft,
    recipe: Recipe,
    buckets: Mapping[Any, int],
    rough: Callable[[Recipe, StepCount], SecondsRange],
    hours: float | None,
) -> tuple[Recipe, StepCount, SecondsRange]:
    """Count the steps, and remove epochs, then steps, until the middle of the estimate is within `hours`."""

    def measure(recipe: Recipe) -> tuple[Recipe, StepCount, SecondsRange]:
        steps = count_steps(
            buckets,
            batch_size=recipe.batch_size,
            gradient_accumulation_steps=recipe.gradient_accumulation_steps,
            epochs=recipe.epochs,
            max_train_steps=recipe.max_train_steps,
        )
        return recipe, steps, rough(recipe, steps)

    made = measure(recipe)
    if hours is None:
        return made
    why = f"To take about {format_duration(hours * 3600)}, by a rough estimate. {guide.RECIPE['training_hours'].why}"
    while made[2].middle > hours * 3600 and made[0].epochs > 1 and "epochs" not in draft.given:
        draft.set("epochs", made[0].epochs - 1, why)
        made = measure(made[0].model_copy(update={"epochs": made[0].epochs - 1}))
    if made[2].middle > hours * 3600 and "max_train_steps" not in draft.given:
        steps = max(1, int(made[1].total_steps * hours * 3600 / made[2].middle))
        draft.set("max_train_steps", steps, why)
        made = measure(made[0].model_copy(update={"max_train_steps": steps}))
    return made


def _folder_warnings(counts: ImageCounts) -> list[Caution]:
    found = []
    if counts.unreadable:
        found.append(
            Caution(
                code="unreadable",
                message=f"{len(counts.unreadable)} images cannot be read, like {counts.unreadable[0]}; they are not "
                "counted. Set them aside.",
                why="Broken files cannot be trained on.",
            )
        )
    if counts.without_caption:
        found.append(
            Caution(
                code="captions_missing",
                message=f"{len(counts.without_caption)} of {counts.total} images have no caption. Tag them first.",
                why="Captions separate what the trigger word should learn from the rest of the image.",
            )
        )
    return found


def _tagging(kind: LoraKind, base: guide.BaseModel | None) -> str:
    names = {"wd14": "WD14", "blip": "BLIP", "demo": "the embedded tagger"}
    first = f"Tag with {names[base.tagger]}. " if base else "Tag with WD14 for anime, BLIP for realistic images. "
    return first + guide.KINDS[kind.value].tagging
