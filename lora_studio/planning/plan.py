"""The plan: a recipe for given images, kind of LoRA, base and GPU, with reasons, length and warnings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from lora_studio import guide
from lora_studio.dataset.training_images import DatasetImages, read_images
from lora_studio.errors import ConfigError, InputError
from lora_studio.models.catalogue import KnownBase
from lora_studio.models.describe import describe_base
from lora_studio.planning.advice import CheckContext, check_recipe, require_valid
from lora_studio.planning.cautions import Caution
from lora_studio.planning.dataset_cautions import check_dataset
from lora_studio.planning.estimate import RunEstimator
from lora_studio.planning.fit import fit_memory, fit_time
from lora_studio.planning.length import batch_of, target_steps
from lora_studio.planning.memory import estimate_vram_gib, estimate_vram_parts, estimate_vram_phases, lora_mib
from lora_studio.planning.memory_ladder import Rung, memory_ladder
from lora_studio.planning.recommend import Reason, recommend, times_as_text
from lora_studio.planning.speeds import find_speeds
from lora_studio.planning.steps import StepCount
from lora_studio.planning.timing import SecondsRange, describe_duration
from lora_studio.settings.choices import LoraKind
from lora_studio.settings.plan_numbers import check_plan_number
from lora_studio.settings.recipe import Recipe
from lora_studio.settings.subsets import Subset
from lora_studio.workspace.project import Home, ProjectInfo

NEW_PROJECT = ProjectInfo.defaults()


class Plan(BaseModel):
    """A planned run: recipe, number of steps and estimates. `repeats` is the folders' average if they set them."""

    model_config = ConfigDict(frozen=True)

    images: int
    assumed: bool
    kind: LoraKind
    base: str
    base_about: str
    tier: guide.Tier
    recipe: Recipe
    reasons: list[Reason]
    repeats: int
    steps: StepCount
    vram_gib: float
    vram_parts: dict[str, float]
    vram_phases: dict[str, float]
    ladder: list[Rung]
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
            "vram_phases": self.vram_phases,
            "memory_ladder": [rung.model_dump(mode="json") for rung in self.ladder],
            "seconds": self.seconds.middle,
            "seconds_range": [self.seconds.low, self.seconds.high],
            "seconds_source": self.seconds.source,
            "lora_mib": self.lora_mib,
            "tagger": self.tagger,
            "recipe": self.recipe.non_defaults(),
            "reasons": [reason.model_dump(mode="json") for reason in self.reasons],
            "warnings": [warning.model_dump() for warning in self.warnings],
        }

    def describe(self) -> str:
        """Return the plan as a few sentences, one per line."""
        source = "assumed to be square and of one size" if self.assumed else "counted"
        text = self.recipe.trains_text_encoders
        return "\n".join(
            [
                f"{self.images} images ({source}): a {self.tier.name} set, good for {self.tier.good_for}. "
                f"{self.tier.focus}",
                f"{self.steps.steps_per_epoch} steps per epoch, {self.steps.total_steps} in all: every image is shown "
                f"{times_as_text(self.repeats)} per epoch, {self.steps.epochs} epochs, "
                f"batch size {self.recipe.batch_size}.",
                f"Roughly {self.vram_gib:.1f} GiB of GPU memory, and {describe_duration(self.seconds.low)} to "
                f"{describe_duration(self.seconds.high)}, {self.seconds.source}.",
                f"The {self.recipe.network_type.value} will take {self.lora_mib:.0f} MiB"
                f"{' with its text encoder part' if text else ''}.",
                f"{self.base}: {self.base_advice}",
                self.tagging,
            ]
        )


