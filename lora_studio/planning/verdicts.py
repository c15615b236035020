"""Verdicts on a training run from its losses: a title, the evidence with figures, and one next step.

The trainer gives one when a run ends; the Train tab and the trainer's hints use them while it runs. If the noise
allows no conclusion, the verdict says so. `loss_signs` finds what is to be said, `verdict_limits` has the limits.
"""

from __future__ import annotations

from collections.abc import Iterable
from math import isfinite
from typing import Literal

from pydantic import BaseModel, ConfigDict

from lora_studio.events import Event
from lora_studio.guide import EXPERIMENTS, ONE_CHANGE, OPTIMIZERS, SUCCESS_INDICATORS, WARNING_SIGNS, WORKFLOW
from lora_studio.planning.loss_record import LossRecord
from lora_studio.planning.loss_signs import Code, FixedChange, Sign, find_sign
from lora_studio.planning.losses import NAN_WINDOW, LossChange
from lora_studio.planning.picture_signs import PictureCode, TestCode
from lora_studio.planning.rates import lower_rates
from lora_studio.planning.verdict_limits import MIN_STEPS, STEEP_RISE
from lora_studio.settings.choices import Precision, Scheduler
from lora_studio.settings.recipe import Recipe

# From the worst on: signs that stay on record, since a run seldom recovers from them. The others are of a moment.
SERIOUS: tuple[Code, ...] = ("nan", "broken", "rising", "overfit", "memorising")
REPLAYS = 20  # points of a run at which the record is judged again to find its worst verdict


class Verdict(BaseModel):
    """The state of a run after `step`; `level` is good, info (no conclusion), warn or bad."""

    model_config = ConfigDict(frozen=True)

    code: Code | PictureCode | TestCode
    title: str
    evidence: str
    next_step: str
    level: Literal["good", "info", "warn", "bad"]
    step: int = 0


def judge_run(events: Iterable[Event], *, recipe: Recipe | None = None, total: int | None = None) -> Verdict:
    """Return the verdict on a run from its events.

    The run is still running if it has fewer steps than `total`; the default is the planned number in the events. With a
    recipe, the next step names the values to try.
    """
    record = LossRecord.from_events(events)
    planned = record.total if total is None else total
    return judge(record, recipe=recipe, running=len(record.losses) < (planned or 0))


def judge(record: LossRecord, *, recipe: Recipe | None = None, running: bool = False) -> Verdict:
    """Return the verdict on the losses of a run; set `running` if more steps follow."""
    sign = find_sign(record)
    name = "the loss relative to the base's" if record.curve is record.relative else "the loss"
    match sign.code:
        case "nan":
            found = _nan(record, recipe)
        case "too_short":
            found = _too_short(record, running)
        case "broken":
            found = _broken(record, sign, recipe, name)
        case "rising":
            found = _rising(record, sign, recipe, name)
        case "overfit":
            found = _overfit(record, sign, running)
        case "memorising":
            found = _memorising(sign, recipe)
        case "no_improvement":
            found = _no_improvement(sign, recipe)
        case "plateau":
            found = _plateau(sign, running, name)
        case "healthy":
            found = _healthy(sign, running, name)
        case _:
            found = _unclear(sign, running)
    return found.model_copy(update={"step": len(record.losses)})


def worst_verdict(record: LossRecord, *, recipe: Recipe | None = None) -> Verdict | None:
    """Return the worst serious verdict that a run had before its latest one; None if that is as bad, or none was."""
    steps = len(record.losses)
    marks = sorted({round(record.length * mark / REPLAYS) for mark in range(1, REPLAYS)} | set(record.fixed))
    now = find_sign(record).code
    limit = SERIOUS.index(now) if now in SERIOUS else len(SERIOUS)
    worst: int | None = None
    for mark in marks:
        if not 0 < mark < steps:
            continue
        code = find_sign(record.up_to(mark)).code
        if code in SERIOUS and SERIOUS.index(code) < limit:
            limit, worst = SERIOUS.index(code), mark
    return None if worst is None else judge(record.up_to(worst), recipe=recipe, running=True)


