"""The training loop: validate, step, log; and at the end of an epoch save, sample and validate."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from enum import Enum
from functools import partial

from lora_studio.errors import NonFiniteLossError, StudioError
from lora_studio.events import PhaseEvent, Report
from lora_studio.planning.losses import NAN_WINDOW, has_diverged
from lora_studio.settings.choices import GradientCheckpointing
from lora_studio.training.lora_file import non_finite_error
from lora_studio.training.outputs import Outputs
from lora_studio.training.progress import Progress
from lora_studio.training.reporting.step_log import StepLog
from lora_studio.training.reporting.system_memory import watch_system_memory
from lora_studio.training.speed.step_retry import StepRetry
from lora_studio.training.step import train_step
from lora_studio.training.trainer import Trainer


class LoopEnd(Enum):
    """Why the training loop ended: the run is complete, a stop was requested, or it stopped by itself."""

    COMPLETE = "complete"
    REQUESTED = "requested"
    AUTOMATIC = "automatic"


def train_loop(trainer: Trainer, progress: Progress, *, report: Report, should_stop: Callable[[], bool]) -> LoopEnd:
    """Train until the run is complete, a stop is requested, or the losses say so and the recipe wants that.

    On a stop, and on any error that leaves the weights valid, the state after the last step is saved first; on a stop
    also its LoRA, as a checkpoint. Raises NonFiniteLossError if too many of the last steps have no finite loss. An
    error on one rank ends all ranks.
    """
    counts, ranks = trainer.counts, trainer.ranks
    resumed_at = (progress.step, progress.epochs_finished) if progress.step else None
    outputs = Outputs(trainer, progress, report, should_stop, saved_position=resumed_at)
    log = StepLog(
        report,
        progress,
        counts,
        trainer.device,
        on_nan=partial(_check_divergence, trainer, progress),
        deferred=trainer.skips_nonfinite_on_gpu,
        on_seconds=watch_system_memory(trainer.job, trainer.device, report),
        prior_loss_weight=trainer.recipe.prior_loss_weight,
    )
    retry = step_retry(trainer, report)
    try:
        outputs.write_before_training()
        while True:
            if progress.epochs_finished < progress.epochs_due(counts):
                log.flush()
                outputs.finish_epoch()
            if progress.step >= counts.total_steps:
                return LoopEnd.COMPLETE
            if ranks.broadcast_flag(should_stop() or outputs.stops):
                log.flush()
                outputs.save_before_stop()
                return LoopEnd.AUTOMATIC if outputs.stops else LoopEnd.REQUESTED
            _stop_text_encoders(trainer, progress, report)
            log.start_clock()
            result = train_step(trainer, progress.step, retry)
            progress.step += 1
            log.add(result)
            outputs_due, state_due = outputs.due_within_epoch, outputs.state_due
            if log.due or outputs_due or state_due:
                log.flush()
            if outputs_due:
                outputs.write_within_epoch()
            if state_due:
                outputs.save_state()
    except Exception:
        if trainer.weights.consistent:
            for rescue in (log.flush, outputs.save_state):
                with suppress(StudioError, OSError, RuntimeError):
                    rescue()
        raise
    finally:
        trainer.prefetch.close()


def _stop_text_encoders(trainer: Trainer, progress: Progress, report: Report) -> None:
    """Freeze the text encoders from the step on at which the recipe stops training them."""
    if progress.step < trainer.text_encoder_stop or trainer.weights.frozen:
        return
    trainer.freeze_text_encoders()
    report(PhaseEvent(message=f"The text encoders are not trained any further, from step {progress.step + 1} on"))


def step_retry(trainer: Trainer, report: Report) -> StepRetry:
    """Return how the gradients of a run's steps are retried: on out of memory with gradient checkpointing `auto`."""
    adaptive = trainer.recipe.gradient_checkpointing is GradientCheckpointing.AUTO
    return StepRetry(trainer.block_checkpointing, trainer.weights, trainer.ranks, report, adaptive)


def _check_divergence(trainer: Trainer, progress: Progress) -> None:
    """Raise NonFiniteLossError if too many of the last steps have no finite loss."""
    if not has_diverged(progress.losses):
        return
    if progress.last_loss is None:
        raise NonFiniteLossError(
            f"None of the first {len(progress.losses)} steps had a finite loss.",
            "The cause is the base or its precision, not the learning rate: set mixed_precision to bf16 or fp32 (it is "
            f"{trainer.precision} now), or download {trainer.base.name} again.",
            code="nan",
        )
    recent = progress.losses[-NAN_WINDOW:]
    raise non_finite_error(
        trainer,
        f"The loss was not finite in {recent.count(None)} of the last {len(recent)} steps, up to step "
        f"{len(progress.losses)}.",
    )
