"""Build the trainer of a run: load the base, fill the caches, add the adapters, make the optimizer."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from lora_studio.device import warn_if_out_of_memory
from lora_studio.events import PhaseEvent, Report
from lora_studio.lora.inject import add_adapters, state_dora_axis
from lora_studio.lora.layers import find_target_layers
from lora_studio.measures.features import ImageFile
from lora_studio.measures.samples import SampleMeasurer
from lora_studio.models.load import Base, load_base
from lora_studio.models.quantize import quantize
from lora_studio.settings.choices import GradientCheckpointing
from lora_studio.settings.job_specs import TrainJob
from lora_studio.training.batch_loss import BatchLoss
from lora_studio.training.data.augment import all_augmentations
from lora_studio.training.data.batch import BatchTensors
from lora_studio.training.data.cache import LatentCache, TextCache, encoders_hash, weights_hash
from lora_studio.training.data.caption_variants import captions_to_cache
from lora_studio.training.data.collate import Collator
from lora_studio.training.data.dataset import Dataset, epoch_steps
from lora_studio.training.data.prefetch import Prefetch, prefetch_depth
from lora_studio.training.data.rng import seeded_dropout
from lora_studio.training.distributed import SINGLE_PROCESS, RankGroup
from lora_studio.training.optim.ema import AveragedWeights
from lora_studio.training.optim.flat_params import FlatParameters
from lora_studio.training.optim.optimizers import make_optimizer, parameter_groups, parameter_layout
from lora_studio.training.optim.schedules import make_lr_scheduler
from lora_studio.training.preflight import PreflightResult
from lora_studio.training.progress import Progress
from lora_studio.training.reporting.startup import PhaseReporter, report_truncated_captions
from lora_studio.training.resume_state import saved_weight_names
from lora_studio.training.samples import report_truncated_prompts, sample_texts, samples_of
from lora_studio.training.speed.attention import use_plain_attention
from lora_studio.training.speed.cuda_graph_capture import find_capturer
from lora_studio.training.speed.cuda_graph_policy import CudaGraphPass
from lora_studio.training.speed.geglu import use_lean_geglu
from lora_studio.training.speed.gradient_pass import EagerPass
from lora_studio.training.speed.memory_budget import (
    fit_recomputed_blocks,
    make_block_checkpointing,
    measure_step_memory,
)
from lora_studio.training.speed.self_test import FastPath
from lora_studio.training.trainer import Trainer
from lora_studio.training.warm_start import load_network_weights, network_dims
from lora_studio.workspace.job_folder import JobFolder
from lora_studio.workspace.project import Home


def build_trainer(
    job: TrainJob,
    folder: JobFolder,
    checked: PreflightResult,
    *,
    home: Home,
    report: Report,
    phases: PhaseReporter,
    should_stop: Callable[[], bool],
    ranks: RankGroup = SINGLE_PROCESS,
) -> Trainer:
    """Load the base, fill the caches and make the trainer of a new run.

    Each rank encodes its shard of the images and captions. Raises StopRequested after a stop request.
    """
    base = load_base(
        checked.source,
        dtype=checked.dtype,
        vae=job.vae,
        prediction_type=checked.prediction_type,
        zero_terminal_snr=checked.zero_terminal_snr,
        on_progress=lambda message: phases(message, 0, 0),
        on_bytes=lambda message, done, total: phases(message, done, total, "bytes"),
        should_stop=should_stop,
    )
    report_truncated_captions(job, base, checked.dataset, report)
    report_truncated_prompts(job, checked.dataset, base, report)
    collator = _fill_caches(job, checked, base, home, phases, should_stop, ranks)
    trainer = make_trainer(job, folder, checked, base, collator, phases=phases, ranks=ranks)
    return replace(trainer, sample_measurer=_sample_measurer(job, checked.dataset, home, report, should_stop))


def _sample_measurer(
    job: TrainJob, dataset: Dataset, home: Home, report: Report, should_stop: Callable[[], bool]
) -> SampleMeasurer:
    training, validation = (
        [ImageFile(item.path, item.sha256) for item in items] for items in (dataset.items, dataset.validation_items)
    )
    return SampleMeasurer(
        job.recipe.feature_model, training, validation, job.trigger_word, home, report=report, should_stop=should_stop
    )


def make_trainer(
    job: TrainJob,
    folder: JobFolder,
    checked: PreflightResult,
    base: Base,
    collator: Collator,
    *,
    phases: PhaseReporter,
    ranks: RankGroup = SINGLE_PROCESS,
) -> Trainer:
    """Quantize the base, add the adapters, move the models to the device and make the optimizer."""
    recipe, device = job.recipe, checked.device
    targets = find_target_layers(base.unet, base.text_encoders)
    quantize(base.unet, recipe.base_precision, checked.dtype, device)
    saved_axis = state_dora_axis(saved_weight_names(folder.path / "checkpoints" / "state"))
    network = network_dims(recipe, targets, job.network_weights)
    adapters = add_adapters(base.unet, base.text_encoders, recipe, axis=saved_axis, network=network)
    if job.network_weights is not None:
        loaded, trained = load_network_weights(job.network_weights, adapters, recipe, targets)
        phases(f"Warm start from {job.network_weights.name}: it has {loaded} of the {trained} trained layers", 0, 0)
    for module in (base.unet, *base.text_encoders):
        module.to(device)
        module.train()
    checkpointing = make_block_checkpointing(base, recipe, device)
    fuse = FastPath.FUSED_LAYERS not in checked.failed_paths
    groups, layout = parameter_groups(adapters, recipe), parameter_layout(recipe)
    weights = FlatParameters(groups, layout, adapters, checked.dtype, fuse=fuse)
    if fuse:
        use_plain_attention(base.unet)
        use_lean_geglu(base.unet)
    optimizer = make_optimizer(recipe, weights.groups)
    scaler = torch.amp.GradScaler(device.type, enabled=checked.dtype == torch.float16)
    batch_loss = BatchLoss(base, recipe, device, checked.dtype, weights.half_only)
    return Trainer(
        job=job,
        folder=folder.path,
        counts=checked.counts,
        base=base,
        adapters=adapters,
        weights=weights,
        block_checkpointing=checkpointing,
        optimizer=optimizer,
        lr_scheduler=make_lr_scheduler(recipe, optimizer, checked.counts.total_steps),
        scaler=scaler,
        averaged_weights=AveragedWeights(optimizer, weights.flat, recipe.ema_decay, weights.sync_half_copies),
        collator=collator,
        prefetch=Prefetch(prefetch_depth(device)),
        device=device,
        dtype=checked.dtype,
        ranks=ranks,
        batch_loss=batch_loss,
        gradient_pass=EagerPass(batch_loss, weights, scaler),
        decodes_in_half=FastPath.HALF_DECODING not in checked.failed_paths,
    )


def fit_gpu_memory(trainer: Trainer, report: Report) -> None:
    """If gradient checkpointing is `auto`, recompute as few UNet blocks as the GPU's memory allows.

    A forward and backward pass of the largest batch is measured, beside what several GPUs need to communicate; weights
    stay unchanged.
    """
    recipe, device, collator = trainer.recipe, trainer.device, trainer.collator
    trainer.ranks.allocate_buffers(device)
    if recipe.gradient_checkpointing is not GradientCheckpointing.AUTO:
        return
    report(PhaseEvent(message="Measuring the memory of a step"))
    largest = collator.largest_batch()
    batch = collator.collate(0, largest, 0, len(largest)).to(device)

    def forward() -> Tensor:
        with seeded_dropout(recipe, 0, 0, device=device):
            return trainer.batch_loss(batch)

    measure = partial(measure_step_memory, forward, trainer.weights, trainer.optimizer, recipe, device)
    with warn_if_out_of_memory(
        report, "measure_out_of_memory", "Memory ran out while measuring a step: all UNet blocks are recomputed."
    ):
        fit_recomputed_blocks(
            trainer.block_checkpointing, trainer.base.text_encoders, forward, measure, trainer.weights, report
        )


def with_cuda_graphs(trainer: Trainer, progress: Progress, report: Report) -> Trainer:
    """Return the trainer with a gradient pass by CUDA graphs, if they are set; else, or where unsafe, as it is.

    A replay repeats the same kernels on the same memory. So there are none with dropout (random numbers), with
    weights whose gradients autograd allocates, where text encoders stop being trained, with a gradient scaler, or on
    several ranks.
    """
    recipe, weights = trainer.recipe, trainer.weights
    safe = weights.all_fused and not recipe.uses_dropout and not trainer.scaler.is_enabled()
    safe = safe and trainer.text_encoder_stop == trainer.counts.total_steps
    if not recipe.cuda_graphs or not safe or trainer.ranks.world_size > 1:
        return trainer
    capturer = find_capturer(trainer.device)
    if capturer is None:
        return trainer
    graphs = CudaGraphPass(trainer.gradient_pass, capturer, weights, batches_left(trainer, progress), report)
    return replace(trainer, gradient_pass=graphs)


def batches_left(trainer: Trainer, progress: Progress) -> Callable[[BatchTensors, bool], int]:
    """Return a function that estimates how many batches of the same shape are still to come.

    Its arguments are a batch, and True to count to the end of this epoch instead of the run.
    """
    per_epoch, total = trainer.counts.steps_per_epoch, trainer.counts.total_steps
    batches = [batch for step in epoch_steps(trainer.dataset, trainer.recipe, 0) for batch in step]
    factor = trainer.base.latent_factor
    # every epoch has the same batch shapes, in another order
    shapes = Counter((len(batch), *(side // factor for side in batch[0].placement.bucket)) for batch in batches)

    def left(batch: BatchTensors, this_epoch: bool) -> int:
        count, _, height, width = batch.noisy.shape
        steps = per_epoch - progress.step % per_epoch if this_epoch else total - progress.step
        return round(shapes[count, width, height] * min(steps, total - progress.step) / per_epoch)

    return left


def _fill_caches(
    job: TrainJob,
    checked: PreflightResult,
    base: Base,
    home: Home,
    phases: PhaseReporter,
    should_stop: Callable[[], bool],
    ranks: RankGroup,
) -> Collator:
    """Encode images and captions that are not cached; return the collator that reads the caches."""
    recipe, device, dataset = job.recipe, checked.device, checked.dataset
    # fp16 has more mantissa bits than bf16, and a GPU is several times faster in it than in fp32
    half = torch.float16 if device.type == "cuda" and checked.dtype != torch.float32 else None
    latents = LatentCache(home.cache / "latents", weights_hash(base.vae), half)
    augmented = [crop for item in dataset.epoch_items for crop in all_augmentations(item, recipe)]
    latents.fill(
        ranks.shard([*augmented, *dataset.validation_items])[1],
        base.vae,
        device=device,
        should_stop=should_stop,
        on_progress=lambda done, total: phases("Encoding images", done, total, "images"),
    )
    texts = None
    if not recipe.trains_text_encoders:
        texts = _fill_text_cache(job, checked, base, home, phases, should_stop, ranks)
    return Collator(
        job=job,
        dataset=dataset,
        steps_per_epoch=checked.counts.steps_per_epoch,
        total_steps=checked.counts.total_steps,
        noise_scheduler=base.noise_scheduler,
        prediction_type=base.prediction_type,
        scaling_factor=base.vae.config["scaling_factor"],
        tokenizers=base.tokenizers,
        latents=latents,
        texts=texts,
        device=device,
        dtype=checked.dtype,
        ranks=ranks,
    )


def _fill_text_cache(
    job: TrainJob,
    checked: PreflightResult,
    base: Base,
    home: Home,
    phases: PhaseReporter,
    should_stop: Callable[[], bool],
    ranks: RankGroup,
) -> TextCache:
    """Encode every caption and sample prompt once, then free the text encoders, which are not trained."""
    recipe = job.recipe
    encoders = encoders_hash(base.text_encoders, base.tokenizers)
    texts = TextCache(home.cache / "text", encoders, recipe.clip_skip, recipe.max_token_length)
    samples = samples_of(job, checked.dataset, base)
    captions = captions_to_cache(job, checked.dataset, total_steps=checked.counts.total_steps)
    texts.fill(
        ranks.shard([*captions, *sample_texts(samples)])[1],
        base.text_encoders,
        base.tokenizers,
        device=checked.device,
        should_stop=should_stop,
        on_progress=lambda done, total: phases("Encoding captions", done, total, "captions"),
    )
    base.text_encoders.clear()
    if checked.device.type == "cuda":
        torch.cuda.empty_cache()
    return texts