def _nan(record: LossRecord, recipe: Recipe | None) -> Verdict:
    sign = WARNING_SIGNS["nan"]
    losses, recent = record.losses, record.losses[-NAN_WINDOW:]
    bad = sum(loss is None or not isfinite(loss) for loss in recent)
    all_bad = sum(loss is None or not isfinite(loss) for loss in losses)
    steps = f"{bad} of the last {len(recent)} steps have no finite loss, {all_bad} of {len(losses)} in all."
    precision = ""
    if recipe is not None and recipe.mixed_precision is Precision.FP16:
        precision = " Or use bf16, which has a larger range than fp16."
    return Verdict(
        code="nan",
        title=sign.sign,
        evidence=f"{steps} {sign.cause}",
        next_step=f"{sign.remedy}{_lower_rates(recipe)}{precision}{_checkpoint(record, len(losses))}",
        level="bad",
    )


def _too_short(record: LossRecord, running: bool) -> Verdict:
    good = sum(loss is not None and isfinite(loss) for loss in record.losses)
    return Verdict(
        code="too_short",
        title="Too early to tell",
        evidence=f"{good} steps so far; the loss of a single step is mostly chance.",
        next_step="Keep training." if running else f"Train for at least {MIN_STEPS} steps, or judge by the samples.",
        level="info",
    )


def _broken(record: LossRecord, sign: Sign, recipe: Recipe | None, name: str) -> Verdict:
    warning = WARNING_SIGNS["broken"]
    return Verdict(
        code="broken",
        title=warning.sign,
        evidence=f"{_describe(sign.change, name)} {warning.cause}",
        next_step=f"{warning.remedy}{_lower_rates(recipe)}{_checkpoint(record, sign.lowest)}",
        level="bad",
    )


def _rising(record: LossRecord, sign: Sign, recipe: Recipe | None, name: str) -> Verdict:
    warning = WARNING_SIGNS["rising"]
    assert sign.change is not None
    return Verdict(
        code="rising",
        title=warning.sign,
        evidence=f"{_describe(sign.change, name)} It was lowest around step {sign.lowest}. {warning.cause}",
        next_step=f"{warning.remedy} For the next run, a lower learning rate{_lower_rates(recipe)} is worth a try."
        f"{_checkpoint(record, sign.lowest)}",
        level="bad" if sign.change.relative > STEEP_RISE else "warn",
    )


def _overfit(record: LossRecord, sign: Sign, running: bool) -> Verdict:
    warning, change = WARNING_SIGNS["overfit"], sign.change
    assert isinstance(change, FixedChange)
    lowest = change.start_step
    when = f"after step {lowest}" if lowest else "before the first step"
    return Verdict(
        code="overfit",
        title="Overfitting: the LoRA is memorising its training images",
        evidence=f"The validation loss was lowest {when}, {change.start:.4g}, and is {change.end:.4g} now "
        f"({change.relative:+.0%}), while the training loss does not rise. {warning.cause}",
        next_step=f"{'You could stop here. ' if running else ''}{warning.remedy}{_checkpoint(record, lowest)}",
        level="warn",
    )


def _memorising(sign: Sign, recipe: Recipe | None) -> Verdict:
    warning, change = WARNING_SIGNS["memorising"], sign.change
    assert isinstance(change, FixedChange)
    return Verdict(
        code="memorising",
        title=warning.sign,
        evidence=f"At fixed noise its loss on training images is {change.end:.4g}, {change.end / change.start:.2f} of "
        f"the base's. {warning.cause}",
        next_step=f"{warning.remedy} For the next run, a lower learning rate{_lower_rates(recipe)} or fewer epochs.",
        level="warn",
    )


def _healthy(sign: Sign, running: bool, name: str) -> Verdict:
    still = ""
    if isinstance(sign.recent, FixedChange):
        still = f" Since step {sign.recent.start_step} it changed by {sign.recent.relative:+.1%}."
    elif sign.recent is not None:
        still = (
            f" It is still falling: {_describe(sign.recent, name)}"
            if sign.recent.falls
            else f" Whether it still falls is within the noise ({_range(sign.recent)} in the last "
            f"{sign.recent.steps} steps)."
        )
    return Verdict(
        code="healthy",
        title=SUCCESS_INDICATORS[0].rule.removesuffix("."),
        evidence=f"{_describe(sign.change, name)}{still}",
        next_step="Keep training and watch the samples." if running else _test(),
        level="good",
    )


