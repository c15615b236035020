"""Check a training job before its first step, and report all errors at once."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from math import prod
from pathlib import Path
from typing import TypeVar

import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel

from lora_studio.device import torch_device, torch_dtype
from lora_studio.errors import ConfigError, InputError
from lora_studio.lora.layers import TargetLayer, find_target_layers
from lora_studio.lora.shapes import tensor_shapes
from lora_studio.measures.models import named_feature_model
from lora_studio.models.catalogue import find_base
from lora_studio.models.compatibility import check_peft_compatibility
from lora_studio.models.locate import BaseConfig, Source, fetch_base, find_vae, read_base_config, resolve_base
from lora_studio.models.quantize import check_quantization
from lora_studio.models.text_encoding import CHUNK_TOKENS
from lora_studio.planning.advice import recipe_errors, sample_errors, uses_zero_snr, zero_snr_errors
from lora_studio.planning.memory import file_width
from lora_studio.planning.steps import StepCount
from lora_studio.settings.choices import MaskedLoss, PredictionType
from lora_studio.settings.job_specs import TrainJob
from lora_studio.settings.recipe import Recipe
from lora_studio.training.data.augment import all_augmentations
from lora_studio.training.data.caption_variants import captions_to_cache
from lora_studio.training.data.dataset import Dataset, TrainItem, damaged_images, read_dataset, unreadable_errors
from lora_studio.training.distributed import process_count_errors
from lora_studio.training.optim.optimizers import check_optimizer
from lora_studio.training.optim.schedules import check_lr_scheduler
from lora_studio.training.reporting.trackers import tracker_errors
from lora_studio.training.speed.self_test import FastPath
from lora_studio.training.warm_start import NetworkDims, missing_weights_errors, network_dims, network_weights_errors
from lora_studio.workspace.job_folder import JobFolder
from lora_studio.workspace.project import Home

# Bytes per pixel: mean and log-variance of 4 latent channels in 16 bits, at 1/8 of each side.
LATENT_BYTES_PER_PIXEL = 2 * 4 * 2 / 64
TEXT_BYTES_PER_CAPTION = 77 * 2048 * 2 + 1280 * 2  # per 75 tokens, in 16 bits
# Two saved states, each with the weight in fp32 (4), the four values that Prodigy keeps (16) and an EMA (4).
STATE_BYTES_PER_WEIGHT = 2 * (4 + 16 + 4)
MIN_FREE_BYTES = 2**28  # disk space that must stay free

T = TypeVar("T")


@dataclass(frozen=True)
class PreflightResult:
    """The results of the checks of a valid job, from which the run is built."""

    dataset: Dataset
    counts: StepCount
    source: Source
    base_config: BaseConfig
    prediction_type: str
    zero_terminal_snr: bool
    device: torch.device
    dtype: torch.dtype
    dtype_reason: str
    failed_paths: frozenset[FastPath] = frozenset()  # that this GPU computes wrongly


def preflight(
    job: TrainJob, folder: JobFolder, home: Home, *, on_progress: Callable[[str, int, int], None]
) -> PreflightResult:
    """Check a job and return the results. Raises ConfigError with all errors at once.

    A base on the Hub is downloaded here, if there is no other error. Images are decoded only if there is one, to find
    all damaged images too; those of a job without errors are decoded once, when they are encoded.
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

    read_progress = partial(on_progress, "Reading images")
    dataset = attempt(lambda: _dataset(job, read_progress))
    if dataset is not None:
        found += _dataset_errors(job, dataset)
    source = attempt(lambda: resolve_base(job.base, home))
    base_config = attempt(partial(read_base_config, source)) if source is not None and source.kind != "repo" else None
    if job.vae is not None:
        attempt(partial(find_vae, job.vae))
    if recipe.feature_model:
        attempt(partial(named_feature_model, recipe.feature_model, home))
    attempt(check_peft_compatibility)
    found += [*recipe_errors(recipe, find_base(job.base)), *process_count_errors(job), *tracker_errors(recipe)]
    found += missing_weights_errors(job)
    device = torch_device()
    precision = attempt(lambda: torch_dtype(recipe.mixed_precision, device))
    attempt(lambda: check_optimizer(recipe, device))
    attempt(lambda: check_lr_scheduler(recipe))
    attempt(lambda: check_quantization(recipe.base_precision, device))
    found += [error for path in (folder.path, home.cache) if (error := _write_error(path))]
    if source is not None and source.kind == "repo" and not found:
        source = attempt(partial(fetch_base, source, on_progress=lambda message: on_progress(message, 0, 0)))
        base_config = attempt(partial(read_base_config, source)) if source is not None else None
    if base_config is not None:
        found += _base_errors(job, base_config, source)
    if base_config is not None and not found:
        targets = target_layers_of(base_config)
        found += _network_errors(job, targets)
        if job.network_weights is not None:
            path = job.network_weights
            found += attempt(lambda: network_weights_errors(path, recipe, targets)) or []
    if base_config is not None and dataset is not None and not found:
        width = file_width(recipe, in_fp32=precision is not None and precision[0] == torch.float32)
        network = network_dims(recipe, targets, job.network_weights)
        weights = _count(recipe, targets, network)
        found += _disk_space_errors(job, folder, home, dataset, weights, width)
    if found and dataset is not None and not dataset.unreadable:
        found = [*unreadable_errors(damaged_images(dataset, read_progress)), *found]
    if found or dataset is None or source is None or base_config is None or precision is None:
        raise ConfigError(dict.fromkeys(found))
    chosen = recipe.prediction_type
    return PreflightResult(
        dataset=dataset,
        counts=dataset.step_count(recipe),
        source=source,
        base_config=base_config,
        prediction_type=base_config.prediction_type if chosen is PredictionType.AUTO else chosen.value,
        zero_terminal_snr=uses_zero_snr(recipe, base_config.zero_terminal_snr),
        device=device,
        dtype=precision[0],
        dtype_reason=precision[1],
    )


