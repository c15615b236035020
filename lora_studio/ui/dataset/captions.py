"""Renders the Captions section: caption checks with their fixes, bulk edits and their preview, past edits."""

from __future__ import annotations

import time
from collections.abc import Sequence
from enum import StrEnum
from typing import NamedTuple

import gradio as gr
from markupsafe import Markup

from lora_studio.dataset.captions import edits
from lora_studio.dataset.captions.edit_history import CaptionHistory, EditReport, PastEdit
from lora_studio.dataset.captions.edits import Change, Edit, EditPlan, plan_edit
from lora_studio.dataset.captions.lint import Finding
from lora_studio.dataset.captions.text import split_tags
from lora_studio.errors import InputError
from lora_studio.plurals import format_count
from lora_studio.settings.choices import TagPosition
from lora_studio.ui.dataset.caption_panels import FIELDS, BulkAction, CaptionsPanel, Scope
from lora_studio.ui.dataset.image_item import display_name
from lora_studio.ui.dataset.state import BulkForm, BulkPreview, DatasetState
from lora_studio.ui.dataset.view import Action, shortened
from lora_studio.ui.widgets.events import Updates
from lora_studio.ui.widgets.html import Tone, card, cards, empty_card, note, render

MAX_CHANGES = 40
MAX_EDITS = 8
MAX_TAGS = 12


class FindingPick(StrEnum):
    """Verbs of a finding's buttons. The subject after the colon is the key of a fix or finding, or a tag."""

    FIX = "fix"
    SHOW = "finding"
    TAG = "tag"


class ShownFinding(NamedTuple):
    """A finding of the caption checks: its reason, tags and buttons."""

    title: str
    message: str
    why: str
    tags: Sequence[Action]
    more: str
    buttons: Sequence[Action]


class ShownTag(NamedTuple):
    """A tag of a previewed caption."""

    text: str
    added: bool


class ShownChange(NamedTuple):
    """A caption that a bulk edit changes."""

    name: str
    removed: Sequence[str]
    tags: Sequence[ShownTag]
    remark: str


class ShownEdit(NamedTuple):
    """An edit of the caption history."""

    what: str
    images: str
    undone: bool
    when: str


def render_captions(panel: CaptionsPanel, state: DatasetState) -> Updates:
    """Show the caption checks, and which edits can be undone or redone."""
    contents = state.contents
    past = CaptionHistory.of(contents.project.dataset_dir).edits()
    return {
        panel.findings: finding_list(contents.captions.findings) if contents.items else _no_findings(),
        panel.undo: gr.Button(interactive=any(not edit.undone for edit in past)),
        panel.redo: gr.Button(interactive=any(edit.undone for edit in past)),
        panel.history: history_list(past),
        panel.preview: gr.Button(interactive=bool(contents.items)),
    }


def render_preview(panel: CaptionsPanel, preview: BulkPreview) -> Updates:
    """Show the preview of a bulk edit, and enable the button that applies it; without a plan, clear it."""
    plan = preview.plan
    if plan is None:
        return {panel.changes: "", panel.previewed: "", panel.apply: gr.Button("Apply", interactive=False)}
    count = len(plan.changes)
    return {
        panel.changes: plan_table(plan),
        panel.previewed: plan.digest,
        panel.apply: gr.Button(f"Apply to {format_count(count, 'caption')}", interactive=count > 0),
    }


def bulk_action_changed(panel: CaptionsPanel, action: str) -> Updates:
    """Show the fields of another bulk edit."""
    texts = FIELDS[BulkAction(action)]
    return {
        panel.first: gr.Textbox(label=texts.first, info=texts.first_info),
        panel.second: gr.Textbox(label=texts.second or "With", info=texts.second_info, visible=bool(texts.second)),
        panel.position: gr.Radio(visible=action == BulkAction.ADD),
        **render_preview(panel, BulkPreview()),
    }


def bulk_plan(state: DatasetState, form: BulkForm) -> EditPlan:
    """Return what the form would change; raise InputError for an invalid form or no images."""
    contents = state.contents
    items = state.gallery.matching if form.scope == Scope.FILTERED else contents.items
    if not items:
        raise InputError("No image matches the filter.", "Choose another filter, or all images.", code="nothing")
    known = {item.path: item.caption for item in items if item.caption is not None}
    return plan_edit([item.path for item in items], _edit(form, contents.trigger), known)


