"""The change that a verdict asks for, as a new run made from the run whose LoRA was tested."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from lora_studio.errors import InputError
from lora_studio.planning.next_change import next_change
from lora_studio.planning.verdicts import Verdict
from lora_studio.sampling.recommend import judge_lora
from lora_studio.settings.changes import SettingChange, setting_changes
from lora_studio.settings.job_specs import TrainJob
from lora_studio.settings.recipe import Recipe
from lora_studio.sharing.facts import run_of
from lora_studio.ui.context import EditedRun
from lora_studio.ui.state.sweep_view import SweepView
from lora_studio.workspace.project import Project

TRY = "try:"


@dataclass(frozen=True)
class ChangeToTry:
    """A run of the project and what to change in it; `values` are the changed settings."""

    run: str
    values: dict[str, Any]
    changes: Sequence[SettingChange]

    @property
    def text(self) -> str:
        """The changes on one line: "Epochs 10 → 15"."""
        return ", ".join(f"{change.label} {change.before_text} → {change.value_text}" for change in self.changes)


def change_to_try(view: SweepView, lora: str, verdict: Verdict) -> ChangeToTry | None:
    """Return what a verdict on a LoRA, given by its label, asks to change in its run.

    None if the remedy is not a setting, or the LoRA is not from a run of the test's project.
    """
    files = dict(zip(view.plan.lora_labels, view.plan.loras, strict=True))
    run = run_of(files[lora].path) if lora in files else None
    if run is None or run.path.parent != view.folder.path.parents[1] / "runs":
        return None
    with suppress(InputError):
        job = run.job()
        if isinstance(job, TrainJob) and (values := next_change(verdict, job.recipe)):
            changed = Recipe.parse(job.recipe.model_dump() | values)
            return ChangeToTry(run.name, values, setting_changes(changed, job.recipe))
    return None


def edited_run(project: Project, view: SweepView, pick: str) -> EditedRun:
    """Return the run that the button of a verdict, `TRY` and the place of its LoRA and base, asks for.

    Raises InputError if there is no such button any more.
    """
    if view.pictures is not None:
        for place, ((lora, _), rows) in enumerate(view.pictures.by_lora().items()):
            if lora and pick == f"{TRY}{place}":
                verdict = judge_lora(rows, view.pictures.features)
                if (change := change_to_try(view, lora, verdict)) is not None:
                    return EditedRun(project.name, change.run, tuple(change.values.items()))
    raise InputError("This test has no such change to try.", "Reload the page.", code="no_change")
