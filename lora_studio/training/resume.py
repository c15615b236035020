"""Capture the state of a training run, and resume a run from it."""

from __future__ import annotations

from lora_studio.errors import InputError
from lora_studio.events import PROCESS_EVENTS, EventAtStep, HintEvent, Report, ResumeEvent, WarningEvent
from lora_studio.files import remove_temporary_files
from lora_studio.training.optim.optimizers import load_optimizer_state
from lora_studio.training.optim.schedules import continue_schedule
from lora_studio.training.progress import Progress
from lora_studio.training.reporting.run_records import dataset_changes
from lora_studio.training.resume_state import ResumeState, load_state
from lora_studio.training.trainer import Trainer
from lora_studio.workspace.job_folder import DATASET_FILE, JobFolder


def capture_state(trainer: Trainer, progress: Progress, events_size: int) -> ResumeState:
    """Return the state of a run; `events_size` is the size in bytes of its event log."""
    optimizer = {
        "optimizer": trainer.optimizer.state_dict(),
        "lr_scheduler": trainer.lr_scheduler.state_dict(),
        "scaler": trainer.scaler.state_dict(),
        "average": trainer.averaged_weights.state(),
    }
    return ResumeState(
        progress=progress.model_copy(deep=True),
        dataset=trainer.dataset.fingerprint,
        steps_per_epoch=trainer.counts.steps_per_epoch,
        processes=trainer.ranks.world_size,
        events_size=events_size,
        weights=trainer.adapters.state(),
        optimizer=optimizer,
    )


def restore_state(trainer: Trainer, state: ResumeState) -> Progress:
    """Restore a captured state and return its progress.

    Raises InputError if its recipe or world size differs from the trainer's.
    """
    if state.processes != trainer.ranks.world_size:
        raise InputError(
            f"The run began with {state.processes} processes and has {trainer.ranks.world_size} now: its steps would "
            "differ.",
            f"Set num_processes to {state.processes} in job.toml, or start a new run.",
            code="resume_processes",
        )
    try:
        with trainer.weights.update():
            trainer.adapters.load_state(state.weights)
            load_optimizer_state(trainer.optimizer, state.optimizer["optimizer"])
            trainer.lr_scheduler.load_state_dict(state.optimizer["lr_scheduler"])
            trainer.scaler.load_state_dict(state.optimizer["scaler"])
            trainer.averaged_weights.load_state(state.optimizer.get("average"))
    except (KeyError, RuntimeError, ValueError) as error:
        raise InputError(
            f"The saved state does not fit the recipe: {error}.",
            "Undo the changes to job.toml, or start a new run.",
            code="resume_mismatch",
        ) from error
    return state.progress.model_copy(deep=True)


def resume_run(trainer: Trainer, report: Report) -> Progress | None:
    """Restore the last intact resume state and return its progress; None if there is none.

    The main process also removes from the event log what happened after the state was saved.
    """
    folder = JobFolder(trainer.folder)
    if trainer.ranks.is_main:
        remove_temporary_files(trainer.folder)
    state = load_state(
        trainer.folder / "checkpoints" / "state",
        on_damage=lambda message: report(WarningEvent(code="state_damaged", message=message)),
    )
    progress = None
    if state is not None:
        if state.dataset != trainer.dataset.fingerprint:
            _check_dataset_changes(trainer, state.steps_per_epoch, report)
        progress = restore_state(trainer, state)
        _continue_schedule(trainer, progress, report)
    elif trainer.job.continues:
        raise InputError(
            "The saved state of the run that this one continues cannot be read.",
            "Start a new run from its LoRA instead: network_weights.",
            code="no_state",
        )
    if trainer.ranks.is_main:
        _drop_events_after(folder, progress.step if progress else 0, state.events_size if state else 0)
    if progress is None:
        report(WarningEvent(code="no_state", message="No resume state was saved: the run starts from the beginning."))
        return None
    report(ResumeEvent(step=progress.step))
    return progress


def _continue_schedule(trainer: Trainer, progress: Progress, report: Report) -> None:
    """Plan the rates of a run that continues another one, and report how; a plain resume leaves them as they were."""
    if (taken_over := progress.continued) is None:
        return
    scheduler, recipe, total = trainer.lr_scheduler, trainer.recipe, trainer.counts.total_steps
    if (factor := taken_over.factor) is None:
        rates = zip(scheduler.get_last_lr(), scheduler.base_lrs, strict=True)
        factor = taken_over.factor = float(max((last / base for last, base in rates if base), default=1.0))
    continue_schedule(scheduler, recipe, step=taken_over.step, factor=factor, total_steps=total)
    rate = trainer.optimizer.param_groups[0]["lr"]
    report(
        HintEvent(
            about="recipe",
            code="continued_schedule",
            message=f"Continues from step {taken_over.step:,} to {total:,}; the learning rate continues at {rate:.3g}.",
            why="A schedule that has fallen rises to half the recipe's rates first, and falls again until the last "
            "step. The optimizer's state is kept.",
        )
    )


def _check_dataset_changes(trainer: Trainer, steps_per_epoch: int | None, report: Report) -> None:
    """Warn that the dataset has changed since the run began; raise InputError if the steps per epoch differ."""
    changes = dataset_changes(trainer.folder, trainer.dataset)
    message = f"Images or captions have changed since the run began{f': {changes}' if changes else ''}."
    if steps_per_epoch not in (None, trainer.counts.steps_per_epoch):
        raise InputError(
            f"{message} An epoch has {trainer.counts.steps_per_epoch} steps now instead of {steps_per_epoch}: the run "
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
