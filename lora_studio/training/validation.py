"""The fixed-noise loss: of the validation split where there is one, else of a few training images; and the base's.

The loss of a training step depends mostly on its random timesteps and noise. Here both are fixed: two evaluations
differ by the LoRA's weights alone. On the validation split it is the validation loss, which rises when the LoRA begins
to memorise its images; on training images it shows whether the LoRA learns, and when the weights break.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from lora_studio.device import warn_if_out_of_memory
from lora_studio.events import BaseLossEvent, PhaseEvent, Report, ValidationEvent, WarningEvent
from lora_studio.planning.evaluations import Evaluations, plan_evaluations
from lora_studio.planning.loss_record import LossRecord
from lora_studio.planning.picture_verdicts import judge_samples
from lora_studio.planning.verdicts import Verdict
from lora_studio.settings.choices import LossType
from lora_studio.training.evaluation import EvaluationPoint, evaluate, training_points, validation_points
from lora_studio.training.lora_file import checkpoints_by_step
from lora_studio.training.progress import Progress, ValidationLoss
from lora_studio.training.reporting.base_losses import BaseLosses
from lora_studio.training.trainer import Trainer

# Half of the target's variance; a base that is trained with the wrong prediction type has an error of 0.9 or more.
WRONG_TARGET_ERROR = 0.5
LEVEL_SAMPLES = 1000  # whose timesteps the mean of the base's loss is taken over


def evaluations_of(trainer: Trainer) -> Evaluations:
    """Return how many evaluations the run can afford."""
    counts = trainer.counts
    return plan_evaluations(counts.total_steps * counts.samples_per_epoch // counts.steps_per_epoch, counts.epochs)


def loss_record(trainer: Trainer, progress: Progress) -> LossRecord:
    """Return the losses of a run for its verdict."""
    return progress.loss_record(
        trainer.counts.total_steps,
        validates=bool(trainer.dataset.validation_items),
        checkpoints=checkpoints_by_step(trainer, progress),
    )


def sample_verdicts(trainer: Trainer, progress: Progress) -> list[Verdict]:
    """Return the verdicts on the latest samples."""
    checkpoints = checkpoints_by_step(trainer, progress)
    return judge_samples(progress.sample_measures, recipe=trainer.recipe, checkpoints=checkpoints)


def measure_base(trainer: Trainer, progress: Progress, *, report: Report, should_stop: Callable[[], bool]) -> None:
    """Measure and report the base's loss by timestep, without the LoRA, if that is possible and no stop is requested.

    If memory runs out, a warning is reported instead; the losses of the steps are then not relative to the base's.
    """
    points = training_points(trainer, evaluations_of(trainer).base_points)
    report(PhaseEvent(message="Measuring the base's loss"))
    losses = None
    with (
        warn_if_out_of_memory(report, "base_loss_out_of_memory", "Memory ran out while measuring the base's loss."),
        trainer.adapters.disabled(),
    ):
        losses = evaluate(trainer, points, should_stop)
    if losses is None:
        return
    weights = trainer.collator.loss_weights
    found = BaseLosses.fit([point.timestep for point in points], losses, lambda timestep: float(weights[timestep]))
    if found is None:
        return
    progress.base_losses = found
    _check_error(trainer, points, losses, report)
    report(
        BaseLossEvent(
            loss=float(found.expected(_drawn_timesteps(trainer)).mean()),
            timesteps=found.timesteps,
            losses=found.losses,
            evaluations=found.evaluations,
        )
    )


def _check_error(trainer: Trainer, points: Sequence[EvaluationPoint], losses: Sequence[float], report: Report) -> None:
    """Warn if the base's squared error is that of a model that predicts something else than it is trained on.

    Noise and v have a variance of 1; of that, a model that knows its target leaves little at high noise.
    """
    weights, total = trainer.collator.loss_weights, len(trainer.collator.loss_weights)
    errors = [
        loss / float(weights[point.timestep])
        for point, loss in zip(points, losses, strict=True)
        if 2 * point.timestep >= total and weights[point.timestep] > 0
    ]
    if trainer.recipe.loss_type is not LossType.L2 or not errors or sum(errors) / len(errors) < WRONG_TARGET_ERROR:
        return
    report(
        WarningEvent(
            code="base_loss_high",
            message=f"The base's own loss at high noise is {sum(errors) / len(errors):.2f}; usual is 0.01 to 0.3.",
            why=f"Its prediction type is probably not {trainer.base.prediction_type}: then the LoRA unlearns the base, "
            "and its images are washed out. Stop, and check what the base's author says.",
        )
    )


def validate(
    trainer: Trainer, progress: Progress, epoch: int, *, report: Report, should_stop: Callable[[], bool]
) -> None:
    """Compute and report the fixed-noise loss, unless a stop is requested meanwhile.

    `epoch` is the number of finished epochs. A run that is continued for more epochs keeps its
    points. If memory runs out, a warning is reported instead.
    """
    known = progress.validation_losses[-1:]
    count = known[0].points if known and known[0].points else evaluations_of(trainer).points
    validates = bool(trainer.dataset.validation_items)
    points = validation_points(trainer, count) if validates else training_points(trainer, count)
    name = "validation" if validates else "fixed-noise"
    report(PhaseEvent(message=f"Computing the {name} loss"))
    losses = base = None
    with warn_if_out_of_memory(report, "validation_out_of_memory", f"Memory ran out while computing the {name} loss."):
        losses = evaluate(trainer, points, should_stop)
        base = losses and _base_level(trainer, progress, points, losses, should_stop)
    if losses is None or base is None:
        return
    loss = sum(losses) / len(losses)
    entry = ValidationLoss(step=progress.step, epoch=epoch, loss=loss, base_loss=base, points=count)
    progress.validation_losses.append(entry)
    split = "validation" if validates else "training"
    report(ValidationEvent(step=progress.step, epoch=epoch, loss=loss, split=split, base_loss=base))


def _base_level(
    trainer: Trainer,
    progress: Progress,
    points: Sequence[EvaluationPoint],
    losses: Sequence[float],
    should_stop: Callable[[], bool],
) -> float | None:
    """Return the mean loss of the base at the points, measured once; None after a stop request.

    A new LoRA changes nothing before the first step; one that continues an existing file does.
    """
    if progress.validation_losses and (known := progress.validation_losses[-1].base_loss) is not None:
        return known
    progress.validation_losses.clear()  # those of an earlier version, at other points
    if progress.step or trainer.job.network_weights is not None:
        with trainer.adapters.disabled():
            found = evaluate(trainer, points, should_stop)
        if found is None:
            return None
        losses = found
    return sum(losses) / len(losses)


def _drawn_timesteps(trainer: Trainer) -> list[int]:
    """Return the timesteps that the first samples of the run draw."""
    batch = trainer.recipe.batch_size
    steps = range(min(trainer.counts.total_steps, -(-LEVEL_SAMPLES // batch)))
    return [timestep for step in steps for timestep in trainer.collator.timesteps(step, 0, batch)]
