"""The metadata of a LoRA file: kohya's `ss_*` entries and the model specification.

All values are strings. A1111 and Forge read the base from `ss_base_model_version` and the tags from `ss_tag_frequency`;
`modelspec.*` is Stability's specification 1.0.1 (https://github.com/Stability-AI/ModelSpec).
"""

from __future__ import annotations

import json
import time
from collections import Counter, defaultdict
from collections.abc import Collection
from pathlib import Path
from typing import Any

from lora_studio.dataset.captions.text import split_tags
from lora_studio.lora.shapes import DimAlpha, DoraAxis
from lora_studio.models.load import Base
from lora_studio.models.text_encoding import CHUNK_TOKENS
from lora_studio.models.weights_hash import legacy_hash
from lora_studio.planning.steps import StepCount, warmup_steps
from lora_studio.settings.choices import GradientCheckpointing, LossType, MaskedLoss
from lora_studio.settings.job_specs import TrainJob
from lora_studio.settings.recipe import Recipe
from lora_studio.settings.subsets import SUBSET_SETTINGS
from lora_studio.training.data.dataset import Dataset
from lora_studio.training.optim.optimizers import optimizer_name
from lora_studio.training.reporting.network_metadata import build_network_metadata
from lora_studio.versions import VERSION


def build_lora_metadata(
    job: TrainJob,
    dataset: Dataset,
    counts: StepCount,
    base: Base,
    *,
    precision: str,
    started: float,
    epoch: int,
    step: int,
    processes: int = 1,
    finished: float | None = None,
    axis: DoraAxis | None = None,
    dims: Collection[DimAlpha] = (),
) -> dict[str, str]:
    """Return the metadata of a LoRA after `step` steps, in `epoch` (counted from 1). Times are Unix timestamps.

    The batch size in the job's recipe is the global one, over all `processes`. `axis` is that of a DoRA's magnitudes,
    `dims` are those of the layers.
    """
    finished = finished or time.time()
    values = {
        **build_network_metadata(job.recipe, axis, dims),
        **_training(job, counts, base, precision, processes),
        **_data(job, dataset),
        "ss_output_name": job.name,
        "ss_training_comment": f"trigger: {job.trigger_word}" if job.trigger_word else None,
        "ss_training_started_at": started,
        "ss_training_finished_at": finished,
        "ss_epoch": epoch,
        "ss_steps": step,
        "ss_session_id": int(started),
        "ss_sd_scripts_commit_hash": None,
        **_model_spec(job, base, finished),
    }
    return {name: value if isinstance(value, str) else _text(value) for name, value in values.items()}


def _text(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False) if isinstance(value, dict | list) else str(value)


def _without_folders(name: str) -> str:
    """Return the last part of a local base's path, since people share the file; names of the Hub stay whole."""
    path = Path(name).expanduser()
    return path.resolve().name if path.is_absolute() or path.exists() else name


