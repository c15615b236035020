"""The training loop: optimizer steps, checkpoints, samples, validation and resume states."""

from __future__ import annotations

import glob
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import torch

from lora_studio.errors import InputError, NonFiniteLossError, StudioError
from lora_studio.events import CheckpointEvent, EpochEvent, PhaseEvent, Report, SampleEvent, WarningEvent
from lora_studio.lora.write import adapter_metadata, lora_tensors, save_lora
from lora_studio.settings.choices import SaveFormat
from lora_studio.training.optim.optimizers import load_optimizer_state
from lora_studio.training.reporting.lora_metadata import build_lora_metadata
from lora_studio.training.reporting.step_log import StepLog
from lora_studio.training.resume_state import ResumeState, save_state
from lora_studio.training.run import Run
from lora_studio.training.samples import SampleSettings, generate_samples, sample_prompts, save_sample
from lora_studio.training.step import train_step_with_oom_retry
from lora_studio.training.validation import validate
from lora_studio.workspace.job_folder import JobFolder

MAX_NAN_STEPS = 5  # steps in a row without a finite loss that end a run
STATE_INTERVAL = 600.0  # seconds between resume states: the most work that a crash of the machine loses


def train_loop(run: Run, *, report: Report, should_stop: Callable[[], bool]) -> bool:
    """Train until the run is complete (returns False) or a stop is requested (returns True).

    On a stop, and on any error that leaves the weights valid, the state after the last step is saved first; on a stop
    also its LoRA, as a checkpoint. Raises NonFiniteLossError after MAX_NAN_STEPS steps in a row without a finite loss.
    An error on one rank ends all ranks.
    """
    log = StepLog(
        report,
        run.counts.total_steps,
        run.device,
        run.health,
        run.timestep_losses,
        on_loss=partial(_record_loss, run),
        deferred=run.updates_without_sync,
    )
    try:
        if run.step == 0 and not run.validation_losses and run.ranks.is_main:
            validate(run, 0, report=report, should_stop=should_stop)
        while True:
            if run.epochs_finished < run.epochs_due:
                log.flush()
                finish_epoch(run, report=report, should_stop=should_stop)
            if run.step >= run.counts.total_steps:
                return False
            if run.ranks.broadcast_flag(should_stop()):
                log.flush()
                _save_before_stop(run, report=report)
                return True
            log.start_clock()
            result = train_step_with_oom_retry(run, report)
            run.step += 1
            log.add(run.step, run.epoch, result)
            state_due = time.monotonic() - run.saved_at > STATE_INTERVAL
            if log.due or state_due or _outputs_due_within_epoch(run):
                log.flush()
            if _outputs_due_within_epoch(run):
                _write_outputs_within_epoch(run, report=report, should_stop=should_stop)
            if state_due:
                save_resume_state(run)
    except Exception:
        if not run.updating:
            for rescue in (log.flush, lambda: save_resume_state(run)):
                with suppress(StudioError, OSError, RuntimeError):
                    rescue()
        raise
    finally:
        run.prefetch.close()


def finish_epoch(run: Run, *, report: Report, should_stop: Callable[[], bool]) -> None:
    """Report an epoch, save its LoRA, generate samples, validate, report hints; save the resume state last."""
    epoch = run.epochs_finished + 1
    if run.ranks.is_main:
        run.log_offset = JobFolder(run.folder).sync_events()
        _write_epoch_outputs(run, epoch, report=report, should_stop=should_stop)
        run.log_offset = None
    run.epoch_losses = []
    run.timestep_losses.clear()
    run.epochs_finished = epoch
    save_resume_state(run)


def _write_epoch_outputs(run: Run, epoch: int, *, report: Report, should_stop: Callable[[], bool]) -> None:
    recipe = run.job.recipe
    if run.epoch_losses:
        report(EpochEvent(epoch=epoch, loss=sum(run.epoch_losses) / len(run.epoch_losses)))
        report(run.timestep_losses.event(epoch))
    last = epoch == run.counts.epochs
    if last or _is_due(recipe.save_every_n_epochs, epoch) or _is_due(recipe.save_every_n_steps, run.step):
        save_checkpoint(run, epoch, report=report)
    sample_due = _is_due(recipe.sample_every_n_epochs, epoch) or (last and recipe.sample_every_n_epochs > 0)
    if sample_due or _is_due(recipe.sample_every_n_steps, run.step):
        write_samples(run, epoch, report=report, should_stop=should_stop)
    with run.averaged_weights.swapped_in():
        validate(run, epoch, report=report, should_stop=should_stop)
    for hint in run.health.new_hints():
        report(hint)


def _outputs_due_within_epoch(run: Run) -> bool:
    """Return True if a checkpoint or samples are due after a step that does not end an epoch."""
    recipe = run.job.recipe
    epoch_ended = run.epochs_finished < run.epochs_due
    due = any(_is_due(every, run.step) for every in (recipe.save_every_n_steps, recipe.sample_every_n_steps))
    return due and not epoch_ended and run.ranks.is_main


