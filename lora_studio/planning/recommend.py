"""The guide's recommendations for a recipe: network, learning rates, schedule and samples, each with its reason."""

from __future__ import annotations

from functools import cache
from typing import Any

from pydantic import BaseModel, ConfigDict

from lora_studio import guide
from lora_studio.dataset.training_images import DatasetImages
from lora_studio.models.catalogue import KnownBase
from lora_studio.planning.advice import NO_MIN_SNR, NO_NOISE_OFFSET, uses_zero_snr
from lora_studio.planning.length import (
    Length,
    batch_of,
    choose_length,
    split_batch,
    target_steps,
    usual_epochs,
)
from lora_studio.planning.presets import load_preset, preset_reasons
from lora_studio.planning.rates import usual_rate
from lora_studio.settings.choices import LoraKind, NetworkType, Optimizer
from lora_studio.settings.recipe import Recipe

MAX_BATCH = 4  # images of a planned step
EMBEDDED_SAMPLES_PER_EPOCH = 200  # images times repeats in an epoch on the embedded base: 25 steps of 8


class Reason(BaseModel):
    """The reason of a recipe value; `guide`: it is the guide's, `given`: the caller set the value."""

    model_config = ConfigDict(frozen=True)

    setting: str
    value: Any
    why: str
    guide: bool = True
    given: bool = False


class RecipeDraft:
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


def recommend(
    given: dict[str, Any],
    kind: LoraKind,
    base: KnownBase | None,
    images: DatasetImages,
    vram_gib: float | None,
    *,
    processes: int = 1,
) -> RecipeDraft:
    """Return the recommended values around the `given` ones, for these images and a GPU of `vram_gib` (None: unknown).

    The result may not fit that memory yet. With several `processes` the batch size is that of each.
    """
    draft = RecipeDraft(given)
    _choose_network(draft, kind, base)
    if guide.tier_for(images.total).name == "large":
        why = "The guide keeps some images of large sets out of training: their loss rises when overfitting begins."
        draft.set("validation_split", guide.VALIDATION_SHARE, why)
    _choose_schedule(draft, kind, base, images, vram_gib, processes)
    _choose_for_base(draft, kind, base)
    return draft


def _choose_network(draft: RecipeDraft, kind: LoraKind, base: KnownBase | None) -> None:
    advice = guide.KINDS[kind.value]
    draft.set("network_dim", advice.network_dim, advice.why)
    draft.set("network_alpha", advice.network_alpha, guide.RECIPE["network_alpha"].why)
    if "network_dim" in draft.given:
        recipe = Recipe.parse(dict(draft.given))
        alpha = 1.0 if recipe.is_full_matrix else recipe.network_dim / 2
        draft.set("network_alpha", alpha, guide.RECIPE["network_alpha"].why)
    for name in ("unet_lr", "text_encoder_lr", "optimizer", "noise_offset"):
        draft.set(name, guide.RECIPE[name].value, guide.RECIPE[name].why)
    _choose_rates(draft, Recipe.parse({"optimizer": draft.get("optimizer")}).optimizer)
    _choose_network_rates(draft, draft.recipe())
    if uses_zero_snr(draft.recipe(), base is not None and base.zero_terminal_snr):
        draft.set("noise_offset", 0.0, NO_NOISE_OFFSET, guided=False)
        draft.set("min_snr_gamma", 0.0, NO_MIN_SNR, guided=False)


def _choose_rates(draft: RecipeDraft, optimizer: Optimizer) -> None:
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


def _choose_network_rates(draft: RecipeDraft, recipe: Recipe) -> None:
    """Lower the rates for a LoHa and for LoRA+, unless the optimizer finds them itself."""
    if guide.OPTIMIZERS[recipe.optimizer.value].learning_rate_free:
        return
    is_loha = recipe.network_type is NetworkType.LOHA
    for setting, model in (("unet_lr", "unet"), ("text_encoder_lr", "te1")):
        rate, ratio = usual_rate(setting, recipe), recipe.up_ratio(model)
        why = f"With LoRA+ the up matrices learn at {ratio:g} times this rate: {rate * ratio:g}."
        if is_loha:
            why = f"LyCORIS' rate for a LoHa with alpha {recipe.network_alpha:g}, which takes larger steps than a LoRA."
        if is_loha or ratio != 1:
            draft.set(setting, rate, why, guided=False)


def _choose_schedule(
    draft: RecipeDraft,
    kind: LoraKind,
    base: KnownBase | None,
    images: DatasetImages,
    vram_gib: float | None,
    processes: int,
) -> None:
    tier = guide.tier_for(images.total)
    if base is not None and base.is_embedded:
        repeats = max(1, round(EMBEDDED_SAMPLES_PER_EPOCH / images.total))
        samples = f"{images.total} images {times_as_text(repeats)} make {images.total * repeats} samples per epoch."
        length = Length(repeats, usual_epochs(tier, images.total))
    else:
        _choose_batch(draft, tier, vram_gib, processes)
        length, samples = _length(draft, kind, tier, images, processes)
    draft.set("epochs", length.epochs, f"{tier.epochs[0]} to {tier.epochs[1]} for {tier.describe()}.")
    if images.has_own_repeats:
        draft.set("repeats", None, "Your folders or subsets set repeats of their own; they are kept.", guided=False)
    else:
        draft.set("repeats", length.repeats, samples, guided=False)
    checkpointing = guide.RECIPE["gradient_checkpointing"]
    draft.set("gradient_checkpointing", checkpointing.value, checkpointing.why)


