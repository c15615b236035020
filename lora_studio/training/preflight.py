"""Everything that is wrong with a training job, told at once and before the first step."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

import torch
from diffusers import UNet2DConditionModel
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel

from lora_studio import guide
from lora_studio.config import PredictionType, Recipe, TrainJob
from lora_studio.device import torch_device, torch_dtype
from lora_studio.errors import ConfigError, InputError
from lora_studio.planning.advice import problems
from lora_studio.planning.steps import StepCount
from lora_studio.project import Home
from lora_studio.runs import JobFolder
from lora_studio.training.adapters import text_encoder_targets, unet_targets
from lora_studio.training.base_files import Facts, Source, fetch, find_vae, read_facts, resolve
from lora_studio.training.batches import Dataset, read_dataset
from lora_studio.training.optimizers import try_optimizer
from lora_studio.training.parallel import process_problems
from lora_studio.training.trial import try_adapters

SHOWN = 5  # problems of one kind that are listed
LATENT_BYTES = 2 * 4 * 4 / 64  # a pixel: mean and log-variance of 4 channels in fp32, at an eighth of each side
TEXT_BYTES = 77 * 2048 * 4 + 1280 * 4  # a caption, in fp32
STATE_BYTES = 2 * (4 + 16)  # a weight: two states with it in fp32, and the four values that Prodigy keeps of it
SPARE = 2**28  # bytes that stay free

T = TypeVar("T")


@dataclass(frozen=True)
class ReadyJob:
    """What a job that can start needs."""

    dataset: Dataset
    counts: StepCount
    source: Source
    facts: Facts
    prediction_type: str
    device: torch.device
    dtype: torch.dtype
    dtype_reason: str


def preflight(
    job: TrainJob, folder: JobFolder, home: Home, *, on_progress: Callable[[str, int, int], None]
) -> ReadyJob:
    """Check a job and return what it needs. Raises ConfigError with all problems at once.

    A base on the Hub is downloaded here if nothing else is wrong.
    """
    recipe = job.recipe
    found: list[str] = []

    def attempt(check: Callable[[], T]) -> T | None:
        try:
            return check()
        except ConfigError as error:
            found.extend(error.problems)
        except InputError as error:
            found.append(str(error))
        return None

    dataset = attempt(lambda: _dataset(job, on_progress))
    if dataset is not None:
        found += _dataset_problems(job, dataset)
    source = attempt(lambda: resolve(job.base, home))
    facts = attempt(partial(read_facts, source)) if source is not None and source.kind != "repo" else None
    if job.vae is not None:
        attempt(partial(find_vae, job.vae))
    attempt(try_adapters)
    found += [*problems(recipe, guide.find_base(job.base)), *process_problems(job)]
    device = torch_device()
    precision = attempt(lambda: torch_dtype(recipe.mixed_precision, device))
    attempt(lambda: try_optimizer(recipe, device))
    found += [problem for place in (folder.path, home.cache) if (problem := _write_problem(place))]
    if source is not None and source.kind == "repo" and not found:
        source = attempt(partial(fetch, source, on_progress=lambda message: on_progress(message, 0, 0)))
        facts = attempt(partial(read_facts, source)) if source is not None else None
    if facts is not None:
        found += [*_prediction_problems(job, facts), *_doubts(job, facts, source), *_clip_skip_problems(job, facts)]
    if facts is not None and dataset is not None and not found:
        width = 4 if precision is not None and precision[0] == torch.float32 else 2
        found += _space_problems(job, folder, home, dataset, lora_weights(recipe, facts), width)
    if found or dataset is None or source is None or facts is None or precision is None:
        raise ConfigError(dict.fromkeys(found))
    chosen = recipe.prediction_type
    return ReadyJob(
        dataset=dataset,
        counts=dataset.count(recipe),
        source=source,
        facts=facts,
        prediction_type=facts.prediction_type if chosen is PredictionType.AUTO else chosen.value,
        device=device,
        dtype=precision[0],
        dtype_reason=precision[1],
    )


def _dataset(job: TrainJob, on_progress: Callable[[str, int, int], None]) -> Dataset:
    if not job.dataset.is_dir():
        raise InputError(f"dataset: there is no folder {job.dataset}.", "Give a folder with images.", code="no_folder")
    return read_dataset(
        job.dataset,
        job.recipe,
        job.trigger_word,
        on_progress=lambda done, total: on_progress("Reading images", done, total),
    )


def _dataset_problems(job: TrainJob, dataset: Dataset) -> list[str]:
    found = [f"dataset: {message} Remove or replace it." for message in dataset.unreadable[:SHOWN]]
    if (more := len(dataset.unreadable) - SHOWN) > 0:
        found.append(f"dataset: {more} more images cannot be read. `scan` lists them all.")
    if not dataset.items and not dataset.unreadable:
        found.append(
            f"dataset: {job.dataset} holds no images. Add some to it or to a subfolder named like 10_name "
            "(repeats_name); other subfolders are not read."
        )
    return found


def _prediction_problems(job: TrainJob, facts: Facts) -> list[str]:
    chosen = job.recipe.prediction_type
    if chosen is PredictionType.AUTO or not facts.stated or chosen.value == facts.prediction_type:
        return []
    return [
        f"prediction_type is {chosen.value}, but {job.base} predicts {facts.prediction_type}. "
        "Set prediction_type to auto."
    ]


def _doubts(job: TrainJob, facts: Facts, source: Source | None) -> list[str]:
    """A file whose name says v-prediction while nothing in it does: to guess wrong would waste the run."""
    if facts.stated or job.recipe.prediction_type is not PredictionType.AUTO or source is None:
        return []
    name = Path(source.location).name
    if re.search(r"v[-_ ]?pred", name, re.IGNORECASE) is None:
        return []
    return [
        f"prediction_type is auto, but nothing in {name} says what it predicts, while its name says v-prediction. Set "
        "prediction_type to v_prediction, or to epsilon if the name is wrong."
    ]


def _clip_skip_problems(job: TrainJob, facts: Facts) -> list[str]:
    layers = min(config["num_hidden_layers"] for config in facts.text_encoders)
    if job.recipe.clip_skip <= layers:
        return []
    return [f"clip_skip is {job.recipe.clip_skip}, but a text encoder of {job.base} has {layers} layers. Use 2."]


def _write_problem(folder: Path) -> str | None:
    place = folder
    while not place.exists():
        place = place.parent
    if os.access(place, os.W_OK):
        return None
    return f"Not allowed to write to {place}. Choose a folder that you can write to, or set LORA_STUDIO_HOME."


def _space_problems(
    job: TrainJob, folder: JobFolder, home: Home, dataset: Dataset, weights: int, width: int
) -> list[str]:
    """Compare what the run will write with what is free; the cache and the run may lie on one disk.

    A LoRA file has `weights` of `width` bytes each.
    """
    recipe = job.recipe
    pixels = sum(item.placement.bucket[0] * item.placement.bucket[1] for item in dataset.items)
    captions = len({item.caption for item in dataset.items}) if not recipe.text_encoder_lr else 0
    cache = int(pixels * LATENT_BYTES + captions * TEXT_BYTES)
    files = -(-recipe.epochs // recipe.save_every_n_epochs) + 1
    if recipe.keep_checkpoints:
        files = min(files, recipe.keep_checkpoints + 2)
    run = weights * (width * files + STATE_BYTES)
    needs: dict[int, tuple[Path, int]] = {}
    for place, size in ((folder.path, run), (home.cache, cache)):
        while not place.exists():
            place = place.parent
        device = place.stat().st_dev
        needs[device] = (needs[device][0] if device in needs else place, needs.get(device, (place, 0))[1] + size)
    return [
        f"The run writes about {size / 2**30:.1f} GiB, but only {free / 2**30:.1f} GiB are free at {place}. Free some "
        "space, raise save_every_n_epochs or set keep_checkpoints."
        for place, size in needs.values()
        if (free := shutil.disk_usage(place).free) < size + SPARE
    ]


def lora_weights(recipe: Recipe, facts: Facts) -> int:
    """How many weights the LoRA will have, counted on models that take no memory."""
    weights: list[nn.Parameter] = []
    with torch.device("meta"):
        if recipe.unet_lr:
            unet = UNet2DConditionModel.from_config(facts.unet)
            weights += [unet.get_parameter(f"{path}.weight") for path in unet_targets(unet)]
        for config in facts.text_encoders if recipe.text_encoder_lr else ():
            encoder = CLIPTextModel(CLIPTextConfig(**config))
            weights += [encoder.get_parameter(f"{path}.weight") for path in text_encoder_targets(encoder)]
    # A is [rank, in...] and B [out, rank...]
    return recipe.network_dim * sum(weight.shape[0] + weight[0].numel() for weight in weights)