def _write_outputs_within_epoch(run: Run, *, report: Report, should_stop: Callable[[], bool]) -> None:
    """Write the checkpoint and samples that are due after a step that does not end an epoch."""
    recipe = run.job.recipe
    run.log_offset = JobFolder(run.folder).sync_events()
    if _is_due(recipe.save_every_n_steps, run.step):
        save_checkpoint(run, None, report=report)
    if _is_due(recipe.sample_every_n_steps, run.step):
        write_samples(run, None, report=report, should_stop=should_stop)
    run.log_offset = None


def _save_before_stop(run: Run, *, report: Report) -> None:
    """Save a checkpoint of the last step, unless it has one or no step was made, and the resume state."""
    recipe = run.job.recipe
    ends_epoch = run.step == run.epochs_finished * run.counts.steps_per_epoch
    saved = _is_due(recipe.save_every_n_steps, run.step) or (
        ends_epoch and _is_due(recipe.save_every_n_epochs, run.epochs_finished)
    )
    if run.ranks.is_main and run.step > 0 and not saved:
        save_checkpoint(run, None, report=report)
        run.saved_position = None  # save the state again, so that a resume keeps the event of the checkpoint
    save_resume_state(run)


def _is_due(every: int, number: int) -> bool:
    return every > 0 and number % every == 0


def save_checkpoint(run: Run, epoch: int | None, *, report: Report) -> None:
    """Save the LoRA of a finished epoch, or of the current step if `epoch` is None; with kohya's file names."""
    position = f"step{run.step:08d}" if epoch is None else f"{epoch:06d}"
    path = run.folder / "checkpoints" / f"{run.job.name}-{position}.safetensors"
    save_lora_file(run, path, run.epoch if epoch is None else epoch)
    _delete_old_checkpoints(run)
    report(CheckpointEvent(step=run.step, epoch=epoch, path=str(path.relative_to(run.folder))))


def write_samples(run: Run, epoch: int | None, *, report: Report, should_stop: Callable[[], bool]) -> None:
    """Write the sample images of a finished epoch, or of the current step if `epoch` is None, until a stop request."""
    recipe = run.job.recipe
    prompts = sample_prompts(run.job, run.dataset)
    settings = SampleSettings(recipe.resolution, recipe.sample_steps, recipe.sample_guidance, recipe.seed)
    position = f"step {run.step}" if epoch is None else f"epoch {epoch}"
    file_part = f"{run.step:08d}" if epoch is None else f"e{epoch:06d}"
    report(PhaseEvent(message=f"Generating samples of {position}"))
    if run.cuda_graphs is not None:
        run.cuda_graphs.free_for_sampling()
    with run.averaged_weights.swapped_in():
        images = generate_samples(
            run.base,
            prompts,
            lambda prompt: run.encode([prompt]),
            settings,
            device=run.device,
            autocast=run.autocast,
            report=report,
            should_stop=should_stop,
        )
        for index, (prompt, image) in enumerate(zip(prompts, images, strict=False)):
            if image is None:
                message = f"The sample for {prompt!r} has NaN or Inf values and is not saved."
                report(WarningEvent(code="sample_not_finite", message=message))
                continue
            path = run.folder / "samples" / f"{run.job.name}_{file_part}_{index:02d}_{recipe.seed}.png"
            save_sample(path, image)
            relative = str(path.relative_to(run.folder))
            report(SampleEvent(step=run.step, epoch=epoch, index=index, prompt=prompt, seed=recipe.seed, path=relative))


def save_lora_file(run: Run, path: Path, epoch: int) -> None:
    """Write the current LoRA, of EMA or schedule-free weights if the run has them; in fp32 for fp32 runs, else in fp16.

    Raises NonFiniteLossError if the weights are not finite.
    """
    _check_finite(run)
    metadata = build_lora_metadata(
        run.job,
        run.dataset,
        run.counts,
        run.base,
        precision=run.precision,
        started=run.started,
        epoch=epoch,
        step=run.step,
        processes=run.ranks.world_size,
        axis=run.adapters.dora_axis,
    )
    stored = torch.float32 if run.dtype == torch.float32 else torch.float16
    save_format = run.job.recipe.save_format
    if save_format is SaveFormat.DIFFUSERS:
        metadata |= adapter_metadata(run.adapters)
    with run.averaged_weights.swapped_in():
        tensors = lora_tensors(run.adapters, run.base.unet, stored, save_format)
    save_lora(path, tensors, metadata)