def _choose_batch(draft: RecipeDraft, tier: guide.Tier, vram_gib: float | None, processes: int) -> None:
    """Choose a step of the tier's batch size, accumulated from the guide's batch size while the GPU is not known.

    Several GPUs share it, each with one image at least.
    """
    low, high = tier.batch_size
    batch = max(1, min(high, MAX_BATCH) // processes)
    why = f"The guide uses {low} to {high} for {tier.describe()}."
    size, count = split_batch(batch, batch if vram_gib is not None else guide.RECIPE["batch_size"].value)
    if not draft.given.keys() & {"batch_size", "gradient_accumulation_steps"}:
        draft.set("batch_size", size, why)
        if count > 1:
            draft.set("gradient_accumulation_steps", count, accumulation_reason(size, count, processes))
    elif "batch_size" not in draft.given:
        draft.set("batch_size", max(1, batch // int(draft.get("gradient_accumulation_steps"))), why)


def accumulation_reason(size: int, count: int, processes: int) -> str:
    """Return why `count` batches of `size` images on each GPU make a step."""
    gpus = f" on each of {processes} GPUs" if processes > 1 else ""
    total = size * count * processes
    return f"{count} batches of {size}{gpus} make a step of {total} images, so that every GPU learns the same."


def _length(
    draft: RecipeDraft, kind: LoraKind, tier: guide.Tier, images: DatasetImages, processes: int
) -> tuple[Length, str]:
    """Return the length of the run, and its reason."""
    recipe = draft.recipe()
    batch = batch_of(recipe, processes)
    target = target_steps(kind, batch)
    shown = max(1, round(images.mean_repeats)) if images.has_own_repeats else draft.given.get("repeats")
    trained = max(1, round(images.total * (1 - recipe.validation_split)))
    length = choose_length(trained, batch, target, tier, repeats=shown, epochs=draft.given.get("epochs"))
    why = (
        f"{trained} images shown {times_as_text(length.repeats)} in {length.epochs} epochs come nearest to "
        f"{target:.0f} steps of {batch}: what a {kind.value} takes at the guide's rates, with fewer steps for larger "
        "batches (steps x sqrt(batch) stays)."
    )
    if (shown_once := trained * length.epochs) > 1.2 * target * batch:
        why = f"Once is enough: {trained} images make {shown_once} samples in {length.epochs} epochs."
    return length, why


def _choose_for_base(draft: RecipeDraft, kind: LoraKind, base: KnownBase | None) -> None:
    """Set resolution, sample prompts and prediction type; on the embedded base, the values of the demo preset."""
    draft.set("resolution", guide.RECIPE["resolution"].value, guide.RECIPE["resolution"].why)
    prompts = [base.prompt(text) if base else text for text in guide.KINDS[kind.value].prompts]
    why = "Sampled during training; written as this base expects its prompts."
    draft.set("sample_prompts", prompts, why, guided=False)
    draft.set("sample_at_first", True, "Later samples are compared with what the base draws.", guided=False)
    if base is None:
        return
    draft.set("prediction_type", "auto", f"Read from the base: {base.name} predicts {base.prediction_type}.")
    _choose_habits(draft, base)
    if not base.is_embedded:
        return
    draft.set(
        "network_alpha",
        guide.RECIPE["network_alpha"].value,
        "The demo preset's rates were chosen with it.",
        guided=False,
    )
    for name, value, why in _demo_preset():
        if name != "repeats":
            draft.set(name, value, why, guided=False)


@cache
def _demo_preset() -> list[tuple[str, Any, str]]:
    """Return the settings of the demo preset with their values and reasons."""
    reasons = preset_reasons("demo")
    return [
        (name, value, f"{reasons[name][:1].upper()}{reasons[name][1:]}.") for name, value in load_preset("demo").items()
    ]


def _choose_habits(draft: RecipeDraft, base: KnownBase) -> None:
    """Set what a base's model card recommends, where it differs from the defaults."""
    why = f"What the model card of {base.name} recommends."
    usual = Recipe.defaults()
    for name, value in base.recommended(usual.sample_steps, usual.sample_guidance).items():
        setting = name if name == "clip_skip" else f"sample_{name}"
        if name in ("sampler", "clip_skip") or value != getattr(usual, setting):
            draft.set(setting, value, why, guided=False)


def times_as_text(count: int) -> str:
    """Return "once", "twice" or "N times"."""
    return {1: "once", 2: "twice"}.get(count, f"{count} times")
