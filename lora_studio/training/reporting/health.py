"""Warning signs during a run: each verdict of the guide is reported once as a hint."""

from __future__ import annotations

from collections.abc import Sequence

from lora_studio.events import HintEvent
from lora_studio.planning.loss_record import LossRecord
from lora_studio.planning.verdicts import Verdict, judge
from lora_studio.settings.recipe import Recipe
from lora_studio.training.progress import Progress


def new_hints(progress: Progress, record: LossRecord, recipe: Recipe | None = None) -> list[HintEvent]:
    """Return the verdict on a run so far as a hint, unless its code was returned before."""
    found = judge(record, recipe=recipe, running=len(record.losses) < record.length)
    return hints_of(progress, [found])


def hints_of(progress: Progress, verdicts: Sequence[Verdict]) -> list[HintEvent]:
    """Return verdicts as hints, without those whose code was returned before."""
    new = [found for found in verdicts if found.code not in progress.reported_hints]
    progress.reported_hints = sorted([*progress.reported_hints, *(found.code for found in new)])
    return [
        HintEvent(code=found.code, message=found.title, why=f"{found.evidence} {found.next_step}".strip())
        for found in new
    ]
