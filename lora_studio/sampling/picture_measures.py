"""Measures of a sweep's images by their features, by base, LoRA and strength; docs/measures.md defines them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from lora_studio.dataset.captions.text import split_tags
from lora_studio.dataset.images.decode import file_sha256
from lora_studio.dataset.tagging.interface import ModelFiles, Prediction
from lora_studio.dataset.tagging.selection import confidence_by_tag
from lora_studio.events import Measured, Report
from lora_studio.ledger.data import captions_by_path, image_files
from lora_studio.measures.adherence import adherence, content_kept, prompt_tags
from lora_studio.measures.colours import Colours, mean_colour
from lora_studio.measures.distances import Vectors
from lora_studio.measures.estimate import Estimate
from lora_studio.measures.features import ColouredFeatures, ImageFile, predictions_of, thumbnail_colours
from lora_studio.measures.models import feature_model
from lora_studio.measures.response import leakage, trigger_response
from lora_studio.measures.thumbnails import ThumbnailModel
from lora_studio.measures.training_images import closeness, likeness, memorisation, reproduction
from lora_studio.measures.variety import prompt_variety, seed_variety
from lora_studio.sampling.cells import CellKey, StrengthGroup, SweepPlan, base_label
from lora_studio.settings.sample_prompts import TRIGGER
from lora_studio.workspace.job_folder import DATASET_FILE
from lora_studio.workspace.project import Home

DIGITS = 4


class StrengthPictures(BaseModel):
    """The measures of the images of one base, LoRA and strength, each with its standard error; None if not measured.

    `likeness_without` is that of prompts without the trigger word, where there are prompts with it, too, and
    `caption_likeness` that of prompts that are captions of the training images.

    `nearest` is the training image nearest to an image, `nearest_cell` the file of that image, below the sweep's
    folder, and `nearest_ratio` their distance: the lowest of all images.
    """

    model_config = ConfigDict(frozen=True)

    base: str = ""
    lora: str = ""
    strength: float
    trigger_response: Measured | None = None
    leakage: Measured | None = None
    likeness: Measured | None = None
    likeness_without: Measured | None = None
    caption_likeness: Measured | None = None
    reproduction: Measured | None = None
    closeness: Measured | None = None
    validation_closeness: Measured | None = None
    memorisation: Measured | None = None
    seed_variety: Measured | None = None
    prompt_variety: Measured | None = None
    content_kept: Measured | None = None
    adherence: Measured | None = None
    contrast: Measured | None = None
    saturation: Measured | None = None
    clipped: Measured | None = None
    nearest: Path | None = None
    nearest_cell: Path | None = None
    nearest_ratio: float | None = None


class PictureMeasures(BaseModel):
    """All measures of a sweep: `features` is the model that compared, `images` the number of training images."""

    model_config = ConfigDict(frozen=True)

    features: str
    images: int = 0
    rows: list[StrengthPictures] = []

    def by_lora(self) -> dict[tuple[str, str], list[StrengthPictures]]:
        """Return the rows by LoRA and base."""
        found: dict[tuple[str, str], list[StrengthPictures]] = {}
        for row in self.rows:
            found.setdefault((row.lora, row.base), []).append(row)
        return found


def measure_pictures(
    plan: SweepPlan,
    cells: Mapping[CellKey, Path],
    folder: Path,
    home: Home,
    *,
    report: Report,
    should_stop: Callable[[], bool],
) -> PictureMeasures:
    """Return the measures of the cells that exist, of a sweep in `folder`, at each strength.

    The training images are those of the runs that the LoRAs are from; of other LoRAs they are not known. Raises
    InputError if the model cannot be loaded, StopRequested.
    """
    runs = [_run_of(lora.path) for lora in plan.loras]
    training, validation = ([_images(run, name) for run in runs] for name in ("train", "held out"))
    hashes = {image.sha256 for images in training for image in images}
    files = feature_model(plan.job.feature_model, sorted(hashes), home)

    def predicted(model: ModelFiles, images: Sequence[ImageFile], *, generated: bool) -> dict[Path, Prediction]:
        return predictions_of(model, images, home, report=report, should_stop=should_stop, generated=generated)

    drawn = [ImageFile(path, file_sha256(path)) for path in dict.fromkeys(cells.values())]
    pictures = _Pictures(
        plan,
        cells,
        files,
        predicted(files, drawn, generated=True),
        predicted(ThumbnailModel(), drawn, generated=True),
    )

    def features(images: Sequence[ImageFile]) -> ColouredFeatures:
        found, thumbnails = (predicted(model, images, generated=False) for model in (files, ThumbnailModel()))
        return ColouredFeatures.of(files, found, thumbnails)

    known = [tuple(features(images) for images in pair) for pair in zip(training, validation, strict=True)]
    captions = [{} if run is None else captions_by_path(run) for run in runs]
    all_captions = {path: caption for found in captions for path, caption in found.items()}
    rows = []
    for group in plan.strength_groups():
        own, held_out = known[group.lora - 1] if group.lora else (None, None)
        prompts = _Prompts.of(plan, group, captions[group.lora - 1] if group.lora else all_captions)
        if any(key in cells for key in group.cells):
            rows.append(_row(pictures, group, prompts, own, held_out, folder))
    return PictureMeasures(features=files.name, images=len(hashes), rows=rows)


@dataclass(frozen=True)
class _Pictures:
    """The images of a sweep with the predictions of the model and of the thumbnail model, by path."""

    plan: SweepPlan
    cells: Mapping[CellKey, Path]
    files: ModelFiles
    predictions: Mapping[Path, Prediction]
    thumbnails: Mapping[Path, Prediction]

    @cached_property
    def features(self) -> ColouredFeatures:
        """The features of all images."""
        return ColouredFeatures.of(self.files, self.predictions, self.thumbnails)

    @cached_property
    def colours(self) -> Colours:
        """The colour figures [N] of all images, in the order of `thumbnails`."""
        return thumbnail_colours(list(self.thumbnails.values()))

    def keys(self, group: StrengthGroup, prompts: Sequence[str], *, base_alone: bool = False) -> list[list[CellKey]]:
        """Return the cells of prompts, by prompt and seed: those of a group, or those of the base alone."""
        lora, strength = (0, 0.0) if base_alone or not group.strength else (group.lora, group.strength)
        seeds = self.plan.seeds
        return [[CellKey(group.base, lora, strength, prompt, seed) for seed in seeds] for prompt in prompts]

    def vectors(self, keys: Sequence[Sequence[CellKey]]) -> Vectors:
        """Return the features [prompts, seeds, F] of cells; NaN for those that do not exist."""
        return self._at(keys, self.features.paths, self.features.vectors)

    def with_colours(self, keys: Sequence[Sequence[CellKey]]) -> Vectors:
        """Return the features with colour histograms [prompts, seeds, F + bins] of cells; NaN for those missing."""
        return self._at(keys, self.features.paths, self.features.with_colours)

    def colour(self, keys: Sequence[Sequence[CellKey]], name: str) -> Vectors:
        """Return a colour figure [prompts, seeds] of cells."""
        return self._at(keys, list(self.thumbnails), getattr(self.colours, name))

    def confidences(self, keys: Sequence[Sequence[CellKey]]) -> list[list[Mapping[str, float] | None]]:
        """Return the confidence of each tag by cell."""
        found = [[self.predictions.get(self.cells.get(key, Path())) for key in row] for row in keys]
        labels = self.files.labels
        return [[None if item is None else confidence_by_tag(item, labels) for item in row] for row in found]

    def _at(self, keys: Sequence[Sequence[CellKey]], paths: Sequence[Path], values: NDArray[np.float32]) -> Vectors:
        places = {path: place for place, path in enumerate(paths)}
        shape = (len(keys), len(self.plan.seeds), *values.shape[1:])
        found = np.full(shape, np.nan, np.float32)
        for row, column in product(range(shape[0]), range(shape[1])):
            if (place := places.get(self.cells.get(keys[row][column], Path()))) is not None:
                found[row, column] = values[place]
        return found


def _row(
    pictures: _Pictures,
    group: StrengthGroup,
    prompts: _Prompts,
    training: ColouredFeatures | None,
    validation: ColouredFeatures | None,
    folder: Path,
) -> StrengthPictures:
    """Return the measures of one strength; of prompts with the trigger word, if there are any.

    Captions of training images are apart: a LoRA should draw what is in the image, so they tell nothing about copies.
    """
    about = prompts.with_trigger or prompts.without or list(prompts.captions)
    keys, bare = pictures.keys(group, about), pictures.keys(group, about, base_alone=True)
    shown, base = pictures.vectors(keys), pictures.vectors(bare)
    found: dict[str, Estimate | None] = {
        "trigger_response": _trigger_response(pictures, group, prompts.pairs),
        "leakage": _leakage(pictures, group, prompts.with_trigger, prompts.without),
        "seed_variety": seed_variety(shown, base),
        "prompt_variety": prompt_variety(shown, base),
        "content_kept": content_kept(shown, base),
        **{name: mean_colour(pictures.colour(keys, name)) for name in Colours._fields},
    }
    if pictures.files.labels:
        names = [label.name for label in pictures.files.labels]
        trigger_word = _trigger_word(pictures.plan, group)
        tags = [prompt_tags(prompt, names, trigger_word) for prompt in about]
        found["adherence"] = adherence(pictures.confidences(keys), tags)
    nearest: dict[str, Path | float] = {}
    if training is not None and validation is not None:
        sides = {
            "likeness": about,
            "likeness_without": prompts.without if prompts.with_trigger else [],
            "caption_likeness": list(prompts.captions),
        }
        for name, texts in sides.items() if group.strength else ():
            found[name] = _likeness(pictures, group, texts, training)
        found["reproduction"] = _reproduction(pictures, group, prompts.captions, training)
        found["closeness"] = closeness(shown, training.vectors)
        found["validation_closeness"] = closeness(shown, validation.vectors)
        if (copies := memorisation(shown, training.vectors)) is not None:
            found["memorisation"] = copies.mean
            prompt, seed = copies.closest
            nearest = {
                "nearest": training.paths[copies.nearest[prompt, seed]],
                "nearest_cell": pictures.cells[keys[prompt][seed]].relative_to(folder),
                "nearest_ratio": round(float(copies.ratios[prompt, seed]), DIGITS),
            }
    labels = pictures.plan.lora_labels
    return StrengthPictures(
        base=base_label(group.base),
        lora=labels[group.lora - 1] if group.lora else "",
        strength=group.strength,
        **{name: _measured(estimate) for name, estimate in found.items()},
        **nearest,
    )


def _likeness(
    pictures: _Pictures, group: StrengthGroup, prompts: Sequence[str], training: ColouredFeatures
) -> Estimate | None:
    if not prompts:
        return None
    shown, base = (
        pictures.with_colours(pictures.keys(group, prompts, base_alone=base_alone)) for base_alone in (False, True)
    )
    return likeness(shown, base, training.with_colours)


def _reproduction(
    pictures: _Pictures, group: StrengthGroup, captions: Mapping[str, Collection[str]], training: ColouredFeatures
) -> Estimate | None:
    """Return the measure of captions, given with the paths of their images."""
    paths = list(map(str, training.paths))
    own = {text: np.flatnonzero([path in files for path in paths]) for text, files in captions.items()}
    texts = [text for text, places in own.items() if len(places)]
    shown, base = (pictures.vectors(pictures.keys(group, texts, base_alone=base_alone)) for base_alone in (False, True))
    return reproduction(shown, base, [own[text] for text in texts], training.vectors)


def _trigger_response(pictures: _Pictures, group: StrengthGroup, pairs: Sequence[tuple[str, str]]) -> Estimate | None:
    if not pairs:
        return None
    sides = [[pair[side] for pair in pairs] for side in (0, 1)]
    own = [pictures.vectors(pictures.keys(group, side)) for side in sides]
    base = [pictures.vectors(pictures.keys(group, side, base_alone=True)) for side in sides]
    return trigger_response(*own, *base)


def _leakage(
    pictures: _Pictures, group: StrengthGroup, with_trigger: Sequence[str], without: Sequence[str]
) -> Estimate | None:
    if not with_trigger or not without or not group.strength:
        return None
    sides = (with_trigger, without)
    own = [pictures.vectors(pictures.keys(group, side)) for side in sides]
    base = [pictures.vectors(pictures.keys(group, side, base_alone=True)) for side in sides]
    return leakage(*own, *base)


@dataclass(frozen=True)
class _Prompts:
    """The filled-in prompts of a strength by what they tell; each is in one list.

    `captions` are those of training images, with the paths of these. `pairs` have one with and one without the trigger
    word that do not differ otherwise.
    """

    with_trigger: list[str]
    without: list[str]
    captions: Mapping[str, Collection[str]]
    pairs: list[tuple[str, str]]

    @classmethod
    def of(cls, plan: SweepPlan, group: StrengthGroup, captions: Mapping[str, str]) -> _Prompts:
        """Sort the prompts of a strength; `captions` are those of the training images by path."""
        filled = dict(zip(plan.templates, plan.prompts(group.base, group.lora), strict=True))
        has_trigger = bool(_trigger_word(plan, group))
        images: dict[str, set[str]] = {}
        for path, caption in captions.items():
            images.setdefault(caption, set()).add(path)
        known = {text: images[prompt] for text, prompt in filled.items() if prompt in images}
        with_trigger = [text for text in filled if has_trigger and TRIGGER in text and text not in known]
        without = {_tags(text): text for text in filled if TRIGGER not in text and text not in known}
        pairs = [
            (filled[text], filled[without[_tags(text)]])
            for text in with_trigger
            if _tags(text) in without and group.strength
        ]
        return cls(
            [filled[text] for text in with_trigger],
            [filled[text] for text in without.values()],
            {filled[text]: paths for text, paths in known.items()},
            pairs,
        )


def _tags(template: str) -> tuple[str, ...]:
    """Return what a prompt says besides the trigger word."""
    return tuple(tag.casefold() for tag in split_tags(template) if tag != TRIGGER)


def _trigger_word(plan: SweepPlan, group: StrengthGroup) -> str:
    own = plan.loras[group.lora - 1].trigger_word if group.lora else ""
    return plan.job.trigger_word or own


def _run_of(lora: Path) -> Path | None:
    """Return the folder of the run that a LoRA is from: its own or the one above; None if neither is a run's."""
    folders = (lora.parent, lora.parent.parent)
    return next((folder for folder in folders if (folder / DATASET_FILE).is_file()), None)


def _images(run: Path | None, name: str) -> list[ImageFile]:
    return [] if run is None else [ImageFile(*image) for image in image_files(run, name)]


def _measured(estimate: Estimate | None) -> Measured | None:
    if estimate is None:
        return None
    return round(estimate.value, DIGITS), None if estimate.error is None else round(estimate.error, DIGITS)
