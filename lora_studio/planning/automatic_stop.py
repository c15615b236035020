"""Decide whether a run stops by itself: a sign in its losses has held for as many evaluations as the recipe says."""

from __future__ import annotations

from collections.abc import Collection
from typing import Literal, NamedTuple

from pydantic import BaseModel, ConfigDict

from lora_studio.planning.loss_record import LossRecord
from lora_studio.planning.loss_signs import Code, find_sign
from lora_studio.planning.verdicts import judge
from lora_studio.settings.recipe import Recipe

StopCode = Literal["plateau", "rise", "break"]


class _Rule(NamedTuple):
    code: StopCode
    setting: str  # which has the patience
    signs: frozenset[Code]


RULES = (
    _Rule("break", "stop_at_break", frozenset({"broken"})),
    _Rule("rise", "stop_at_rise", frozenset({"rising", "overfit", "broken"})),
    _Rule("plateau", "stop_at_plateau", frozenset({"plateau"})),
)


class AutomaticStop(BaseModel):
    """Why a run stopped by itself after `step`. The loss was lowest at `lowest`; None if it did not rise."""

    model_config = ConfigDict(frozen=True)

    code: StopCode
    step: int
    message: str
    lowest: int | None = None


def automatic_stop(record: LossRecord, recipe: Recipe, *, ignored: Collection[str] = ()) -> AutomaticStop | None:
    """Return why a run stops after its latest evaluation, by the signs at the last ones; None if it continues.

    `ignored` are codes that have stopped the run before: it was resumed in spite of them. A run after its last step
    does not stop.
    """
    step = len(record.losses)
    if step >= record.length:
        return None
    evaluated = [at for at in record.fixed if 0 < at <= step]
    for rule in RULES:
        patience = getattr(recipe, rule.setting)
        last = evaluated[-patience:] if patience else []
        if rule.code in ignored or not patience or len(last) < patience:
            continue
        if all(find_sign(record.up_to(at)).code in rule.signs for at in reversed(last)):
            return _stop(rule.code, record, patience)
    return None


def _stop(code: StopCode, record: LossRecord, patience: int) -> AutomaticStop:
    step, verdict = len(record.losses), judge(record, running=True)
    times = f", {patience} evaluations in a row" if patience > 1 else ""
    message = f"Stopped automatically at step {step:,}: {verdict.title[0].lower()}{verdict.title[1:]}{times}."
    return AutomaticStop(code=code, step=step, message=message, lowest=find_sign(record).lowest)
