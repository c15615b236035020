"""The training loop: steps, and what happens at the end of each epoch."""

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
from lora_studio.lora.write import adapter_metadata, lora_tensors, save_lora
from lora_studio.settings.choices import SaveFormat
from lora_studio.settings.job_specs import TrainJob
from lora_studio.training.data.dataset import Dataset
from lora_studio.training.optim.optimizers import load_optimizer_state
from lora_studio.training.reporting.lora_metadata import build_lora_metadata
from lora_studio.training.reporting.step_log import StepLog
from lora_studio.training.resume_state import ResumeState, save_state
from lora_studio.training.run import Run
from lora_studio.training.samples import SampleSettings, generate_samples, sample_prompts, save_sample
from lora_studio.training.step import train_step_with_oom_retry
from lora_studio.training.validation import validate
from lora_studio.workspace.job_folder import JobFolder, Report

MAX_NAN_STEPS = 5  # steps in a row without a finite loss, after which a run ends
STATE_INTERVAL = 600.0  # at most so much work is lost when the machine goes down
# Events of an attempt rather than of the training: a resume leaves them in the log, whatever it does again.
ATTEMPT_EVENTS = frozenset({"waiting", "phase", "warning", "start", "resume", "stopped", "failed"})


def train_loop(run: Run, *, report: Report, should_stop: Callable[[], bool]) -> bool:
    """Train until the run is complete (returns False) or a stop is requested (returns True).

    On a stop, and on any error that leaves the weights valid, the state after the last step is saved first. Raises
    NonFiniteLossError after MAX_NAN_STEPS steps in a row without a finite loss. An error on one rank ends all ranks.
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
                save_resume_state(run)
                return True
            log.start_clock()
            result = train_step_with_oom_retry(run, report)
            run.step += 1
            log.add(run.step, run.epoch, result)
            state_due = time.monotonic() - run.saved_at > STATE_INTERVAL
            if log.due or state_due or _due_within_epoch(run):
                log.flush()
            if _due_within_epoch(run):
                _save_and_sample_within_epoch(run, report=report, should_stop=should_stop)
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
    """Report an epoch, save its LoRA, draw samples, say what was noticed, and save the state last of all."""
    epoch = run.epochs_finished + 1
    if run.ranks.is_main:
        run.log_offset = JobFolder(run.folder).sync_events()
        _report_epoch(run, epoch, report=report, should_stop=should_stop)
        run.log_offset = None
    run.epoch_losses = []
    run.timestep_losses.clear()
    run.epochs_finished = epoch
    save_resume_state(run)


def _report_epoch(run: Run, epoch: int, *, report: Report, should_stop: Callable[[], bool]) -> None:
    recipe = run.job.recipe
    if run.epoch_losses:
        report("epoch", epoch=epoch, loss=sum(run.epoch_losses) / len(run.epoch_losses))
        report("timesteps", epoch=epoch, **run.timestep_losses.event())
    last = epoch == run.counts.epochs
    if last or _is_due(recipe.save_every_n_epochs, epoch) or _is_due(recipe.save_every_n_steps, run.step):
        _checkpoint(run, epoch, report=report)
    draws = _is_due(recipe.sample_every_n_epochs, epoch) or (last and recipe.sample_every_n_epochs > 0)
    if draws or _is_due(recipe.sample_every_n_steps, run.step):
        draw(run, epoch, report=report, should_stop=should_stop)
    with run.averaged_weights.swapped_in():
        validate(run, epoch, report=report, should_stop=should_stop)
    for hint in run.health.hints():
        report("hint", **hint)


def _due_within_epoch(run: Run) -> bool:
    """Whether a file or samples are due after a step that ends no epoch."""
    recipe = run.job.recipe
    ended = run.epochs_finished < run.epochs_due
    due = any(_is_due(every, run.step) for every in (recipe.save_every_n_steps, recipe.sample_every_n_steps))
    return due and not ended and run.ranks.is_main


def _save_and_sample_within_epoch(run: Run, *, report: Report, should_stop: Callable[[], bool]) -> None:
    """What is due after a step that ends no epoch."""
    recipe = run.job.recipe
    run.log_offset = JobFolder(run.folder).sync_events()
    if _is_due(recipe.save_every_n_steps, run.step):
        _checkpoint(run, None, report=report)
    if _is_due(recipe.sample_every_n_steps, run.step):
        draw(run, None, report=report, should_stop=should_stop)
    run.log_offset = None


def _is_due(every: int, number: int) -> bool:
    return every > 0 and number % every == 0


def _checkpoint(run: Run, epoch: int | None, *, report: Report) -> None:
    """Save the LoRA of a finished epoch, or of the current step; named as kohya's tools name them."""
    position = f"step{run.step:08d}" if epoch is None else f"{epoch:06d}"
    path = run.folder / "checkpoints" / f"{run.job.name}-{position}.safetensors"
    save_lora_file(run, path, run.epoch if epoch is None else epoch)
    _delete_old_checkpoints(run)
    report("checkpoint", step=run.step, epoch=epoch, path=str(path.relative_to(run.folder)))