def plan(
    images: Path | str | int,
    *,
    kind: LoraKind | str = NEW_PROJECT.kind,
    base: str = NEW_PROJECT.base,
    vram_gib: float | None = None,
    trigger_word: str | None = None,
    overrides: Mapping[str, Any] | None = None,
    hours: float | None = None,
    regularization: Path | str | None = None,
    subsets: Sequence[Subset] = (),
    home: Home | None = None,
    device: str | None = None,
    num_processes: int = 1,
) -> Plan:
    """Plan a training run.

    `images` is a dataset's folder, whose image sizes are read, or a number of images, assumed to be square. `base` is a
    name from the catalogue, or a repository, folder or file, whose configuration is read (see describe_base); names of
    files are looked up in the models folder of `home`, by default the usual one. `vram_gib` is the GPU's memory in
    GiB, which the recipe is made to fit. `overrides` are recipe values that are not changed. `hours` limits the time
    with fewer repeats, then fewer epochs, then fewer steps. `device` is the GPU's name or "CPU": earlier
    runs on it, whose speed `home` remembers, replace the estimate of the time. `regularization` is a folder of images
    that are balanced against the dataset's. With `subsets` these are counted instead of the folder's images.
    With `num_processes` above 1 the memory is that of each of several GPUs; steps and time are those of one.

    Raises InputError for an empty folder, an unknown kind, a number out of its bounds, or a base that is missing or not
    an SDXL, ConfigError for unknown settings and values that cannot work.
    """
    given = _checked(overrides or {})
    kind = _kind(kind)
    for name, value in (("vram_gib", vram_gib), ("hours", hours)):
        check_plan_number(name, value)
    home = home or Home.locate()
    known = describe_base(base, home)
    side = known.resolution if known else guide.RECIPE["resolution"].value
    extension = Recipe.parse(given).caption_extension
    found = _images(images, given.get("resolution") or side, extension, subsets)
    prior = _regularization_images(regularization, extension, subsets)
    draft = recommend(given, kind, known, found, vram_gib)
    recipe = draft.recipe()
    ladder = memory_ladder(recipe, known, vram_gib, processes=num_processes)
    if vram_gib is not None:
        recipe = fit_memory(draft, recipe, known, vram_gib, processes=num_processes)
    require_valid(recipe, known)
    name = known.name if known else base
    speeds = [] if device is None else find_speeds(home, name, device)
    run = RunEstimator(found, prior, known, vram_gib, device or "", speeds)
    if hours is not None:
        least_steps = round(target_steps(kind, batch_of(recipe)) / 2)
        recipe = fit_time(draft, recipe, run, hours, guide.tier_for(found.total), least_steps)
    steps, seconds = run.steps(recipe), run.seconds(recipe)
    context = CheckContext(
        base=known,
        images=found.total,
        sizes=None if isinstance(images, int) else [image.size for image in found.images],
        count=steps,
        own_share=run.own_share(recipe),
        vram_gib=vram_gib,
        processes=num_processes,
        trigger_word=trigger_word,
        seconds=seconds,
        hours=hours,
    )
    return Plan(
        images=found.total,
        assumed=isinstance(images, int),
        kind=kind,
        base=name,
        base_about=known.why if known else "",
        tier=guide.tier_for(found.total),
        recipe=recipe,
        reasons=draft.reasons(recipe),
        repeats=round(found.mean_repeats_in(recipe)),
        steps=steps,
        vram_gib=estimate_vram_gib(recipe, known, vram_gib, processes=num_processes),
        vram_parts=estimate_vram_parts(recipe, known, vram_gib, processes=num_processes),
        vram_phases=estimate_vram_phases(recipe, known, vram_gib, processes=num_processes),
        ladder=ladder,
        seconds=seconds,
        lora_mib=round(lora_mib(recipe, known, on_cpu=device == "CPU"), 1),
        warnings=[
            *_base_warnings(base, known),
            *check_dataset(found, recipe, trigger_word or ""),
            *check_recipe(recipe, context),
        ],
        tagger=known.tagger if known else "",
        tagging=_tagging(kind, known),
        base_advice=f"{known.why if known else ''} {guide.KINDS[kind.value].base}".strip(),
        prediction_type=known.prediction_type if known else recipe.prediction_type.value,
    )


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


def _not_images(images: object) -> InputError:
    return InputError(f"images is {images!r}.", "Give a folder, or a whole number of images.", code="images")


def _images(images: Path | str | int, side: int, caption_extension: str, subsets: Sequence[Subset]) -> DatasetImages:
    if not isinstance(images, int):
        own = [subset for subset in subsets if not subset.is_reg]
        return _read_folder(images, caption_extension=caption_extension, subsets=own)
    if isinstance(images, bool):
        raise _not_images(images)
    check_plan_number("images", images)
    return DatasetImages.assumed(images, side)


def _regularization_images(
    folder: Path | str | None, caption_extension: str, subsets: Sequence[Subset]
) -> DatasetImages | None:
    """Read the regularisation images of a folder, or of the subsets that are some; None without any."""
    priors = [subset for subset in subsets if subset.is_reg]
    if folder is None and not priors:
        return None
    return _read_folder(folder or Path(), caption_extension=caption_extension, subsets=priors)


def _read_folder(folder: Path | str, *, caption_extension: str, subsets: Sequence[Subset] = ()) -> DatasetImages:
    """Read the images of a folder, or of subsets; raises InputError if it is missing or has no readable images."""
    if not isinstance(folder, Path | str):
        raise _not_images(folder)
    folder = Path(folder).expanduser()
    found = read_images(folder, caption_extension=caption_extension, subsets=subsets)
    if not found.total:
        raise InputError(f"{folder} has no readable images.", "Add images to it.", code="no_images")
    return found


def _base_warnings(name: str, base: KnownBase | None) -> list[Caution]:
    if base is not None:
        return []
    return [
        Caution(
            code="base_unchecked",
            message=f"{name} could not be looked at. It is planned as an SDXL that predicts epsilon.",
            why="What it really predicts is read before the training starts; another architecture is refused then.",
        )
    ]


def _tagging(kind: LoraKind, base: KnownBase | None) -> str:
    names = {"wd14": "WD14", "blip": "BLIP", "demo": "the embedded tagger"}
    name = names.get(base.tagger) if base else None
    return f"Tag with {name or 'WD14 for anime, BLIP for realistic images'}. {guide.KINDS[kind.value].tagging}"
