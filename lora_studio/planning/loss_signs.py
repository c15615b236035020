"""Find the sign in a run's losses that its verdict is about.

Where there is a fixed-noise loss, it decides what it can: it has hardly any noise. The losses of the steps decide the
rest, and everything in runs without it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite, sqrt
from statistics import median
from typing import Literal

import numpy as np

from lora_studio.planning.loss_record import LossRecord
from lora_studio.planning.losses import (
    LossChange,
    Losses,
    fit_trend,
    has_diverged,
    rise_above_lowest,
    total_change,
)
from lora_studio.planning.verdict_limits import (
    BROKEN_RISE,
    BROKEN_WINDOW,
    MAX_FLAT_CHANGE,
    MAX_FLAT_SHARE,
    MAX_NAN_SHARE,
    MEMORISED_LEVEL,
    MIN_BROKEN_WINDOW,
    MIN_DIFFERENCES,
    MIN_FALL,
    MIN_FALL_BY,
    MIN_FOR_MEANS_OF_3,
    MIN_NAN_STEPS,
    MIN_RISE,
    MIN_SHARE_OF_RUN,
    MIN_STEPS,
    MIN_WINDOW,
    PLATEAU_PACE,
    PLATEAU_SPAN,
    STANDARD_ERRORS,
    STANDARD_ERRORS_OF_RISE,
    STEEP_RISE,
    USUAL_FIXED_NOISE,
    WINDOW,
    WORSE_THAN_BASE,
)

Code = Literal[
    "healthy",
    "plateau",
    "no_improvement",
    "rising",
    "broken",
    "nan",
    "too_short",
    "unclear",
    "overfit",
    "memorising",
]


@dataclass(frozen=True)
class FixedChange:
    """A change of the fixed-noise loss between two steps."""

    start_step: int
    start: float
    end_step: int
    end: float

    @property
    def relative(self) -> float:
        """The change relative to `start`."""
        return self.end / self.start - 1


@dataclass(frozen=True)
class Sign:
    """What was found: the change that shows it, of the steps' losses or of the fixed-noise loss.

    `recent` is the latest part of it, where that matters; `lowest` the step of the lowest loss before a rise.
    """

    code: Code
    change: LossChange | FixedChange | None = None
    recent: LossChange | FixedChange | None = None
    lowest: int | None = None


def find_sign(record: LossRecord) -> Sign:
    """Return the sign in a run's losses so far; the worst one comes first."""
    losses = record.losses
    if is_nan(losses):
        return Sign("nan")
    if sum(loss is not None and isfinite(loss) for loss in losses) < MIN_STEPS:
        return Sign("too_short")
    for find in (_broken, _rising, _overfit, _memorising, _stalled, _level, _by_steps):
        if (found := find(record)) is not None:
            return found
    return Sign("unclear", total_change(record.curve))


def is_nan(losses: Losses) -> bool:
    """Return True if the loss is not finite now, or in too many steps of the run."""
    if not losses:
        return False
    bad = [loss is None or not isfinite(loss) for loss in losses]
    often = sum(bad) >= max(MIN_NAN_STEPS, MAX_NAN_SHARE * len(bad))
    return bad[-1] or often or has_diverged(losses)


def _broken(record: LossRecord) -> Sign | None:
    """Find a loss that jumped and stayed, or a LoRA that makes the base worse on its own training images."""
    window = max(MIN_BROKEN_WINDOW, round(BROKEN_WINDOW * record.length))
    if (found := rise_above_lowest(record.curve, window)) is not None:
        change, place = found
        last = [loss for loss in record.curve if loss is not None and isfinite(loss)][-window:]
        limit = change.start * (1 + BROKEN_RISE)
        if change.end > limit and median(last) > limit and change.rises:
            return Sign("broken", change, lowest=place)
    if record.base and not record.validates and (fixed := _after_start(record)):
        change_to_base = FixedChange(0, record.base, max(fixed), fixed[max(fixed)])
        if change_to_base.relative > WORSE_THAN_BASE:
            return Sign("broken", change_to_base, lowest=min(fixed, key=fixed.__getitem__))
    return None


def _rising(record: LossRecord) -> Sign | None:
    """Find a loss well above its lowest: at fixed noise of training images in two evaluations, or in the steps."""
    if not record.validates and (fixed := _fixed_rise(record)) is not None:
        return Sign("rising", fixed, lowest=fixed.start_step)
    # a steep rise shows in short windows, which also find a low before an early jump
    for window, least in (
        (max(MIN_WINDOW, round(WINDOW * record.length)), MIN_RISE),
        (max(MIN_BROKEN_WINDOW, round(BROKEN_WINDOW * record.length)), STEEP_RISE),
    ):
        if (found := rise_above_lowest(record.curve, window)) is not None:
            change, place = found
            significant = change.end - change.start > STANDARD_ERRORS_OF_RISE * change.error
            if significant and change.relative > least:
                return Sign("rising", change, lowest=place)
    return None


def _fixed_rise(record: LossRecord) -> FixedChange | None:
    """Return the rise of the fixed-noise loss of training images since its lowest; None if it is small.

    The last but one has to be up, too.
    """
    found = _since_lowest(record, after=2)
    if found is None:
        return None
    before = list(record.fixed.values())[-2] / found.start - 1
    return found if found.relative > MIN_RISE and before > MIN_RISE / 2 else None


