"""Warning signs during a run: each verdict of the guide is reported once as a hint."""

from __future__ import annotations

from lora_studio.events import HintEvent
from lora_studio.planning.loss_record import LossRecord
from lora_studio.planning.verdicts import judge
from lora_studio.settings.recipe import Recipe
from lora_studio.training.progress import Progress


def new_hints(progress: Progress, record: LossRecord, recipe: Recipe | None = None) -> list[HintEvent]:
    """Return the verdict on a run so far as a hint, unless its code was returned before."""
    found = judge(record, recipe=recipe, running=len(record.losses) < record.length)
    if found.code in progress.reported_hints:
        return []
    progress.reported_hints = sorted([*progress.reported_hints, found.code])
    return [HintEvent(code=found.code, message=found.title, why=f"{found.evidence} {found.next_step}".strip())]