def draw(run: Run, epoch: int | None, *, report: Report, should_stop: Callable[[], bool]) -> None:
    """Draw the sample prompts of a finished epoch, or of the current step, until asked to stop."""
    recipe = run.job.recipe
    prompts = prompts_of_run(run.job, run.dataset)
    settings = SampleSettings(recipe.resolution, recipe.sample_steps, recipe.sample_guidance, recipe.seed)
    position = f"step {run.step}" if epoch is None else f"epoch {epoch}"
    mark = f"{run.step:08d}" if epoch is None else f"e{epoch:06d}"
    report("phase", message=f"Drawing samples of {position}")
    if run.cuda_graphs is not None:
        run.cuda_graphs.free_for_sampling()
    with run.averaged_weights.swapped_in():
        pictures = generate_samples(
            run.base,
            prompts,
            lambda prompt: run.encode([prompt]),
            settings,
            device=run.device,
            autocast=run.autocast,
            should_stop=should_stop,
        )
        for index, (prompt, image) in enumerate(zip(prompts, pictures, strict=False)):
            if image is None:
                message = f"The sample of {prompt!r} is not drawn: its numbers were not finite."
                report("warning", code="sample_not_finite", message=message)
                continue
            path = run.folder / "samples" / f"{run.job.name}_{mark}_{index:02d}_{recipe.seed}.png"
            save_sample(path, image)
            place = str(path.relative_to(run.folder))
            report("sample", step=run.step, epoch=epoch, index=index, prompt=prompt, seed=recipe.seed, path=place)


def prompts_of_run(job: TrainJob, dataset: Dataset) -> list[str]:
    """The prompts of the samples; without a trigger word a bare {trigger} stands for the first caption."""
    return sample_prompts(job.recipe.sample_prompts, job.trigger_word, dataset.items[0].caption)


def save_lora_file(run: Run, path: Path, epoch: int) -> None:
    """Write the LoRA that the run gives out now: in fp16, or in fp32 if that is what the run computed in.

    Raises NonFiniteLossError if its weights are not finite.
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
    )
    stored = torch.float32 if run.dtype == torch.float32 else torch.float16
    form = run.job.recipe.save_format
    if form is SaveFormat.DIFFUSERS:
        metadata |= adapter_metadata(run.adapters)
    with run.averaged_weights.swapped_in():
        tensors = lora_tensors(run.adapters, run.base.unet, stored, form)
    save_lora(path, tensors, metadata)


def save_resume_state(run: Run) -> None:
    """Save the state after the last step, once. Raises NonFiniteLossError if its weights are not finite."""
    if not run.ranks.is_main or run.saved == (run.step, run.epochs_finished):
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
    run.saved, run.saved_at = (run.step, run.epochs_finished), time.monotonic()


def restore_run(run: Run, state: ResumeState) -> None:
    """Put a run where a saved state left it. Raises InputError if it is another recipe's or another world size's."""
    if (processes := state.values.get("processes", 1)) != run.ranks.world_size:
        raise InputError(
            f"The run was begun by {processes} processes, and this is {run.ranks.world_size}: its steps would differ.",
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
            "Put job.toml back as it was, or start a new run.",
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
    run.saved = state.step, state.epochs_finished


def _record_loss(run: Run, loss: float | None) -> None:
    """Record the loss of a step, None if it was skipped. Raises NonFiniteLossError if MAX_NAN_STEPS in a row were."""
    if loss is not None:
        run.nan_streak = 0
        run.last_loss = loss
        run.epoch_losses.append(loss)
        return
    run.nan_streak += 1
    if run.nan_streak >= MAX_NAN_STEPS and run.last_loss is None:
        raise NonFiniteLossError(
            f"Not one of the first {run.step} steps had a finite loss.",
            f"The base or its precision is at fault, not the rate: set mixed_precision to bf16 or fp32 (it is "
            f"{run.precision} now), or download {run.base.name} anew.",
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
    kept = f"The last good checkpoint, {files[-1].name}, is kept" if files else "No checkpoint had been made yet"
    rates = " and ".join(name for name in ("unet_lr", "text_encoder_lr") if getattr(run.job.recipe, name))
    return NonFiniteLossError(f"{message} {kept}.", f"The learning rate is too high: halve {rates}.", code="nan")


def checkpoint_files(run: Run) -> list[Path]:
    """The LoRA files of finished epochs and of steps between them, oldest first."""

    def age(file: Path) -> int:
        position = file.stem.removeprefix(f"{run.job.name}-")
        return int(position.removeprefix("step")) if "step" in position else int(position) * run.counts.steps_per_epoch

    folder, name = run.folder / "checkpoints", glob.escape(run.job.name)
    files = [*folder.glob(f"{name}-{'[0-9]' * 6}.safetensors"), *folder.glob(f"{name}-step{'[0-9]' * 8}.safetensors")]
    return sorted(files, key=age)


def _delete_old_checkpoints(run: Run) -> None:
    """Remove all but the newest `keep_checkpoints` files of this run; 0 keeps all."""
    if keep := run.job.recipe.keep_checkpoints:
        for file in checkpoint_files(run)[:-keep]:
            file.unlink(missing_ok=True)