def _dataset(job: TrainJob, on_progress: Callable[[int, int], None]) -> Dataset:
    if found := _folder_errors(job):
        raise ConfigError(found)
    return read_dataset(
        job.dataset,
        job.recipe,
        job.trigger_word,
        regularization=job.regularization,
        subsets=job.subsets,
        on_progress=on_progress,
    )


def _folder_errors(job: TrainJob) -> list[str]:
    """Return error messages about the dataset's and the regularisation folder."""
    found = []
    if not job.subsets and not job.dataset.is_dir():
        found.append(f"dataset: the folder {job.dataset} does not exist. Give a folder with images.")
    prior = job.regularization
    if prior is None:
        return found
    if not prior.is_dir():
        found.append(
            f"regularization: the folder {prior} does not exist. Give a folder with images, or leave it empty."
        )
    elif prior.resolve() == job.dataset.resolve():
        found.append(
            "regularization is the dataset's own folder. Give images of the class without the subject that is trained, "
            "or leave it empty."
        )
    return found


def _dataset_errors(job: TrainJob, dataset: Dataset) -> list[str]:
    """Return error messages about images, masks and the validation split."""
    recipe = job.recipe
    if dataset.unreadable:
        return unreadable_errors(dataset.unreadable)
    found = []
    if not dataset.items:
        return [
            f"dataset: {job.dataset} contains no images. Add some to it or to a subfolder named like 10_name "
            "(repeats_name); other subfolders are not read."
        ]
    if job.regularization is not None and not dataset.regularization:
        found.append(
            f"regularization: {job.regularization} contains no images. Add some to it or to a subfolder named like "
            "1_class, or leave it empty."
        )
    if recipe.validation_split and not dataset.validation_items:
        found.append(
            f"validation_split is {recipe.validation_split:g}, but {len(dataset.items)} images, duplicates counted "
            "once, are too few for a validation split. Set it to 0."
        )
    if recipe.masked_loss is not MaskedLoss.OFF and not any(item.mask for item in dataset.epoch_items):
        where = (
            "no image has transparency"
            if recipe.masked_loss is MaskedLoss.ALPHA
            else "no image has a mask: neither NAME-masklabel.png nor mask/NAME.png beside it"
        )
        found.append(f"masked_loss is {recipe.masked_loss.value}, but {where}. Make masks, or set it to off.")
    return found


def _base_errors(job: TrainJob, base_config: BaseConfig, source: Source | None) -> list[str]:
    """Return error messages about settings that the base does not support."""
    return [
        *_prediction_errors(job, base_config),
        *_undeclared_v_prediction_errors(job, base_config, source),
        *_timestep_errors(job, base_config),
        *_clip_skip_errors(job, base_config),
        *sample_errors(job.recipe, base_config.zero_terminal_snr),
    ]


def _prediction_errors(job: TrainJob, base_config: BaseConfig) -> list[str]:
    chosen = job.recipe.prediction_type
    if (
        chosen is PredictionType.AUTO
        or not base_config.prediction_type_stated
        or chosen.value == base_config.prediction_type
    ):
        return []
    return [
        f"prediction_type is {chosen.value}, but {job.base} predicts {base_config.prediction_type}. "
        "Set prediction_type to auto."
    ]


def _timestep_errors(job: TrainJob, base_config: BaseConfig) -> list[str]:
    recipe, total = job.recipe, base_config.scheduler.get("num_train_timesteps", 1000)
    chosen = recipe.prediction_type
    predicts = base_config.prediction_type if chosen is PredictionType.AUTO else chosen.value
    found = zero_snr_errors(recipe, predicts, base_config.zero_terminal_snr)
    if recipe.min_timestep >= total:
        found.append(f"min_timestep is {recipe.min_timestep}, but {job.base} has {total} timesteps. Set it to 0.")
    return found