def _since_lowest(record: LossRecord, *, after: int) -> FixedChange | None:
    """Return the change of the fixed-noise loss since its lowest; None with fewer than `after` losses after that."""
    steps = list(record.fixed)
    lowest = min(steps, key=record.fixed.__getitem__, default=0)
    if len(steps) < 3 or sum(step > lowest for step in steps) < after:
        return None
    return FixedChange(lowest, record.fixed[lowest], steps[-1], record.fixed[steps[-1]])


def _validation_rises(losses: Sequence[float]) -> bool:
    """Return True if the last validation losses are above the lowest successive ones by more than their noise.

    The noise is that of their second differences, over sqrt(6), by the median of their absolute values, which a jump
    does not change (Huber 1981, section 5.1). The first two are left out: there the curve is steep.
    """
    count = 3 if len(losses) >= MIN_FOR_MEANS_OF_3 else 2
    means = np.convolve(losses, np.full(count, 1 / count), "valid")
    differences = np.diff(np.log(np.maximum(losses, 1e-12))[2:], n=2)
    noise = USUAL_FIXED_NOISE
    if len(differences) >= MIN_DIFFERENCES:
        noise = float(np.median(np.abs(differences))) / 0.6745 / sqrt(6)
    limit = max(MIN_RISE, STANDARD_ERRORS * noise * sqrt(2 / count))
    return bool(means[-1] > means.min() * (1 + limit))


def _overfit(record: LossRecord) -> Sign | None:
    """Find a validation loss that has risen since its lowest and stayed up, while that of the steps has not risen."""
    change = _since_lowest(record, after=2)
    if not record.validates or change is None or not _validation_rises(list(record.fixed.values())):
        return None
    return Sign("overfit", change, lowest=change.start_step)


def _memorising(record: LossRecord) -> Sign | None:
    """Find a LoRA that halves the base's loss on its training images, where no validation split says whether it may."""
    if record.validates or not record.base or not (fixed := _after_start(record)):
        return None
    change = FixedChange(0, record.base, max(fixed), fixed[max(fixed)])
    if change.end > MEMORISED_LEVEL * record.base:
        return None
    return Sign("memorising", change)


def _stalled(record: LossRecord) -> Sign | None:
    """Find a fall of the fixed-noise loss below what a LoRA that learns has at this part of the run."""
    change = _fixed_total(record)
    if change is None or change.end_step < MIN_SHARE_OF_RUN * record.length:
        return None
    limit = min_fall(record, change.end_step)
    if min(record.fixed.values()) <= change.start * (1 - limit):
        return None
    whole = total_change(record.curve)
    # unseen images may gain little from a LoRA that learns its own: those must surely be flat, too
    if record.validates and whole.margin - whole.relative > MAX_FLAT_CHANGE:
        return None
    return Sign("no_improvement", change, whole)


def min_fall(record: LossRecord, step: int) -> float:
    """Return the relative fall of the fixed-noise loss by a step, below which a run does not learn."""
    return MIN_FALL * min(1.0, step / (MIN_FALL_BY * record.length))


def _level(record: LossRecord) -> Sign | None:
    """Find a plateau or a healthy fall, by the fixed-noise loss."""
    change = _fixed_total(record)
    if change is None or -change.relative < min_fall(record, change.end_step):
        return None
    earlier = [step for step in record.fixed if step <= change.end_step - PLATEAU_SPAN * record.length]
    if not earlier or earlier[-1] == 0:
        return Sign("healthy", change)
    begin = earlier[-1]
    recent = FixedChange(begin, record.fixed[begin], change.end_step, change.end)
    pace = (recent.start - recent.end) / (recent.end_step - recent.start_step)
    flat = pace * record.length < PLATEAU_PACE * (change.start - change.end)
    return Sign("plateau" if flat else "healthy", change, recent)


def _by_steps(record: LossRecord) -> Sign | None:
    """Find what the losses of the steps show alone."""
    curve = record.curve
    whole, recent = total_change(curve), fit_trend(_last_half(curve))
    if not whole.falls:
        whole = fit_trend(curve)  # which detects slow changes
    if whole.falls and recent.falls:
        return Sign("healthy", whole, recent)
    hidden = abs(recent.relative) + recent.margin
    if hidden > max(MAX_FLAT_CHANGE, MAX_FLAT_SHARE * -whole.relative if whole.falls else 0.0):
        return Sign("healthy", whole, recent) if whole.falls else None
    return Sign("plateau" if whole.falls else "no_improvement", whole, recent)


def _after_start(record: LossRecord) -> dict[int, float]:
    return {step: loss for step, loss in record.fixed.items() if step > 0}


def _fixed_total(record: LossRecord) -> FixedChange | None:
    """Return the change of the fixed-noise loss since before the first step; None if either is unknown."""
    if len(record.fixed) < 2 or 0 not in record.fixed:
        return None
    last = max(record.fixed)
    return FixedChange(0, record.fixed[0], last, record.fixed[last])


def _last_half(losses: Losses) -> Losses:
    kept = [loss for loss in losses if loss is not None and isfinite(loss)]
    return kept[len(kept) // 2 :]
