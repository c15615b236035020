"""The HTML of Plan: the recipe with its reasons, the user's changes to it, and what the guide says."""

from __future__ import annotations

from markupsafe import Markup

from lora_studio import guide
from lora_studio.planning.planned_run import Plan
from lora_studio.planning.trigger import check_trigger, propose_triggers, trigger_tokens
from lora_studio.settings.recipe import Recipe
from lora_studio.settings.values import format_value
from lora_studio.ui.state.project_plan import NextRun, ProjectPlan
from lora_studio.ui.widgets.formatting import format_count
from lora_studio.ui.widgets.html import TableRow, heading, render, table
from lora_studio.ui.widgets.setting_spec import SettingSpec
from lora_studio.workspace.job_folder import JobStatus


def changes_note(run: NextRun) -> Markup:
    """Return what Train would train instead of the plan alone; empty if the user changed nothing."""
    if not run.changes and not run.error:
        return Markup("")
    return render("plan/changes.html", run=run, count=format_count(len(run.changes), "setting"))


def measurement(status: JobStatus) -> Markup:
    """Return how far the measurement of the time is, or why it failed; empty at other times."""
    progress = f"Step {status.done} of {status.total}" if status.total and status.done else ""
    return render("plan/measurement.html", status=status, progress=progress)


def trigger_help(planned: ProjectPlan) -> Markup:
    """Return the tokens of the trigger word, and free words while there is none or the base may know it."""
    word = planned.info.trigger_word
    proposals = propose_triggers(planned.project.name) if check_trigger(word) else []
    return render("plan/trigger.html", tokens=trigger_tokens(word), proposals=proposals)


def recipe_table(plan: Plan) -> Markup:
    """Return every setting that the plan chose, with its value and reason."""
    rows = [
        TableRow(
            [
                SettingSpec.of(Recipe, reason.setting).label,
                format_value(getattr(plan.recipe, reason.setting)),
                render("plan/reason.html", reason=reason),
            ]
        )
        for reason in plan.reasons
    ]
    images = f"{format_count(plan.images, 'image')}{' expected' if plan.assumed else ''}"
    summary = f"{images}: a {plan.tier.name} set, good for {plan.tier.good_for}. {plan.tier.focus}"
    columns = ["", "value", "why reason"]
    if any(not reason.guide for reason in plan.reasons):
        summary += " Values marked studio are the studio's: the guide does not cover them."
    return heading("Recipe", summary) + table(["Setting", "Value", "Why"], rows, columns, label="Recipe", stacked=True)


def memory_table(plan: Plan) -> Markup:
    """Return what each way to save memory leaves and costs; the first that fits the GPU is marked."""
    first = next((index for index, rung in enumerate(plan.ladder) if rung.fits), None)
    rows = []
    for index, (before, rung) in enumerate(zip([plan.ladder[0], *plan.ladder], plan.ladder, strict=False)):
        saved = f"{before.vram_gib - rung.vram_gib:.1f} GiB less" if index else "–"
        cells = [rung.advice, f"{rung.vram_gib:.1f} GiB", saved, f"{rung.time_factor:.2g} × the time"]
        rows.append(TableRow([*cells, "fits" if index == first else ""], changed=index == first))
    summary = "Each row includes those above it, in the order in which a plan takes them. Times are rough estimates."
    columns = ["", "value", "value", "value", "value"]
    names = ["To save memory", "Memory", "Saved", "Per image", "Your GPU"]
    return heading("Memory", summary) + table(names, rows, columns, label="Memory", stacked=True)


def guide_notes() -> Markup:
    """Return the guide's advice on planning, and where the studio departs from its figures."""
    return render(
        "plan/guide.html",
        step=guide.WORKFLOW["plan"],
        corrections=guide.CORRECTIONS,
        disclaimer=guide.DISCLAIMER,
        source=guide.SOURCE,
    )