def _undeclared_v_prediction_errors(job: TrainJob, base_config: BaseConfig, source: Source | None) -> list[str]:
    """Return an error if only a file's name says v-prediction: a wrong guess would waste the run."""
    if base_config.prediction_type_stated or job.recipe.prediction_type is not PredictionType.AUTO or source is None:
        return []
    name = Path(source.location).name
    if re.search(r"v[-_ ]?pred", name, re.IGNORECASE) is None:
        return []
    return [
        f"prediction_type is auto, but {name} does not state its prediction type, and its name suggests v-prediction. "
        "Set prediction_type to v_prediction, or to epsilon if the name is wrong."
    ]


def _clip_skip_errors(job: TrainJob, base_config: BaseConfig) -> list[str]:
    layers = min(config["num_hidden_layers"] for config in base_config.text_encoders)
    if job.recipe.clip_skip <= layers:
        return []
    return [f"clip_skip is {job.recipe.clip_skip}, but a text encoder of {job.base} has {layers} layers. Use 2."]


def _write_error(folder: Path) -> str | None:
    path = folder
    while not path.exists():
        path = path.parent
    if os.access(path, os.W_OK):
        return None
    return f"Not allowed to write to {path}. Choose a folder that you can write to, or set LORA_STUDIO_HOME."


def _disk_space_errors(
    job: TrainJob, folder: JobFolder, home: Home, dataset: Dataset, weights: int, width: int
) -> list[str]:
    """Return an error for each disk with less free space than the run and its cache need on it.

    A LoRA file has `weights` parameters of `width` bytes each.
    """
    recipe = job.recipe
    pixels = sum(len(all_augmentations(item, recipe)) * _pixels(item) for item in dataset.epoch_items)
    pixels += sum(map(_pixels, dataset.validation_items))
    total_steps = dataset.step_count(recipe).total_steps
    captions = 0 if recipe.trains_text_encoders else len(captions_to_cache(job, dataset, total_steps=total_steps))
    cache = int(
        pixels * LATENT_BYTES_PER_PIXEL + captions * TEXT_BYTES_PER_CAPTION * recipe.max_token_length / CHUNK_TOKENS
    )
    files = -(-recipe.epochs // recipe.save_every_n_epochs) + 1
    if recipe.save_every_n_steps:
        files += total_steps // recipe.save_every_n_steps
    if recipe.keep_checkpoints:
        files = min(files, recipe.keep_checkpoints + 2)
    run = weights * (width * files + STATE_BYTES_PER_WEIGHT)
    needs: dict[int, tuple[Path, int]] = {}  # by disk
    for path, size in ((folder.path, run), (home.cache, cache)):
        while not path.exists():
            path = path.parent
        disk = path.stat().st_dev
        first, total = needs.get(disk, (path, 0))
        needs[disk] = first, total + size
    return [
        f"The run writes about {size / 2**30:.1f} GiB, but only {free / 2**30:.1f} GiB are free at {path}. Free some "
        "space, raise save_every_n_epochs or set keep_checkpoints."
        for path, size in needs.values()
        if (free := shutil.disk_usage(path).free) < size + MIN_FREE_BYTES
    ]


def _pixels(item: TrainItem) -> int:
    return item.placement.bucket[0] * item.placement.bucket[1]


def target_layers_of(base_config: BaseConfig) -> list[TargetLayer]:
    """Return the layers of a base that can be trained, found on models on the meta device, which take no memory."""
    with torch.device("meta"):
        unet = UNet2DConditionModel.from_config(base_config.unet)
        encoders = [CLIPTextModel(CLIPTextConfig(**config)) for config in base_config.text_encoders]
    return find_target_layers(unet, encoders)


def count_lora_parameters(recipe: Recipe, base_config: BaseConfig) -> int:
    """Return the number of parameters of the LoRA."""
    targets = target_layers_of(base_config)
    return _count(recipe, targets, network_dims(recipe, targets))


def _count(recipe: Recipe, targets: Sequence[TargetLayer], network: NetworkDims) -> int:
    layers = ((target.layer, network.get((target.model, target.path))) for target in targets)
    shapes = (tensor_shapes(recipe, layer, dims.dim) for layer, dims in layers if dims is not None)
    return sum(prod(shape) for found in shapes for shape in found.values())


def _network_errors(job: TrainJob, targets: Sequence[TargetLayer]) -> list[str]:
    if job.recipe.dim_from_weights or network_dims(job.recipe, targets):
        return []
    return [
        f"No layer is trained: block_dims is {job.recipe.block_dims!r} and text_encoder_lr "
        f"{job.recipe.text_encoder_lr:g}. Give at least one block a dim and a learning rate above 0."
    ]