def apply_previewed(state: DatasetState, form: BulkForm) -> EditReport:
    """Apply the bulk edit of the form; raise InputError unless it is the one that was previewed."""
    if not form.previewed:
        raise InputError("Nothing was previewed.", "Preview the changes first.", code="no_preview")
    plan = bulk_plan(state, form)
    if plan.digest != form.previewed:
        raise InputError("The captions or the form changed since the preview.", "Preview again.", code="other_preview")
    return CaptionHistory.of(state.project.dataset_dir).apply(plan)


def _edit(form: BulkForm, trigger: str) -> Edit:
    first, second = form.first or "", form.second or ""
    match BulkAction(form.action):
        case BulkAction.ADD:
            return edits.add(first, TagPosition(form.position), trigger)
        case BulkAction.REMOVE:
            return edits.remove(split_tags(first))
        case BulkAction.REPLACE:
            return edits.replace(first, second)
        case BulkAction.REGEX:
            return edits.substitute(first, second)


def finding_list(findings: Sequence[Finding]) -> Markup:
    """Return the findings of the caption checks, each with its fixes and a button that filters its images."""
    if not findings:
        return card("No problems found", "The captions pass all checks.", tone=Tone.OK)
    return render("dataset/findings.html", findings=[_finding(finding) for finding in findings])


def _finding(finding: Finding) -> ShownFinding:
    show = Action(f"{FindingPick.SHOW}:{finding.key}", f"Show {len(finding.images):,}", "Shows these images.")
    fixes = [Action(f"{FindingPick.FIX}:{fix.key}", fix.label, "Can be undone.") for fix in finding.fixes]
    tags = list(finding.tags)[:MAX_TAGS] if finding.code != "common_tag" else []
    rest = len(finding.tags) - len(tags)
    return ShownFinding(
        finding.rule.title,
        finding.message,
        finding.rule.why,
        [Action(f"{FindingPick.TAG}:{tag}", tag, "Shows the images with this tag.") for tag in tags],
        f"and {rest:,} more" if tags and rest else "",
        [show, *fixes],
    )


def _no_findings() -> Markup:
    return empty_card("Caption checks will appear here", "Import images first, then tag them.")


def plan_table(plan: EditPlan) -> Markup:
    """Return the preview of a bulk edit: each caption with removed tags struck through and new ones marked."""
    if not plan.changes:
        return note("No caption would change.", f"{plan.what}: {format_count(plan.unchanged, 'caption')} checked.")
    rest = len(plan.changes) - MAX_CHANGES
    return render(
        "dataset/changes.html",
        changed=format_count(len(plan.changes), "caption"),
        unchanged=f"{plan.unchanged:,}",
        changes=[_change(change) for change in plan.changes[:MAX_CHANGES]],
        more=f"and {rest:,} more" if rest > 0 else "",
    )


def _change(change: Change) -> ShownChange:
    before, after = split_tags(change.before or ""), split_tags(change.after)
    remark = "only its formatting or encoding changes" if before == after else "" if after else "empty"
    removed = [tag for tag in before if tag not in after]
    return ShownChange(display_name(change.image), removed, [ShownTag(tag, tag not in before) for tag in after], remark)


def history_list(past: Sequence[PastEdit]) -> Markup:
    """Return the latest edits, those that were undone struck through; empty without any."""
    edits_shown = [
        ShownEdit(
            edit.what,
            format_count(edit.images, "image"),
            edit.undone,
            "undone" if edit.undone else _time_ago(edit.time),
        )
        for edit in past[:MAX_EDITS]
    ]
    return render("dataset/edits.html", edits=edits_shown)


def _time_ago(timestamp: float) -> str:
    seconds = max(time.time() - timestamp, 0)
    if seconds < 60:
        return "just now"
    if seconds < 3600:
        return f"{int(seconds // 60)} min ago"
    return time.strftime("%d %b, %H:%M", time.localtime(timestamp))


def report_card(report: EditReport) -> Markup:
    """Return what an edit changed, and which captions it left because they had changed on disk."""
    changed = card(report.what, f"{format_count(len(report.changed), 'caption')} changed.", tone=Tone.OK)
    if not report.kept:
        return changed
    lines = [f"{display_name(item.image)}: {item.reason}." for item in report.kept]
    return cards([changed, card("Not changed", "\n".join(shortened(lines)), tone=Tone.WARNING)])
