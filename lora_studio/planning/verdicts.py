"""What a run's events say about it, in words: a title, the evidence with figures, and one next step.

Used by the trainer at its end, and by the browser and the trainer's plateau hint while the run goes on. Where the noise
allows no verdict, that is what is said.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from math import isfinite, nan
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from lora_studio.guide import EXPERIMENTS, ONE_CHANGE, OPTIMIZERS, SUCCESS_INDICATORS, WARNING_SIGNS, WORKFLOW
from lora_studio.planning.losses import LossChange, Losses, fit_trend, smooth, total_change
from lora_studio.settings.choices import Precision, Scheduler
from lora_studio.settings.recipe import Recipe

MIN_STEPS = 50
MAX_FLAT_CHANGE = 0.1  # a change of the recent half that is surely below a tenth counts as none
MAX_FLAT_SHARE = 1 / 3  # or below a third of the fall before it
MIN_RISE = 0.03  # a rise by less is nothing to speak of
STEEP_RISE = 0.3
VALIDATION_PATIENCE = 2  # held-out losses in a row that must be above the lowest

Code = Literal["healthy", "plateau", "no_improvement", "rising", "nan", "too_short", "unclear", "overfit"]


class Verdict(BaseModel):
    """How a run goes or went. `level` is good, info (nothing to say yet), warn or bad."""

    model_config = ConfigDict(frozen=True)

    code: Code
    title: str
    evidence: str
    next_step: str
    level: Literal["good", "info", "warn", "bad"]


def read_losses(events: Iterable[Mapping[str, Any]]) -> list[float | None]:
    """Losses by step from a run's events, None where not finite; of a step that a resume repeated, the last counts."""
    by_step: dict[int, float | None] = {}
    for event in events:
        if event.get("event") == "step":
            by_step[int(event["step"])] = event.get("loss")
        elif event.get("event") == "nan" and "step" in event:
            by_step[int(event["step"])] = None
    return [by_step[step] for step in sorted(by_step)]


def judge_run(
    events: Iterable[Mapping[str, Any]], *, recipe: Recipe | None = None, total: int | None = None
) -> Verdict:
    """Judge a run by its step events; `total` is its planned number of steps (default: what the events say).

    With a recipe the next step names figures.
    """
    events = list(events)
    if total is None:
        told = (event.get("total") for event in reversed(events) if event.get("event") in ("start", "step"))
        total = next((steps for steps in told if steps is not None), None)
    losses = read_losses(events)
    running = total is not None and len(losses) < total
    return judge_losses(losses, recipe=recipe, running=running, validation=read_validation_losses(events))


def read_validation_losses(events: Iterable[Mapping[str, Any]]) -> dict[int, float]:
    """Held-out losses by the step after which they were measured, in order; the last of a step counts."""
    found = {
        int(event["step"]): float(event["loss"])
        for event in events
        if event.get("event") == "validation" and isfinite(event["loss"] if event.get("loss") is not None else nan)
    }
    return dict(sorted(found.items()))


