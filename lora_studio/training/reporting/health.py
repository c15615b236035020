"""Warning signs during a run: each verdict of the guide is reported once as a hint."""

from __future__ import annotations

from lora_studio.events import HintEvent
from lora_studio.planning.verdicts import Verdict, judge_losses
from lora_studio.training.progress import Progress


def judge_progress(progress: Progress, total_steps: int) -> Verdict:
    """Return the verdict on a run so far, which has `total_steps` steps."""
    running = len(progress.losses) < total_steps
    return judge_losses(progress.losses, running=running, validation=progress.validation_by_step)


def new_hints(progress: Progress, total_steps: int) -> list[HintEvent]:
    """Return the verdict on a run as a hint, unless its code was returned before."""
    found = judge_progress(progress, total_steps)
    if found.code in progress.reported_hints:
        return []
    progress.reported_hints = sorted([*progress.reported_hints, found.code])
    return [HintEvent(code=found.code, message=found.title, why=f"{found.evidence} {found.next_step}".strip())]
