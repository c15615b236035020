"""The HTML of Plan: the recipe with its reasons, the user's changes to it, and what the guide says."""

from __future__ import annotations

from collections.abc import Sequence

from markupsafe import Markup

from lora_studio import guide
from lora_studio.guide_sections import SECTION_OF_SETTING, SECTIONS
from lora_studio.models.catalogue import KnownBase
from lora_studio.models.found import Model
from lora_studio.planning.planned_run import Plan
from lora_studio.planning.project_plan import NextRun, ProjectPlan
from lora_studio.planning.recommend import Reason
from lora_studio.planning.trigger import check_trigger, propose_triggers, trigger_tokens
from lora_studio.plurals import format_count
from lora_studio.settings.changes import SettingChange
from lora_studio.settings.declare import setting_label
from lora_studio.settings.recipe import Recipe
from lora_studio.settings.values import format_value
from lora_studio.ui.state.base_models import ChosenBase
from lora_studio.ui.state.sweep_view import SweepView
from lora_studio.ui.widgets.formatting import format_duration
from lora_studio.ui.widgets.html import TableRow, heading, render, table
from lora_studio.ui.widgets.job_status import state_card
from lora_studio.workspace.job_folder import JobState, JobStatus
from lora_studio.workspace.project import Home

ALL_BACK = ":all"


def changes_note(run: NextRun) -> Markup:
    """Return what Train would train instead of the plan alone; empty if the user changed nothing."""
    if not run.changes and not run.error:
        return Markup("")
    count, has_changes = format_count(len(run.changes), "setting"), bool(run.planned.info.recipe)
    return render("plan/changes.html", run=run, count=count, has_changes=has_changes, all_back=ALL_BACK)


def measurement(status: JobStatus) -> Markup:
    """Return how far the measurement of the time is, or why it failed; empty at other times."""
    progress = f"Step {status.done} of {status.total}" if status.total and status.done else ""
    return render("plan/measurement.html", status=status, progress=progress)


def base_facts(base: ChosenBase) -> Markup:
    """Return the licence of the chosen base, what its model card recommends, and how far its download is."""
    status = base.download.status() if base.download else JobStatus()
    return render(
        "plan/base.html",
        name=base.name,
        known=base.known,
        is_embedded=base.known is not None and base.known.is_embedded,
        habits=_habits(base.known) if base.known else "",
        is_here=base.is_here,
        can_download=base.can_download,
        status=status,
        progress=_download_progress(status),
    )


def download_label(base: ChosenBase) -> str:
    """Return the text of the button that downloads a base."""
    if not base.can_download:
        return "Download"
    if base.is_partial:
        return f"Continue the download of {base.name}"
    size = f" ({base.known.download_gb:.1f} GB)" if base.known and base.known.download_gb else ""
    return f"Download {base.name}{size}"


def _habits(known: KnownBase) -> str:
    """Return how prompts for a base are written and what its model card recommends; empty if it states nothing."""
    parts = [f"Prompts: {known.prompt_style}" if known.prompt_style else ""]
    parts += [f"sampler {known.sampler}" if known.sampler else ""]
    parts += [
        _span(known.steps, "steps") if known.steps else "",
        _span(known.guidance, "CFG") if known.guidance else "",
    ]
    parts += [f"clip skip {known.clip_skip}" if known.clip_skip else ""]
    text = ", ".join(part for part in parts if part)
    return f"{text[:1].upper()}{text[1:]}." if text else ""


def _span(bounds: tuple[float, float] | None, name: str) -> str:
    low, high = bounds or (0, 0)
    return f"{low:g} {name}" if low == high else f"{low:g} to {high:g} {name}"


def _download_progress(status: JobStatus) -> str:
    """Return bytes, percentage and time left of a download: "2.1 of 6.9 GB (31%), 8 min 20 s left"."""
    if not status.total:
        return status.message
    unit, name = (1e9, "GB") if status.total >= 1e9 else (1e6, "MB")
    text = f"{status.done / unit:.1f} of {status.total / unit:.1f} {name} ({status.done / status.total:.0%})"
    if status.message == "Comparing checksums":
        return f"{text}. Comparing checksums"
    return f"{text}, {format_duration(status.seconds_left)} left" if status.seconds_left is not None else text


def models_list(models: Sequence[Model], home: Home) -> Markup:
    """Return the base models on this machine, and in a fold the files that cannot be used, with the reason."""
    return render(
        "plan/models.html",
        usable=[model for model in models if model.place and not model.problem],
        unusable=[model for model in models if model.problem],
        file=home.model_folders,
    )


def first_test_state(test: SweepView | None) -> Markup:
    """Return how far the test of the bare base is, or why it failed; empty at other times."""
    if test is None or not (test.is_active or test.status.state is JobState.FAILED):
        return Markup("")
    return state_card(test.status, job="test of the base", has_results=bool(test.drawn))


def trigger_help(planned: ProjectPlan) -> Markup:
    """Return the tokens of the trigger word, and free words while there is none or the base may know it."""
    word = planned.info.trigger_word
    proposals = propose_triggers(planned.project.name) if check_trigger(word) else []
    return render("plan/trigger.html", tokens=trigger_tokens(word), proposals=proposals)


def recipe_table(plan: Plan, run: NextRun) -> Markup:
    """Return every setting that the plan chose, with its value and reason; changes in Train are marked."""
    changes = {change.name: change for change in run.changes}
    rows = [
        TableRow(
            [
                setting_label(Recipe, reason.setting),
                format_value(getattr(plan.recipe, reason.setting)),
                _reason(reason, changes.get(reason.setting)),
            ],
            changed=reason.setting in changes,
        )
        for reason in plan.reasons
    ]
    images = f"{format_count(plan.images, 'image')}{' expected' if plan.assumed else ''}"
    summary = f"{images}: a {plan.tier.name} set, good for {plan.tier.good_for}. {plan.tier.focus}"
    columns = ["", "value", "why reason"]
    if any(not reason.guide for reason in plan.reasons):
        summary += " Values marked studio are the studio's: the guide does not cover them."
    return heading("Recipe", summary) + table(["Setting", "Value", "Why"], rows, columns, label="Recipe", stacked=True)


def _reason(reason: Reason, change: SettingChange | None) -> Markup:
    """Return a reason with a link to the guide's section, and how the user changed the value in Train."""
    is_guides = reason.guide or reason.given
    section = SECTION_OF_SETTING.get(reason.setting) if is_guides else None
    return render("plan/reason.html", reason=reason, section=section, change=change)


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
    """Return the guide's sections as a panel that links can open."""
    return render("plan/guide.html", sections=SECTIONS, disclaimer=guide.DISCLAIMER, source=guide.SOURCE)