def save_resume_state(run: Run) -> None:
    """Save the state after the last step, if it is not saved yet. Raises NonFiniteLossError for non-finite weights."""
    if not run.ranks.is_main or run.saved_position == (run.step, run.epochs_finished):
        return
    _check_finite(run)
    values: dict[str, Any] = {
        "dataset": run.dataset.fingerprint,
        "epoch_losses": run.epoch_losses,
        "held_out": run.validation_losses,
        "last_loss": run.last_loss,
        "steps_per_epoch": run.counts.steps_per_epoch,
        "started": run.started,
        "health": run.health.state(),
        "timestep_losses": run.timestep_losses.state(),
        "events": JobFolder(run.folder).sync_events() if run.log_offset is None else run.log_offset,
        "processes": run.ranks.world_size,
    }
    optimizer = {
        "optimizer": run.optimizer.state_dict(),
        "lr_scheduler": run.lr_scheduler.state_dict(),
        "scaler": run.scaler.state_dict(),
        "average": run.averaged_weights.state(),
    }
    save_state(
        run.folder / "checkpoints" / "state",
        ResumeState(run.step, run.epochs_finished, values, run.adapters.state(), optimizer),
    )
    run.saved_position, run.saved_at = (run.step, run.epochs_finished), time.monotonic()


def restore_run(run: Run, state: ResumeState) -> None:
    """Restore a saved state. Raises InputError if its recipe or world size differs from the run's."""
    if (processes := state.values.get("processes", 1)) != run.ranks.world_size:
        raise InputError(
            f"The run began with {processes} processes and has {run.ranks.world_size} now: its steps would differ.",
            f"Set num_processes to {processes} in job.toml, or start a new run.",
            code="resume_processes",
        )
    try:
        run.adapters.load_state(state.weights)
        load_optimizer_state(run.optimizer, state.optimizer["optimizer"])
        run.lr_scheduler.load_state_dict(state.optimizer["lr_scheduler"])
        run.scaler.load_state_dict(state.optimizer["scaler"])
        run.averaged_weights.load_state(state.optimizer.get("average"))
        run.weights.sync_half_copies()
    except (KeyError, RuntimeError, ValueError) as error:
        raise InputError(
            f"The saved state does not fit the recipe: {error}.",
            "Undo the changes to job.toml, or start a new run.",
            code="resume_mismatch",
        ) from error
    run.step, run.epochs_finished = state.step, state.epochs_finished
    run.epoch_losses = state.values["epoch_losses"]
    run.validation_losses = state.values.get("held_out", [])
    run.last_loss = state.values["last_loss"]
    run.started = state.values["started"]
    run.health.load_state(state.values["health"])
    if "timestep_losses" in state.values:
        run.timestep_losses.load_state(state.values["timestep_losses"])
    run.saved_position = state.step, state.epochs_finished


def _record_loss(run: Run, loss: float | None) -> None:
    """Record the loss of a step, None if it was skipped. Raises NonFiniteLossError after MAX_NAN_STEPS in a row."""
    if loss is not None:
        run.nan_streak = 0
        run.last_loss = loss
        run.epoch_losses.append(loss)
        return
    run.nan_streak += 1
    if run.nan_streak >= MAX_NAN_STEPS and run.last_loss is None:
        raise NonFiniteLossError(
            f"None of the first {run.step} steps had a finite loss.",
            "The cause is the base or its precision, not the learning rate: set mixed_precision to bf16 or fp32 (it is "
            f"{run.precision} now), or download {run.base.name} again.",
            code="nan",
        )
    if run.nan_streak >= MAX_NAN_STEPS:
        raise _non_finite_error(
            run, f"The loss was not finite for {MAX_NAN_STEPS} steps in a row, up to step {run.step}."
        )


def _check_finite(run: Run) -> None:
    if not run.adapters.is_finite():
        raise _non_finite_error(run, f"The LoRA's weights are not finite at step {run.step}.")


def _non_finite_error(run: Run, message: str) -> NonFiniteLossError:
    files = checkpoint_files(run)
    kept = f"The last good checkpoint, {files[-1].name}, is kept" if files else "No checkpoint was saved before"
    rates = " and ".join(name for name in ("unet_lr", "text_encoder_lr") if getattr(run.job.recipe, name))
    return NonFiniteLossError(f"{message} {kept}.", f"The learning rate is too high: halve {rates}.", code="nan")


def checkpoint_files(run: Run) -> list[Path]:
    """Return the LoRA files of finished epochs and of steps between them, oldest first."""

    def position(file: Path) -> int:
        label = file.stem.removeprefix(f"{run.job.name}-")
        return int(label.removeprefix("step")) if "step" in label else int(label) * run.counts.steps_per_epoch

    folder, name = run.folder / "checkpoints", glob.escape(run.job.name)
    files = [*folder.glob(f"{name}-{'[0-9]' * 6}.safetensors"), *folder.glob(f"{name}-step{'[0-9]' * 8}.safetensors")]
    return sorted(files, key=position)


def _delete_old_checkpoints(run: Run) -> None:
    """Delete all but the last `keep_checkpoints` checkpoints of this run; 0 keeps all."""
    if keep := run.job.recipe.keep_checkpoints:
        for file in checkpoint_files(run)[:-keep]:
            file.unlink(missing_ok=True)