def _training(job: TrainJob, counts: StepCount, base: Base, precision: str, processes: int) -> dict[str, Any]:
    recipe = job.recipe
    single = len(base.files) == 1
    huber = recipe.loss_type is not LossType.L2
    return {
        "ss_v2": False,
        "ss_base_model_version": "sdxl_base_v1-0",
        "ss_sd_model_name": base.files[0].name if single else _without_folders(base.name),
        "ss_sd_model_hash": legacy_hash(base.files[0]) if single else None,
        "ss_new_sd_model_hash": base.hash,
        "ss_learning_rate": recipe.unet_lr,
        "ss_unet_lr": recipe.unet_lr,
        "ss_text_encoder_lr": recipe.text_encoder_lr if recipe.text_encoder_lr2 is None else _text_rates(recipe),
        "ss_stop_text_encoder_training": recipe.stop_text_encoder_training or None,
        "ss_optimizer": optimizer_name(recipe),
        "ss_optimizer_args": " ".join(recipe.optimizer_args) or None,
        "ss_lr_scheduler": recipe.lr_scheduler.value,
        "ss_lr_scheduler_type": recipe.lr_scheduler_type or None,
        "ss_lr_scheduler_args": " ".join(recipe.lr_scheduler_args) or None,
        "ss_lr_scheduler_min_lr_ratio": recipe.lr_scheduler_min_lr_ratio or None,
        "ss_lr_warmup_steps": warmup_steps(recipe.lr_warmup_steps, counts.total_steps),
        "ss_max_grad_norm": recipe.max_grad_norm,
        "ss_scale_weight_norms": recipe.scale_weight_norms or None,
        "ss_max_train_steps": counts.total_steps,
        "ss_num_epochs": counts.epochs,
        "ss_num_batches_per_epoch": counts.batches_per_epoch,
        "ss_batch_size_per_device": -(-recipe.batch_size // processes),
        "ss_total_batch_size": recipe.batch_size * recipe.gradient_accumulation_steps,
        "ss_gradient_accumulation_steps": recipe.gradient_accumulation_steps,
        "ss_gradient_checkpointing": recipe.gradient_checkpointing is not GradientCheckpointing.OFF,
        "ss_mixed_precision": "no" if precision == "fp32" else precision,
        "ss_base_precision": recipe.base_precision.value,
        "ss_seed": recipe.seed,
        "ss_noise_offset": recipe.noise_offset or None,
        "ss_noise_offset_random_strength": recipe.noise_offset_random_strength,
        "ss_adaptive_noise_scale": recipe.adaptive_noise_scale or None,
        "ss_ip_noise_gamma": recipe.ip_noise_gamma or None,
        "ss_ip_noise_gamma_random_strength": recipe.ip_noise_gamma_random_strength,
        "ss_multires_noise_iterations": recipe.multires_noise_iterations or None,
        "ss_multires_noise_discount": recipe.multires_noise_discount if recipe.multires_noise_iterations else None,
        "ss_min_snr_gamma": recipe.min_snr_gamma or None,
        "ss_debiased_estimation": recipe.debiased_estimation_loss,
        "ss_zero_terminal_snr": base.zero_terminal_snr,
        "ss_v_parameterization": base.prediction_type == "v_prediction",
        "ss_loss_type": recipe.loss_type.value,
        "ss_huber_schedule": recipe.huber_schedule.value if huber else None,
        "ss_huber_c": recipe.huber_c if huber else None,
        "ss_ema_decay": recipe.ema_decay or None,
        "ss_clip_skip": recipe.clip_skip,
        "ss_cache_latents": True,
    }


def _text_rates(recipe: Recipe) -> list[float]:
    """Return the learning rates of both text encoders."""
    return [recipe.model_rates["te1"], recipe.model_rates["te2"]]


def _data(job: TrainJob, dataset: Dataset) -> dict[str, Any]:
    recipe = job.recipe
    tags: dict[str, Counter[str]] = defaultdict(Counter)
    folders: dict[str, dict[str, int]] = {}
    buckets: Counter[tuple[int, int]] = Counter()
    for item in dataset.epoch_items:
        buckets[item.placement.bucket] += item.repeats
    for item in dataset.items:
        tags[item.folder].update(tag.lower() for tag in split_tags(item.caption))
        folders.setdefault(item.folder, {"n_repeats": item.repeats, "img_count": 0})["img_count"] += 1
    prior_folders: dict[str, dict[str, int]] = {}
    for item in dataset.regularization:
        described = prior_folders.setdefault(item.folder, {"n_repeats": item.repeats, "img_count": 0})
        described["img_count"] += 1
    listed = {
        str(number): {"resolution": list(size), "count": count}
        for number, (size, count) in enumerate(sorted(buckets.items()))
    }
    return {
        "ss_resolution": f"({recipe.resolution}, {recipe.resolution})",
        "ss_enable_bucket": recipe.enable_bucket,
        "ss_min_bucket_reso": recipe.min_bucket_reso,
        "ss_max_bucket_reso": recipe.max_bucket_reso,
        "ss_bucket_no_upscale": recipe.bucket_no_upscale,
        "ss_bucket_info": {"buckets": listed},
        "ss_num_train_images": sum(item.repeats for item in dataset.items),
        "ss_num_reg_images": sum(item.repeats for item in dataset.regularization),
        "ss_dataset_dirs": folders,
        **_subsets(job),
        "ss_reg_dataset_dirs": prior_folders,
        "ss_tag_frequency": {folder: dict(counter.most_common()) for folder, counter in tags.items()},
        "ss_prior_loss_weight": recipe.prior_loss_weight,
        "ss_caption_extension": recipe.caption_extension or None,
        "ss_shuffle_caption": recipe.shuffle_caption,
        "ss_keep_tokens": recipe.keep_tokens,
        "ss_keep_tokens_separator": recipe.keep_tokens_separator or None,
        "ss_enable_wildcard": recipe.enable_wildcard,
        "ss_caption_prefix": recipe.caption_prefix or None,
        "ss_caption_suffix": recipe.caption_suffix or None,
        "ss_token_warmup_min": recipe.token_warmup_min if recipe.token_warmup_step else None,
        "ss_token_warmup_step": recipe.token_warmup_step or None,
        "ss_caption_dropout_rate": recipe.caption_dropout_rate,
        "ss_caption_dropout_every_n_epochs": 0,
        "ss_caption_tag_dropout_rate": recipe.caption_tag_dropout_rate,
        "ss_max_token_length": int(recipe.max_token_length) if recipe.max_token_length != CHUNK_TOKENS else None,
        "ss_flip_aug": recipe.flip_aug,
        "ss_color_aug": False,
        "ss_random_crop": recipe.random_crop,
        "ss_masked_loss": recipe.masked_loss is not MaskedLoss.OFF,
        "ss_unmasked_weight": recipe.unmasked_weight or None,
        "ss_validation_split": recipe.validation_split,
    }


def _subsets(job: TrainJob) -> dict[str, Any]:
    """Return the settings of the subsets as sd-scripts writes them; none if the job has no subsets."""
    described = []
    for subset in job.subsets:
        settings = subset.applied_to(job.recipe)
        own = {name: getattr(settings, name) for name in SUBSET_SETTINGS}
        described.append(
            {"image_dir": subset.image_dir.name, **subset.model_dump(exclude={"image_dir", "settings"}), **own}
        )
    return {"ss_datasets": [{"subsets": described}]} if described else {}


def _model_spec(job: TrainJob, base: Base, finished: float) -> dict[str, str]:
    side = job.recipe.resolution
    spec = {
        "sai_model_spec": "1.0.1",
        "architecture": "stable-diffusion-xl-v1-base/lora",
        "implementation": "https://github.com/Stability-AI/generative-models",
        "implementation_version": f"lora-studio/{VERSION}",
        "title": job.name,
        "date": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(finished)),
        "resolution": f"{side}x{side}",
        "prediction_type": "v" if base.prediction_type == "v_prediction" else "epsilon",
    }
    if (job.recipe.min_timestep, job.recipe.max_timestep) != (0, 1000):
        spec["timestep_range"] = f"{job.recipe.min_timestep},{job.recipe.max_timestep}"
    if job.trigger_word:
        spec |= {"trigger_phrase": job.trigger_word, "usage_hint": f"Use {job.trigger_word} in the prompt."}
    return {f"modelspec.{name}": value for name, value in spec.items()}