def judge_losses(
    losses: Losses,
    *,
    recipe: Recipe | None = None,
    running: bool = False,
    validation: Mapping[int, float] | None = None,
) -> Verdict:
    """Judge a loss curve, a value a step; `running` tells that more steps are to come.

    `validation` has the losses on images that are not trained on, by step, in order.
    """
    good = sum(loss is not None and isfinite(loss) for loss in losses)
    if losses and (losses[-1] is None or not isfinite(losses[-1])):
        return _nan(losses, good, recipe)
    if good < MIN_STEPS:
        return Verdict(
            code="too_short",
            title="Too early to tell",
            evidence=f"{good} steps so far; the loss of a single step is mostly chance.",
            next_step="Let it run." if running else f"Train for {MIN_STEPS} steps at least, or judge by the samples.",
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
    """The fall since the start or, where that is not beyond chance, the trend, which sees a slow and steady fall."""
    start_to_end = total_change(losses)
    return start_to_end if start_to_end.falls else fit_trend(losses)


def _recent(losses: Losses) -> Losses:
    """The last half of the finite losses."""
    kept = [loss for loss in losses if loss is not None and isfinite(loss)]
    return kept[len(kept) // 2 :]


def _nan(losses: Losses, good: int, recipe: Recipe | None) -> Verdict:
    sign = WARNING_SIGNS["nan"]
    steps = f"Step {len(losses)} has no finite loss, {len(losses) - good} of {len(losses)} steps in all."
    precision = ""
    if recipe is not None and recipe.mixed_precision is Precision.FP16:
        precision = " Or use bf16, whose numbers reach further than fp16's."
    return Verdict(
        code="nan",
        title=sign.sign,
        evidence=f"{steps} {sign.cause}",
        next_step=f"{sign.remedy}{_rate(recipe, 0.5)}{precision}",
        level="bad",
    )


def _lowest_before_rise(validation: Mapping[int, float]) -> int | None:
    """The step of the lowest held-out loss, if it has risen since and stayed above; None if it has not.

    Its timesteps and noise never change, so that even a small rise is one of the LoRA's.
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
    best = f" The checkpoint at step {lowest} did best on them." if lowest else ""
    return Verdict(
        code="overfit",
        title="It learns its images by heart",
        evidence=f"On the images that are held out the loss was lowest {when}, {validation[lowest]:.4g}, and is "
        f"{last:.4g} now (+{share:.0%}), while that of training does not rise. {sign.cause}",
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
        evidence=f"{_told(recent)} It was lowest around step {lowest}. {sign.cause}",
        next_step=f"{sign.remedy} For the next run, a lower learning rate{_rate(recipe, 0.5, '')} is worth a try.",
        level="bad" if recent.relative > STEEP_RISE else "warn",
    )


def _healthy(whole: LossChange, recent: LossChange, running: bool) -> Verdict:
    still = (
        f"It is still falling: {_told(recent)}"
        if recent.falls
        else f"Whether it still falls, the noise does not tell ({_range(recent)} in the last {recent.steps} steps)."
    )
    return Verdict(
        code="healthy",
        title=SUCCESS_INDICATORS[0].rule.removesuffix("."),
        evidence=f"{_told(whole)} {still}",
        next_step="Let it run, and watch the samples." if running else _test(),
        level="good",
    )


def _plateau(whole: LossChange, recent: LossChange, running: bool) -> Verdict:
    sign = WARNING_SIGNS["plateau"]
    return Verdict(
        code="plateau",
        title=sign.sign,
        evidence=f"{_told(whole)} In the last {recent.steps} steps it changed by {_range(recent)}. {sign.cause}",
        next_step=sign.remedy if running else f"{_test()} Compare the last checkpoints too.",
        level="warn" if running else "good",
    )


def _no_improvement(recent: LossChange, recipe: Recipe | None) -> Verdict:
    sign = WARNING_SIGNS["no_improvement"]
    return Verdict(
        code="no_improvement",
        title=sign.sign,
        evidence=f"In the last {recent.steps} steps it changed by {_range(recent)}, and not before. {sign.cause}",
        next_step=f"{sign.remedy}{_rate(recipe, 2)} {ONE_CHANGE}",
        level="warn",
    )


def _unclear(whole: LossChange, recent: LossChange, running: bool) -> Verdict:
    return Verdict(
        code="unclear",
        title="The loss does not tell",
        evidence=f"Over {whole.steps} steps it changed by {_range(whole)}, which is within the noise.",
        next_step="Let it run, and judge by the samples." if running else f"{_test()} {_change_first()}",
        level="info",
    )


def _test() -> str:
    looks = " ".join(indicator.rule for indicator in SUCCESS_INDICATORS[1:3])
    return f"In Test: {WORKFLOW['test'].todo[1]} What tells of success: {looks}"


def _change_first() -> str:
    first, then = (experiment.rule.lower() for experiment in EXPERIMENTS[:2])
    return f"If it is not right yet: {ONE_CHANGE} The {first} first, then the {then}."


def _told(change: LossChange) -> str:
    verb = "fell" if change.end < change.start else "rose"
    return (
        f"Over {change.steps} steps the loss {verb} from {change.start:.4g} to {change.end:.4g} "
        f"({abs(change.relative):.0%})."
    )


def _range(change: LossChange) -> str:
    return f"{change.relative:+.1%} \N{PLUS-MINUS SIGN} {2 * change.relative_error:.1%}"


def _rate(recipe: Recipe | None, factor: float, lead: str = " ") -> str:
    """The next rate to try, in words; nothing for Prodigy and others that find their own."""
    if recipe is None or recipe.unet_lr == 0 or recipe.lr_scheduler is Scheduler.ADAFACTOR:
        return ""
    if OPTIMIZERS[recipe.optimizer.value].learning_rate_free:
        return ""
    text = f"(unet_lr {recipe.unet_lr:g} to {recipe.unet_lr * factor:g})"
    return f"{lead or ' '}{text}"