def _plateau(sign: Sign, running: bool, name: str) -> Verdict:
    warning = WARNING_SIGNS["plateau"]
    if isinstance(sign.recent, FixedChange):
        recent = f"Since step {sign.recent.start_step} it changed by {sign.recent.relative:+.1%} only."
    else:
        assert sign.recent is not None
        recent = f"In the last {sign.recent.steps} steps it changed by {_range(sign.recent)}."
    return Verdict(
        code="plateau",
        title=warning.sign,
        evidence=f"{_describe(sign.change, name)} {recent} {warning.cause}",
        next_step=warning.remedy if running else f"{_test()} Compare the last checkpoints too.",
        level="warn" if running else "good",
    )


def _no_improvement(sign: Sign, recipe: Recipe | None) -> Verdict:
    warning, change = WARNING_SIGNS["no_improvement"], sign.change
    if isinstance(change, FixedChange):
        evidence = f"At fixed noise it changed by {change.relative:+.1%} in {change.end_step} steps."
    else:
        assert isinstance(sign.recent, LossChange)
        evidence = f"It changed by {_range(sign.recent)} in the last {sign.recent.steps} steps, and not before."
    return Verdict(
        code="no_improvement",
        title=warning.sign,
        evidence=f"{evidence} {warning.cause}",
        next_step=f"{warning.remedy}{_higher_rate(recipe)} {ONE_CHANGE}",
        level="warn",
    )


def _unclear(sign: Sign, running: bool) -> Verdict:
    whole = sign.change
    assert isinstance(whole, LossChange)
    inside = "which is within the noise" if abs(whole.relative) <= whole.margin else "too little to judge by"
    return Verdict(
        code="unclear",
        title="Not clear yet",
        evidence=f"Over {whole.steps} steps it changed by {_range(whole)}, {inside}.",
        next_step="Keep training and judge by the samples." if running else f"{_test()} {_change_first()}",
        level="info",
    )


def _test() -> str:
    variety, trigger = (indicator.rule.removesuffix(".").lower() for indicator in SUCCESS_INDICATORS[1:3])
    return f"In the Test tab: {WORKFLOW['test'].todo[1]} Signs of success: {variety}; {trigger}."


def _change_first() -> str:
    first, then = (experiment.rule.lower() for experiment in EXPERIMENTS[:2])
    return f"If the result is not right yet: {ONE_CHANGE} The {first} first, then the {then}."


def _checkpoint(record: LossRecord, step: int | None) -> str:
    """Return a sentence that names the last checkpoint up to a step; without any file, the step itself."""
    if not step:
        return ""
    earlier = [at for at in record.checkpoints if at <= step]
    if not earlier:
        return ""
    at = max(earlier)
    name = record.checkpoints[at].rpartition("/")[2]
    return f" {name} was saved at step {at}{'' if at == step else ', the last one before that'}."


def _describe(change: LossChange | FixedChange | None, name: str) -> str:
    assert change is not None
    verb = "fell" if change.end < change.start else "rose"
    if isinstance(change, FixedChange):
        since = f"step {change.start_step}" if change.start_step else "the first step"
        return (
            f"At fixed noise the loss {verb} from {change.start:.4g} to {change.end:.4g} between {since} and step "
            f"{change.end_step} ({abs(change.relative):.1%})."
        )
    return (
        f"Over {change.steps} steps {name} {verb} from {change.start:.4g} to {change.end:.4g} "
        f"({abs(change.relative):.0%})."
    )


def _range(change: LossChange) -> str:
    """Return a relative change with the range that a test of it uses, too."""
    return f"{change.relative:+.1%} \N{PLUS-MINUS SIGN} {change.margin:.1%}"


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
