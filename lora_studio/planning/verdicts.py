"""Verdicts on a training run from its losses: a title, the evidence with figures, and one next step.

The trainer gives one when a run ends; the Train tab and the trainer's hints use them while it runs. If the noise
allows no conclusion, the verdict says so.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from math import isfinite
from typing import Literal

from pydantic import BaseModel, ConfigDict

from lora_studio.events import Event, NanEvent, StartEvent, StepEvent, ValidationEvent
from lora_studio.guide import EXPERIMENTS, ONE_CHANGE, OPTIMIZERS, SUCCESS_INDICATORS, WARNING_SIGNS, WORKFLOW
from lora_studio.planning.losses import (
    NAN_WINDOW,
    LossChange,
    Losses,
    fit_trend,
    has_diverged,
    smooth,
    total_change,
)
from lora_studio.planning.rates import lower_rates
from lora_studio.settings.choices import Precision, Scheduler
from lora_studio.settings.recipe import Recipe

MIN_STEPS = 50
# A recent half counts as flat if its change is significantly below a tenth, or below a third of the fall before it.
MAX_FLAT_CHANGE = 0.1
MAX_FLAT_SHARE = 1 / 3
MIN_RISE = 0.03  # smaller rises are ignored
STEEP_RISE = 0.3
VALIDATION_PATIENCE = 2  # latest validation losses that must all be above the lowest one

Code = Literal["healthy", "plateau", "no_improvement", "rising", "nan", "too_short", "unclear", "overfit"]


class Verdict(BaseModel):
    """The state of a run; `level` is good, info (no conclusion), warn or bad."""

    model_config = ConfigDict(frozen=True)

    code: Code
    title: str
    evidence: str
    next_step: str
    level: Literal["good", "info", "warn", "bad"]


def read_losses(events: Iterable[Event]) -> list[float | None]:
    """Return the training losses by step, None where not finite; for a step that a resume repeated, the last one."""
    by_step: dict[int, float | None] = {}
    for event in events:
        if isinstance(event, StepEvent):
            by_step[event.step] = event.loss
        elif isinstance(event, NanEvent):
            by_step[event.step] = None
    return [by_step[step] for step in sorted(by_step)]


def judge_run(events: Iterable[Event], *, recipe: Recipe | None = None, total: int | None = None) -> Verdict:
    """Return the verdict on a run from its events.

    `total` is the planned number of steps; the default is the total in the events. With a recipe, the next step names
    the values to try.
    """
    events = list(events)
    if total is None:
        total = next((event.total for event in reversed(events) if isinstance(event, StartEvent | StepEvent)), None)
    losses = read_losses(events)
    running = total is not None and len(losses) < total
    return judge_losses(losses, recipe=recipe, running=running, validation=read_validation_losses(events))


def read_validation_losses(events: Iterable[Event]) -> dict[int, float]:
    """Return the finite validation losses by step, in order; for a step measured again, the last one."""
    found = {
        event.step: event.loss
        for event in events
        if isinstance(event, ValidationEvent) and event.loss is not None and isfinite(event.loss)
    }
    return dict(sorted(found.items()))


def judge_losses(
    losses: Losses,
    *,
    recipe: Recipe | None = None,
    running: bool = False,
    validation: Mapping[int, float] | None = None,
) -> Verdict:
    """Return the verdict on a loss curve with one value per step; set `running` if more steps follow.

    `validation` has the validation losses by step, in order.
    """
    good = sum(loss is not None and isfinite(loss) for loss in losses)
    if has_diverged(losses) or (losses and (losses[-1] is None or not isfinite(losses[-1]))):
        return _nan(losses, good, recipe)
    if good < MIN_STEPS:
        return Verdict(
            code="too_short",
            title="Too early to tell",
            evidence=f"{good} steps so far; the loss of a single step is mostly chance.",
            next_step="Keep training."
            if running
            else f"Train for at least {MIN_STEPS} steps, or judge by the samples.",
            level="info",
        )
    whole, recent = _whole(losses), fit_trend(_recent(losses))
    if validation and not recent.rises and (since := _lowest_before_rise(validation)) is not None:
        return _overfit(validation, since, running)
    if recent.rises and recent.relative > MIN_RISE:
        return _rising(losses, recent, recipe)
    if recent.falls:
        return _healthy(whole, recent, running)
    hidden = abs(recent.relative) + 2 * recent.relative_error
    if hidden > max(MAX_FLAT_CHANGE, MAX_FLAT_SHARE * -whole.relative if whole.falls else 0.0):
        return _healthy(whole, recent, running) if whole.falls else _unclear(whole, recent, running)
    return _plateau(whole, recent, running) if whole.falls else _no_improvement(recent, recipe)


def _whole(losses: Losses) -> LossChange:
    """Return the change since the start or, if that is not a significant fall, the trend, which detects slow ones."""
    start_to_end = total_change(losses)
    return start_to_end if start_to_end.falls else fit_trend(losses)


def _recent(losses: Losses) -> Losses:
    """Return the last half of the finite losses."""
    kept = [loss for loss in losses if loss is not None and isfinite(loss)]
    return kept[len(kept) // 2 :]


def _nan(losses: Losses, good: int, recipe: Recipe | None) -> Verdict:
    sign = WARNING_SIGNS["nan"]
    recent = losses[-NAN_WINDOW:]
    bad = sum(loss is None or not isfinite(loss) for loss in recent)
    steps = f"{bad} of the last {len(recent)} steps have no finite loss, {len(losses) - good} of {len(losses)} in all."
    precision = ""
    if recipe is not None and recipe.mixed_precision is Precision.FP16:
        precision = " Or use bf16, which has a larger range than fp16."
    return Verdict(
        code="nan",
        title=sign.sign,
        evidence=f"{steps} {sign.cause}",
        next_step=f"{sign.remedy}{_lower_rates(recipe)}{precision}",
        level="bad",
    )


def _lowest_before_rise(validation: Mapping[int, float]) -> int | None:
    """Return the step of the lowest validation loss if it has risen since and stayed above, else None.

    Validation uses fixed timesteps and noise, so even a small rise is caused by the LoRA.
    """
    steps = list(validation)
    lowest = min(steps, key=validation.__getitem__)
    later = [validation[step] for step in steps if step > lowest]
    risen = len(later) >= VALIDATION_PATIENCE and all(
        loss > validation[lowest] * (1 + MIN_RISE) for loss in later[-VALIDATION_PATIENCE:]
    )
    return lowest if risen else None


def _overfit(validation: Mapping[int, float], lowest: int, running: bool) -> Verdict:
    sign = WARNING_SIGNS["overfit"]
    last = list(validation.values())[-1]
    share = last / validation[lowest] - 1
    when = f"after step {lowest}" if lowest else "before the first step"
    best = f" The checkpoint at step {lowest} has the lowest validation loss." if lowest else ""
    return Verdict(
        code="overfit",
        title="Overfitting: the LoRA is memorising its training images",
        evidence=f"The validation loss was lowest {when}, {validation[lowest]:.4g}, and is {last:.4g} now "
        f"(+{share:.0%}), while the training loss does not rise. {sign.cause}",
        next_step=f"{'You could stop here. ' if running else ''}{sign.remedy}{best}",
        level="warn",
    )


def _rising(losses: Losses, recent: LossChange, recipe: Recipe | None) -> Verdict:
    sign = WARNING_SIGNS["rising"]
    curve = [value for value in smooth(losses) if value is not None]
    lowest = min(range(len(curve) // 10, len(curve)), key=curve.__getitem__) + 1
    return Verdict(
        code="rising",
        title=sign.sign,
        evidence=f"{_describe(recent)} It was lowest around step {lowest}. {sign.cause}",
        next_step=f"{sign.remedy} For the next run, a lower learning rate{_lower_rates(recipe)} is worth a try.",
        level="bad" if recent.relative > STEEP_RISE else "warn",
    )


def _healthy(whole: LossChange, recent: LossChange, running: bool) -> Verdict:
    still = (
        f"It is still falling: {_describe(recent)}"
        if recent.falls
        else f"Whether it still falls is within the noise ({_range(recent)} in the last {recent.steps} steps)."
    )
    return Verdict(
        code="healthy",
        title=SUCCESS_INDICATORS[0].rule.removesuffix("."),
        evidence=f"{_describe(whole)} {still}",
        next_step="Keep training and watch the samples." if running else _test(),
        level="good",
    )


def _plateau(whole: LossChange, recent: LossChange, running: bool) -> Verdict:
    sign = WARNING_SIGNS["plateau"]
    return Verdict(
        code="plateau",
        title=sign.sign,
        evidence=f"{_describe(whole)} In the last {recent.steps} steps it changed by {_range(recent)}. {sign.cause}",
        next_step=sign.remedy if running else f"{_test()} Compare the last checkpoints too.",
        level="warn" if running else "good",
    )


def _no_improvement(recent: LossChange, recipe: Recipe | None) -> Verdict:
    sign = WARNING_SIGNS["no_improvement"]
    return Verdict(
        code="no_improvement",
        title=sign.sign,
        evidence=f"It changed by {_range(recent)} in the last {recent.steps} steps, and not before. {sign.cause}",
        next_step=f"{sign.remedy}{_higher_rate(recipe)} {ONE_CHANGE}",
        level="warn",
    )


def _unclear(whole: LossChange, recent: LossChange, running: bool) -> Verdict:
    return Verdict(
        code="unclear",
        title="Not clear yet",
        evidence=f"Over {whole.steps} steps it changed by {_range(whole)}, which is within the noise.",
        next_step="Keep training and judge by the samples." if running else f"{_test()} {_change_first()}",
        level="info",
    )


def _test() -> str:
    variety, trigger = (indicator.rule.removesuffix(".").lower() for indicator in SUCCESS_INDICATORS[1:3])
    return f"In the Test tab: {WORKFLOW['test'].todo[1]} Signs of success: {variety}; {trigger}."


def _change_first() -> str:
    first, then = (experiment.rule.lower() for experiment in EXPERIMENTS[:2])
    return f"If the result is not right yet: {ONE_CHANGE} The {first} first, then the {then}."


def _describe(change: LossChange) -> str:
    verb = "fell" if change.end < change.start else "rose"
    return (
        f"Over {change.steps} steps the loss {verb} from {change.start:.4g} to {change.end:.4g} "
        f"({abs(change.relative):.0%})."
    )


def _range(change: LossChange) -> str:
    return f"{change.relative:+.1%} \N{PLUS-MINUS SIGN} {2 * change.relative_error:.1%}"


def _higher_rate(recipe: Recipe | None) -> str:
    """Return twice the UNet's rate as text; empty for optimizers and schedules that set it themselves."""
    if recipe is None or recipe.unet_lr == 0 or recipe.lr_scheduler is Scheduler.ADAFACTOR:
        return ""
    if OPTIMIZERS[recipe.optimizer.value].learning_rate_free:
        return ""
    return f" (unet_lr {recipe.unet_lr:g} to {recipe.unet_lr * 2:g})"


def _lower_rates(recipe: Recipe | None) -> str:
    """Return the rates to try after a run that diverged as text; empty for optimizers that find them themselves."""
    if recipe is None or OPTIMIZERS[recipe.optimizer.value].learning_rate_free:
        return ""
    changes = [f"{name} {getattr(recipe, name):g} to {rate:g}" for name, rate in lower_rates(recipe).items()]
    return f" ({', '.join(changes)})" if changes else ""
