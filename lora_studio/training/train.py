"""Train a LoRA: check the job, prepare the run, and run the training loop."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import torch
from pydantic import BaseModel

from lora_studio.errors import InputError, StopRequested
from lora_studio.events import PROCESS_EVENTS, CaptionsEvent, EventAtStep, Report, ResumeEvent, SavedEvent, WarningEvent
from lora_studio.files import remove_temporary_files, write_json
from lora_studio.lora.inject import add_adapters, state_dora_axis
from lora_studio.lora.layers import find_target_layers
from lora_studio.models.load import Base, load_base
from lora_studio.models.quantize import quantize
from lora_studio.planning.verdicts import Verdict
from lora_studio.settings.job_specs import TrainJob
from lora_studio.training.data.augment import all_augmentations
from lora_studio.training.data.cache import LatentCache, TextCache, encoders_hash, weights_hash
from lora_studio.training.data.caption_variants import captions_to_cache
from lora_studio.training.data.collate import Collator
from lora_studio.training.data.prefetch import Prefetch, prefetch_depth
from lora_studio.training.distributed import (
    SINGLE_PROCESS,
    RankGroup,
    destroy_rank_group,
    init_rank_group,
    with_global_batch,
)
from lora_studio.training.loop import restore_run, save_lora_file, train_loop
from lora_studio.training.optim.ema import AveragedWeights
from lora_studio.training.optim.flat_params import FlatParameters
from lora_studio.training.optim.optimizers import make_optimizer, parameter_groups, parameter_layout
from lora_studio.training.optim.schedules import make_lr_scheduler
from lora_studio.training.preflight import PreflightResult, preflight
from lora_studio.training.reporting.health import HealthMonitor
from lora_studio.training.reporting.loss_by_timestep import TimestepLosses
from lora_studio.training.reporting.run_records import CAPTIONS_FILE, DATASET_FILE, dataset_changes, write_run_records
from lora_studio.training.reporting.startup import (
    PRECISIONS,
    PhaseReporter,
    describe_environment,
    device_name,
    report_dataset,
    report_dora_axis,
    report_recipe_hints,
    report_start,
    report_truncated_captions,
)
from lora_studio.training.resume_state import load_state, saved_weight_names
from lora_studio.training.run import Run
from lora_studio.training.samples import sample_prompts
from lora_studio.training.speed.attention import use_plain_attention
from lora_studio.training.speed.geglu import use_lean_geglu
from lora_studio.training.speed.memory_budget import make_block_checkpointing
from lora_studio.training.step import cuda_graphs_for, fit_gpu_memory
from lora_studio.training.warm_start import load_network_weights
from lora_studio.workspace.job_folder import JobFolder
from lora_studio.workspace.project import Home


class TrainResult(BaseModel):
    """The result of a training run. `lora` is the final file, or None if the run was stopped before its end."""

    run: Path
    lora: Path | None
    steps: int
    epochs: int
    final_loss: float | None
    seconds: float
    stopped: bool
    verdict: Verdict | None = None


def train(
    job: TrainJob,
    folder: JobFolder,
    *,
    home: Home,
    report: Report,
    should_stop: Callable[[], bool],
    resume: bool = False,
) -> TrainResult:
    """Train the LoRA of `job` into `folder`; with `resume`, continue from the last resume state, bit-exact on a CPU.

    With several ranks every process calls this; the events of ranks other than the main process are to be ignored.

    Raises ConfigError with all problems of the job before anything is loaded (or, with all images whose damage shows
    only when they are decoded, before the first step), and JobError if the training fails, after saving a resume state.
    """
    begin = time.monotonic()
    phases = PhaseReporter(report)
    ranks = init_rank_group()
    job = with_global_batch(job, ranks)
    with ranks.sync_errors():
        checked = preflight(job, folder, home, on_progress=phases)
    report_dataset(job, checked.dataset, report)
    if ranks.is_main:
        environment = describe_environment(checked.device, PRECISIONS[checked.dtype], job.recipe.seed)
        write_json(folder.path / "environment.json", environment)
    try:
        with ranks.sync_errors():
            run = prepare_run(
                job, folder, checked, home=home, report=report, phases=phases, should_stop=should_stop, ranks=ranks
            )
    except StopRequested:
        return _result(job, folder, None, begin, stopped=True)
    if resume:
        with ranks.sync_errors():
            _resume(run, report)
    if run.step == 0 and ranks.is_main:
        samples = write_run_records(run.folder, run.collator)
        report(CaptionsEvent(file=CAPTIONS_FILE, examples=[sample["caption"] for sample in samples[:3]]))
    report_start(
        run.dataset,
        run.counts,
        run.base,
        report,
        device=device_name(run.device, ranks.world_size),
        precision=run.precision,
        reason=checked.dtype_reason,
    )
    report_recipe_hints(job.recipe, report, zero_terminal_snr=run.base.zero_terminal_snr)
    report_dora_axis(run.adapters.dora_axis, job.recipe, report)
    if run.device.type == "cuda":
        with ranks.sync_errors():
            fit_gpu_memory(run, report)
    run.cuda_graphs = cuda_graphs_for(run, report)
    stopped = train_loop(run, report=report, should_stop=should_stop)
    if not stopped and ranks.is_main:
        lora = folder.path / f"{job.name}.safetensors"
        save_lora_file(run, lora, run.epoch)
        report(SavedEvent(path=lora.name))
    destroy_rank_group(ranks)
    return _result(job, folder, run, begin, stopped=stopped)


def prepare_run(
    job: TrainJob,
    folder: JobFolder,
    checked: PreflightResult,
    *,
    home: Home,
    report: Report,
    phases: PhaseReporter,
    should_stop: Callable[[], bool],
    ranks: RankGroup = SINGLE_PROCESS,
) -> Run:
    """Load the base, fill the caches, add the adapters and make the optimizer; return a run before its first step.

    Each rank encodes its shard of the images and captions. Raises StopRequested after a stop request.
    """
    recipe, device = job.recipe, checked.device
    base = load_base(
        checked.source,
        dtype=checked.dtype,
        vae=job.vae,
        prediction_type=checked.prediction_type,
        zero_terminal_snr=checked.zero_terminal_snr,
        on_progress=lambda message: phases(message, 0, 0),
    )
    report_truncated_captions(job, base, checked.dataset, report)
    collator = _fill_caches(job, checked, base, home, phases, should_stop, ranks)
    targets = find_target_layers(base.unet, base.text_encoders)
    quantize(base.unet, recipe.base_precision, checked.dtype, device)
    saved_axis = state_dora_axis(saved_weight_names(folder.path / "checkpoints" / "state"))
    adapters = add_adapters(base.unet, base.text_encoders, recipe, axis=saved_axis)
    if job.network_weights is not None:
        loaded, trained = load_network_weights(job.network_weights, adapters, recipe, targets)
        phases(f"Warm start from {job.network_weights.name}: it has {loaded} of the {trained} trained layers", 0, 0)
    for module in (base.unet, *base.text_encoders):
        module.to(device)
        module.train()
    checkpointing = make_block_checkpointing(base, recipe, device)
    weights = FlatParameters(parameter_groups(adapters, recipe), parameter_layout(recipe), adapters, checked.dtype)
    use_plain_attention(base.unet)
    use_lean_geglu(base.unet)
    optimizer = make_optimizer(recipe, weights.groups)
    return Run(
        job=job,
        folder=folder.path,
        counts=checked.counts,
        base=base,
        adapters=adapters,
        weights=weights,
        block_checkpointing=checkpointing,
        optimizer=optimizer,
        lr_scheduler=make_lr_scheduler(recipe, optimizer, checked.counts.total_steps),
        scaler=torch.amp.GradScaler(device.type, enabled=checked.dtype == torch.float16),
        collator=collator,
        device=device,
        dtype=checked.dtype,
        precision=PRECISIONS[checked.dtype],
        health=HealthMonitor(),
        averaged_weights=AveragedWeights(optimizer, weights.flat, recipe.ema_decay, weights.sync_half_copies),
        timestep_losses=TimestepLosses(base.noise_scheduler.config["num_train_timesteps"]),
        ranks=ranks,
        prefetch=Prefetch(prefetch_depth(device)),
    )


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
        on_progress=lambda done, total: phases("Encoding images", done, total),
    )
    texts = None
    if not recipe.text_encoder_lr:
        texts = _fill_text_cache(job, checked, base, home, phases, should_stop, ranks)
    return Collator(
        job=job,
        dataset=dataset,
        steps_per_epoch=checked.counts.steps_per_epoch,
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
    texts.fill(
        ranks.shard([*captions_to_cache(job, checked.dataset), *sample_prompts(job, checked.dataset)])[1],
        base.text_encoders,
        base.tokenizers,
        device=checked.device,
        should_stop=should_stop,
        on_progress=lambda done, total: phases("Encoding captions", done, total),
    )
    base.text_encoders.clear()
    if checked.device.type == "cuda":
        torch.cuda.empty_cache()
    return texts


def _resume(run: Run, report: Report) -> None:
    """Restore the last intact resume state, and remove from the event log what happened after it was saved."""
    folder = JobFolder(run.folder)
    if run.ranks.is_main:
        remove_temporary_files(run.folder)
    state = load_state(
        run.folder / "checkpoints" / "state",
        on_damage=lambda message: report(WarningEvent(code="state_damaged", message=message)),
    )
    if state is not None:
        if state.values["dataset"] != run.dataset.fingerprint:
            _check_dataset_changes(run, state.values.get("steps_per_epoch"), report)
        restore_run(run, state)
    if run.ranks.is_main:
        _drop_events_after(folder, run.step, state.values.get("events", 0) if state is not None else 0)
    if state is None:
        report(WarningEvent(code="no_state", message="No resume state was saved: the run starts from the beginning."))
        return
    report(ResumeEvent(step=run.step))


def _check_dataset_changes(run: Run, steps_per_epoch: int | None, report: Report) -> None:
    """Warn that the dataset has changed since the run began; raise InputError if the steps per epoch differ."""
    changes = dataset_changes(run.folder, run.dataset)
    message = f"Images or captions have changed since the run began{f': {changes}' if changes else ''}."
    if steps_per_epoch not in (None, run.counts.steps_per_epoch):
        raise InputError(
            f"{message} An epoch has {run.counts.steps_per_epoch} steps now instead of {steps_per_epoch}: the run "
            "cannot continue from its last step.",
            f"Restore the images ({DATASET_FILE} in the run's folder lists them), or start a new run.",
            code="dataset_changed",
        )
    report(WarningEvent(code="dataset_changed", message=f"{message} The run continues with them as they are now."))


def _drop_events_after(folder: JobFolder, step: int, offset: int) -> None:
    """Remove the events logged after the state of `step` was saved, at byte `offset`: they will be repeated."""
    folder.drop_events(
        lambda event, position: (
            not isinstance(event, PROCESS_EVENTS)
            and (position >= offset or (isinstance(event, EventAtStep) and event.step > step))
        )
    )


def _result(job: TrainJob, folder: JobFolder, run: Run | None, begin: float, *, stopped: bool) -> TrainResult:
    return TrainResult(
        run=folder.path,
        lora=None if stopped else folder.path / f"{job.name}.safetensors",
        steps=run.step if run else 0,
        epochs=run.epochs_finished if run else 0,
        final_loss=run.last_loss if run else None,
        seconds=round(time.monotonic() - begin, 3),
        stopped=stopped,
        verdict=run.health.verdict() if run else None,
    )
