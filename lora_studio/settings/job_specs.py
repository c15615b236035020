"""The job of a worker process, as saved in a job folder's job.toml: train, tag, sweep or download."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from math import prod
from pathlib import Path
from typing import Annotated, Any, ClassVar, Self

import tomlkit
from pydantic import Field, field_validator, model_validator

from lora_studio import guide
from lora_studio.errors import InputError
from lora_studio.settings.choices import ExistingCaptions, Precision, Sampler, SweepAxis
from lora_studio.settings.declare import CommaSeparated, Group, Settings, parse_toml, setting, split_commas, split_lines
from lora_studio.settings.ranges import expand_ranges
from lora_studio.settings.recipe import Recipe
from lora_studio.settings.subsets import Subset

MAX_CELLS = 10_000  # of a sweep
MAX_MEGAPIXELS = 12_000  # of all images of a sweep together: 10,000 images of SDXL's size
MAX_STEP_MEGAPIXELS = 1_000_000  # times the sampling steps: about two days of a fast GPU
NATIVE_SIDE = 1024  # px, of a sweep without width and height
BASE_HELP = "Base model: a name from the catalogue, Hub repository, diffusers folder or .safetensors file."


class Job(Settings):
    """The content of job.toml: all settings of one job."""

    kind: ClassVar[str]

    def with_paths(self, change: Callable[[Path], Path]) -> Self:
        """Return a copy with `change` applied to all paths."""
        return self.model_copy(update={name: _with_paths(value, change) for name, value in self})

    def with_absolute_paths(self) -> Self:
        """Return a copy whose paths are absolute, so that the job can be resumed from another working directory."""
        return self.with_paths(lambda path: path.expanduser().resolve())


class TrainJob(Job):
    """A training run: a recipe applied to a dataset and a base model."""

    kind: ClassVar[str] = "train"

    name: Annotated[str, Field(pattern=r"^[\w][\w .\-]{0,79}$")] = Field(
        default="lora", description="File name of the LoRA: letters, digits, spaces, dots, dashes and underscores."
    )
    dataset: Path = Field(description="Folder of images and captions; subfolders named 10_name set the repeats.")
    base: str = Field(description=BASE_HELP)
    vae: str | None = Field(
        default=None,
        description="VAE instead of the base's own: Hub repository, folder or .safetensors file.",
    )
    trigger_word: str = Field(
        default="",
        max_length=200,
        description="Trigger word; saved in the LoRA's metadata and used in sample prompts.",
    )
    regularization: Path | None = Field(
        default=None,
        description="Folder of regularisation images of the class, laid out like the dataset, against drift.",
    )
    network_weights: Path | None = Field(
        default=None, description="LoRA file to start from; its type, ranks and alphas must match the recipe."
    )
    subsets: list[Subset] = Field(
        default=[],
        max_length=1000,
        description="Folders with repeats and settings of their own, instead of those found in the dataset's folder.",
    )
    parent: Path | None = Field(
        default=None, description="Folder of the run that this one was made from, to compare with."
    )
    continues: bool = Field(
        default=False,
        description="Whether the run began with the state of its parent, which it trains for more epochs.",
    )
    num_processes: int = setting(
        1,
        label="GPUs",
        group=Group.MEMORY,
        why="Each GPU trains on a batch of its own at every step: 2 GPUs with batch size 2 equal one with batch size "
        "4, in about half the time.",
        ge=1,
        le=64,
    )
    recipe: Recipe = Field(default_factory=Recipe)

    @field_validator("subsets")
    @classmethod
    def _has_training_images(cls, value: list[Subset]) -> list[Subset]:
        if value and all(subset.is_reg for subset in value):
            raise ValueError("are all regularisation images: add one with the images to train on")
        return value


class TagJob(Job):
    """Writing captions for the images of a folder."""

    kind: ClassVar[str] = "tag"

    dataset: Path = Field(description="Folder of images; includes its subfolders named N_name.")
    tagger: str = Field(description="wd14, florence2, demo, a Hub repository or a folder; several are combined.")
    also: Annotated[list[str], CommaSeparated] = setting(
        [],
        label="Combine with",
        group=Group.DATA,
        why="More taggers whose tags are added: each tag once, with its highest confidence; sentences come first.",
        max_length=4,
    )
    threshold: float = setting(
        label="Threshold",
        group=Group.DATA,
        advice="tagger_threshold",
        why=f"Minimum confidence of a tag. {guide.RECIPE['tagger_threshold'].why}",
        ge=0,
        le=1,
    )
    character_threshold: float = setting(
        label="Character threshold",
        group=Group.DATA,
        advice="character_threshold",
        why=f"Minimum confidence of a character's name. {guide.RECIPE['character_threshold'].why}",
        ge=0,
        le=1,
    )
    prompt: str = setting(
        "",
        label="Prompt",
        group=Group.DATA,
        why="What captioners that follow a prompt (Florence-2, Qwen-VL, JoyCaption) are asked; {trigger} is the "
        "trigger word. Empty: two or three sentences. Florence-2 takes <CAPTION>, <DETAILED_CAPTION> or "
        "<MORE_DETAILED_CAPTION>.",
        max_length=2000,
    )
    max_caption_tokens: int = setting(
        200,
        label="Max caption tokens",
        group=Group.DATA,
        why="Limit of a caption by a prompt, in the captioner's tokens; CLIP reads 75 tokens at a time.",
        ge=10,
        le=1000,
    )
    trigger_word: str = Field(
        default="", max_length=200, description="Trigger word; put first in every caption, never repeated."
    )
    existing: ExistingCaptions = Field(
        default=ExistingCaptions.IGNORE,
        description="What to do with existing captions: keep (ignore), append or overwrite them.",
    )
    exclude_tags: Annotated[list[str], CommaSeparated] = setting(
        [],
        label="Exclude tags",
        group=Group.DATA,
        why="Whole tags, separated by commas. Leave out what all images share: the trigger word should learn it.",
        max_length=1000,
    )
    only_tags: Annotated[list[str], CommaSeparated] = setting(
        [],
        label="Only these tags",
        group=Group.DATA,
        why="Whole tags, separated by commas; no others are written. Empty: all above the threshold. Sentences stay.",
        max_length=1000,
    )

    compare: Path | None = Field(default=None, description="Compare the taggers on this image, and write no caption.")

    @model_validator(mode="before")
    @classmethod
    def _several_taggers(cls, values: Any) -> Any:
        """Accept a list of taggers as `tagger`: the first stays, the others go into `also`."""
        if isinstance(values, dict) and isinstance(several := values.get("tagger"), list | tuple) and several:
            return {**values, "tagger": several[0], "also": [*several[1:], *split_commas(values.get("also", []))]}
        return values


class StackedLora(Settings):
    """A LoRA that all cells of a sweep have besides the tested one.

    As text it is `PATH`, `PATH:STRENGTH` or `PATH:STRENGTH:TEXT_ENCODER_STRENGTH`.
    """

    path: Path = Field(description="LoRA file.")
    strength: float = Field(default=1.0, ge=-4, le=4, description="Strength in the UNet.")
    text_encoder_strength: float | None = Field(
        default=None, ge=-4, le=4, description="Strength in the text encoders; by default that in the UNet."
    )

    @property
    def strengths(self) -> str:
        """The strengths as text: `0.6`, or `0.6:0.3` if that in the text encoders is another one."""
        own = "" if self.text_encoder_strength is None else f":{self.text_encoder_strength:g}"
        return f"{self.strength:g}{own}"

    @model_validator(mode="before")
    @classmethod
    def _text(cls, value: Any) -> Any:
        if not isinstance(value, str):
            return value
        match = re.fullmatch(r"(.+?)(?::([-+.\d]+))?(?::([-+.\d]+))?", value.strip(), re.DOTALL)
        names = ("path", "strength", "text_encoder_strength")
        return {name: part for name, part in zip(names, match.groups(), strict=True) if part} if match else {}


class SweepJob(Job):
    """A strength sweep: images of LoRAs at several strengths with equal seeds, so that only the strength differs.

    Without LoRAs it has the images of the base alone. `seed` is accepted for a list of one.
    """

    kind: ClassVar[str] = "sweep"

    loras: list[Path] = Field(
        default=[], max_length=20, description="LoRA files, or checkpoints of a run; none: the base alone is drawn."
    )
    with_loras: list[StackedLora] = Field(
        default=[],
        max_length=4,
        description="LoRAs that every cell has besides, strength 0 too: FILE, FILE:STRENGTH or "
        "FILE:STRENGTH:TEXT_ENCODER_STRENGTH.",
    )
    bases: list[str] = Field(min_length=1, max_length=8, description=BASE_HELP)
    prompts: list[str] = setting(
        label="Prompts, one per line",
        group=Group.SAMPLES,
        why="{trigger} is replaced by the trigger word. A prompt without it shows what the LoRA changes unasked.",
        min_length=1,
        max_length=32,
    )
    trigger_word: str = setting(
        "",
        label="Trigger word",
        group=Group.SAMPLES,
        why="Replaces {trigger}. Empty: the trigger word that each LoRA was trained with.",
        max_length=200,
    )
    strengths: Annotated[list[Annotated[float, Field(ge=-4, le=4)]], CommaSeparated] = setting(
        list(guide.RECIPE["strengths"].value),
        label="Strengths",
        group=Group.SAMPLES,
        why=f"Separated by commas, or a range like 0:1.4:0.2. {guide.RECIPE['strengths'].why}",
        min_length=1,
        max_length=32,
    )
    text_encoder_strength: float | None = setting(
        None,
        label="Text encoder strength",
        group=Group.SAMPLES,
        why="Strength of the tested LoRA in the text encoders, at every strength but 0. Empty: as in the UNet.",
        ge=-4,
        le=4,
    )
    negative_prompt: str = setting(
        "",
        label="Negative prompt",
        group=Group.SAMPLES,
        why="What the images should not show; auto: what the model card of each base recommends.",
        max_length=2000,
    )
    quality_tags: bool = setting(
        False,
        label="Quality tags of the base",
        group=Group.SAMPLES,
        why="Adds to every prompt what each base expects, like Pony's score tags, unless the prompt has it.",
    )
    seeds: Annotated[list[Annotated[int, Field(ge=0, le=2**32 - 1)]], CommaSeparated] = setting(
        [42],
        label="Seeds",
        group=Group.SAMPLES,
        why="Separated by commas, or a range like 1:4. Each is the noise of one image of every other combination: "
        "several show how much is chance.",
        min_length=1,
        max_length=32,
    )
    sampler: Sampler = setting(
        Sampler.EULER,
        label="Sampler",
        group=Group.SAMPLES,
        why="euler is a safe choice; those that end in _a add noise at every step.",
    )
    steps: int = setting(25, label="Sampling steps", group=Group.SAMPLES, why="More steps change little.", ge=1, le=200)
    guidance: float = setting(
        6.0,
        label="CFG scale",
        group=Group.SAMPLES,
        why="How closely the prompt is followed; 5 to 7 suits SDXL.",
        ge=0,
        le=30,
    )
    width: int | None = setting(
        None,
        label="Width",
        unit="px",
        group=Group.SAMPLES,
        why="Empty: the base model's native resolution.",
        ge=64,
        le=4096,
        multiple_of=8,
    )
    height: int | None = setting(
        None,
        label="Height",
        unit="px",
        group=Group.SAMPLES,
        why="Empty: the base model's native resolution.",
        ge=64,
        le=4096,
        multiple_of=8,
    )
    clip_skip: int = setting(label="Clip skip", group=Group.SAMPLES, advice="clip_skip", ge=1, le=12)
    mixed_precision: Precision = setting(label="Precision", group=Group.SAMPLES, advice="mixed_precision")
    feature_model: str = setting(
        "",
        label="Model that compares images",
        group=Group.SAMPLES,
        why="Measures trigger response, copies of training images and variety. Empty: the tagger of the dataset. Or "
        "CLIP, SigLIP or DINOv2 as a folder or a Hub repository that is on this machine: nothing is downloaded.",
        max_length=300,
    )
    rows: SweepAxis | None = Field(
        default=None, description="Axis of the grid's rows; by default prompts, or seeds if there is one prompt."
    )
    columns: SweepAxis | None = Field(
        default=None, description="Axis of the grid's columns; by default strengths. The other axes are pages."
    )

    @property
    def cell_count(self) -> int:
        """The number of images, of which those at strength 0 may be shared by several LoRAs."""
        return _cells(vars(self))

    @model_validator(mode="before")
    @classmethod
    def _one_seed(cls, values: Any) -> Any:
        """Accept one `seed` instead of `seeds`."""
        if isinstance(values, dict) and "seed" in values:
            values = dict(values)
            seed = values.pop("seed")
            if "seeds" in values:
                raise ValueError("seed and seeds exclude each other: give seeds")
            values["seeds"] = [seed]
        return values

    @field_validator("prompts", mode="before")
    @classmethod
    def _lines(cls, value: Any) -> Any:
        return split_lines(value)

    @field_validator("strengths", "seeds", mode="before")
    @classmethod
    def _ranges(cls, value: Any) -> Any:
        return expand_ranges(value)

    @model_validator(mode="after")
    def _two_axes(self) -> Self:
        """Refuse one axis for both sides of the grid, and more cells than anybody looks at."""
        values = vars(self)  # incomplete while a form checks a single field
        rows, columns = values.get("rows"), values.get("columns")
        if rows is not None and rows is columns:
            raise ValueError(f"rows and columns are both {rows}: choose another axis for one of them")
        if (cells := _cells(values)) > MAX_CELLS:
            raise ValueError(f"the grid would have {cells:,} cells, more than {MAX_CELLS:,}: shorten one of the lists")
        _check_work(cells, *(values.get(name) for name in ("width", "height", "steps")))
        return self


def _cells(values: Mapping[str, Any]) -> int:
    """Return the most cells that the lists of a sweep lead to."""
    axes = ("bases", "prompts", "seeds", "loras", *["strengths"] * bool(values.get("loras")))
    return prod(len(values.get(name) or [None]) for name in axes)


class DownloadJob(Job):
    """Downloading a base model from the Hub."""

    kind: ClassVar[str] = "download"

    base: str = Field(description="Base model: a name from the catalogue, or a Hub repository.")


AnyJob = TrainJob | TagJob | SweepJob | DownloadJob
JOB_KINDS: dict[str, type[AnyJob]] = {kind.kind: kind for kind in (TrainJob, TagJob, SweepJob, DownloadJob)}


def _check_work(cells: int, width: int | None, height: int | None, steps: int | None) -> None:
    """Raise ValueError for a sweep with more pixels, or pixels times steps, than anybody waits for."""
    pixels = cells * (width or NATIVE_SIDE) * (height or NATIVE_SIDE) / 1e6
    if pixels > MAX_MEGAPIXELS:
        raise ValueError(
            f"the {cells:,} images would have {pixels:,.0f} megapixels together, more than {MAX_MEGAPIXELS:,}: "
            "shorten one of the lists, or set a smaller width and height"
        )
    if (work := pixels * (steps or 1)) > MAX_STEP_MEGAPIXELS:
        raise ValueError(
            f"{steps} steps of {cells:,} images would be {work:,.0f} megapixels to compute, more than "
            f"{MAX_STEP_MEGAPIXELS:,}: set fewer steps, or shorten one of the lists"
        )


def _with_paths(value: Any, change: Callable[[Path], Path]) -> Any:
    if isinstance(value, list):
        return [_with_paths(item, change) for item in value]
    if isinstance(value, Subset | StackedLora):
        return value.model_copy(update={name: change(item) for name, item in value if isinstance(item, Path)})
    return change(value) if isinstance(value, Path) else value


def job_to_toml(job: AnyJob) -> str:
    """Return the job as TOML, `kind` first and unset values left out; `job_from_toml` reads it back to an equal job."""
    document = tomlkit.document()
    document["kind"] = job.kind
    for name, value in job.model_dump(mode="json", exclude_none=True).items():
        document[name] = value
    return tomlkit.dumps(document)


def job_from_toml(text: str, source: str = "job file") -> AnyJob:
    """Parse a job; raise InputError for broken TOML or an unknown kind, ConfigError for wrong values."""
    values = parse_toml(text, source)
    kind = values.pop("kind", "train")
    if kind not in JOB_KINDS:
        raise InputError(f"{source}: kind {kind!r} is unknown.", f"Use one of {', '.join(JOB_KINDS)}.", code="job_kind")
    return JOB_KINDS[kind].parse(values)
