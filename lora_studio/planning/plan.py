"""The plan: a recipe for given images, kind of LoRA, base and GPU, with reasons, length and warnings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

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
from lora_studio.planning.memory import lora_mib
from lora_studio.planning.memory_ladder import memory_ladder
from lora_studio.planning.planned_memory import PlannedMemory, recipe_on_cpu
from lora_studio.planning.planned_run import Plan
from lora_studio.planning.recommend import RecipeDraft, recommend
from lora_studio.planning.speeds import MeasuredSpeed, find_speeds
from lora_studio.planning.steps import StepCount
from lora_studio.planning.timing import SecondsRange
from lora_studio.settings.choices import LoraKind
from lora_studio.settings.plan_numbers import check_plan_number
from lora_studio.settings.recipe import Recipe
from lora_studio.settings.subsets import Subset
from lora_studio.workspace.project import Home, ProjectInfo

NEW_PROJECT = ProjectInfo.defaults()


@dataclass(frozen=True, kw_only=True)
class PlanInputs:
    """Everything that a plan follows from, read from disk once; the names are those of `plan`'s arguments.

    `known` is the base as its configuration describes it, `speeds` are those of earlier runs with it on the device.
    """

    images: DatasetImages
    assumed: bool
    kind: LoraKind
    base: str
    known: KnownBase | None
    vram_gib: float | None = None
    trigger_word: str | None = None
    overrides: Mapping[str, Any] = field(default_factory=dict)
    hours: float | None = None
    regularization: DatasetImages | None = None
    device: str | None = None
    speeds: Sequence[MeasuredSpeed] = ()
    num_processes: int = 1

    @property
    def on_cpu(self) -> bool:
        """True if the plan is for this machine, which has no GPU, and not for the memory of another one."""
        return self.device == "CPU" and self.vram_gib is None

    def on_device(self, recipe: Recipe) -> Recipe:
        """Return a recipe with the precision that auto means on this device, for the estimates of memory."""
        return recipe_on_cpu(recipe) if self.on_cpu else recipe

    def estimator(self) -> RunEstimator:
        """Return what estimates length, time and memory of recipes."""
        return RunEstimator(
            self.images,
            self.regularization,
            self.known,
            self.vram_gib,
            self.device or "",
            self.speeds,
            self.num_processes,
        )

    def recommended(self) -> RecipeDraft:
        """Return the recommended values with their reasons; they may not fit the GPU's memory yet."""
        given, processes = dict(self.overrides), self.num_processes
        return recommend(given, self.kind, self.known, self.images, self.vram_gib, processes=processes)

    def fitted(self, draft: RecipeDraft, run: RunEstimator) -> Recipe:
        """Make a draft fit memory and time; raises InputError for settings that cannot work."""
        recipe = draft.recipe()
        if self.vram_gib is not None:
            recipe = fit_memory(draft, recipe, self.known, self.vram_gib, processes=self.num_processes)
        require_valid(recipe, self.known)
        if self.hours is not None:
            least_steps = round(target_steps(self.kind, batch_of(recipe, self.num_processes)) / 2)
            recipe = fit_time(draft, recipe, run, self.hours, guide.tier_for(self.images.total), least_steps)
        return recipe

    def plan(self) -> Plan:
        """Return the plan; raises InputError for settings that cannot work."""
        found, known = self.images, self.known
        draft, run = self.recommended(), self.estimator()
        ladder = memory_ladder(self.on_device(draft.recipe()), known, self.vram_gib, processes=self.num_processes)
        recipe = self.fitted(draft, run)
        steps, seconds, memory = run.steps(recipe), run.seconds(recipe), run.memory(self.on_device(recipe))
        return Plan(
            images=found.total,
            assumed=self.assumed,
            kind=self.kind,
            base=known.name if known else self.base,
            base_about=known.why if known else "",
            tier=guide.tier_for(found.total),
            recipe=recipe,
            reasons=draft.reasons(recipe),
            repeats=round(found.mean_repeats_in(recipe)),
            num_processes=self.num_processes,
            steps=steps,
            memory=memory,
            ladder=ladder,
            seconds=seconds,
            lora_mib=round(lora_mib(recipe, known, on_cpu=self.on_cpu), 1),
            on_cpu=self.on_cpu,
            warnings=self._warnings(recipe, run, steps, seconds, memory),
            tagger=known.tagger if known else "",
            tagging=_tagging(self.kind, known),
            base_advice=f"{known.why if known else ''} {guide.KINDS[self.kind.value].base}".strip(),
            prediction_type=known.prediction_type if known else recipe.prediction_type.value,
        )

    def _warnings(
        self, recipe: Recipe, run: RunEstimator, steps: StepCount, seconds: SecondsRange, memory: PlannedMemory
    ) -> list[Caution]:
        context = CheckContext(
            base=self.known,
            images=self.images.total,
            sizes=None if self.assumed else [image.size for image in self.images.images],
            count=steps,
            own_share=run.own_share(recipe),
            vram_gib=self.vram_gib,
            memory=memory,
            processes=self.num_processes,
            trigger_word=self.trigger_word,
            seconds=seconds,
            hours=self.hours,
        )
        return [
            *_base_warnings(self.base, self.known),
            *check_dataset(self.images, recipe, self.trigger_word or ""),
            *check_recipe(recipe, context),
        ]


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
    runs on it, whose speed and memory `home` remembers, replace the estimates. `regularization` is a folder of images
    that are balanced against the dataset's. With `subsets` these are counted instead of the folder's images.
    With `num_processes` above 1, memory and batch size are those of each of several GPUs, steps and time of all.

    Raises InputError for an empty folder, an unknown kind, a number out of its bounds, or a base that is missing or not
    an SDXL, ConfigError for unknown settings and values that cannot work.
    """
    inputs = read_inputs(
        images,
        kind=kind,
        base=base,
        vram_gib=vram_gib,
        trigger_word=trigger_word,
        overrides=overrides,
        hours=hours,
        regularization=regularization,
        subsets=subsets,
        home=home,
        device=device,
        num_processes=num_processes,
    )
    return inputs.plan()


def read_inputs(
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
) -> PlanInputs:
    """Read what a plan follows from; the arguments and errors are those of `plan`."""
    given = _checked(overrides or {})
    kind = _kind(kind)
    for name, value in (("vram_gib", vram_gib), ("hours", hours)):
        check_plan_number(name, value)
    home = home or Home.locate()
    known = describe_base(base, home)
    extension = Recipe.parse(given).caption_extension
    name = known.name if known else base
    return PlanInputs(
        images=_images(images, given.get("resolution") or _native_side(known), extension, subsets),
        assumed=isinstance(images, int),
        kind=kind,
        base=base,
        known=known,
        vram_gib=vram_gib,
        trigger_word=trigger_word,
        overrides=given,
        hours=hours,
        regularization=_regularization_images(regularization, extension, subsets),
        device=device,
        speeds=() if device is None else find_speeds(home, name, device),
        num_processes=num_processes,
    )


def _native_side(base: KnownBase | None) -> int:
    return base.resolution if base else guide.RECIPE["resolution"].value


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
