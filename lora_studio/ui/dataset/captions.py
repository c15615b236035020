"""The Captions section: caption checks with their fixes, and bulk edits, previewed before they are applied."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import Any, NamedTuple

import gradio as gr
from markupsafe import Markup

from lora_studio.dataset.captions import edits
from lora_studio.dataset.captions.edit_history import CaptionHistory, EditReport, PastEdit
from lora_studio.dataset.captions.edits import Change, Edit, EditPlan, plan_edit
from lora_studio.dataset.captions.lint import Finding
from lora_studio.dataset.captions.text import split_tags
from lora_studio.errors import InputError
from lora_studio.settings.choices import TagPosition
from lora_studio.ui.dataset.contents import Contents
from lora_studio.ui.dataset.image_item import ImageItem, display_name
from lora_studio.ui.dataset.layout import Data
from lora_studio.ui.dataset.view import Action, shortened
from lora_studio.ui.widgets.events import Updates
from lora_studio.ui.widgets.formatting import format_count
from lora_studio.ui.widgets.html import Tone, card, cards, empty_card, heading, html, note, pickable, render

MAX_CHANGES = 40
MAX_EDITS = 8
MAX_TAGS = 12


class BulkAction(StrEnum):
    """Bulk edits of captions."""

    ADD = "Add"
    REMOVE = "Remove"
    REPLACE = "Replace"
    REGEX = "Regular expression"


class Scope(StrEnum):
    """Captions that a bulk edit applies to."""

    ALL = "All images"
    FILTERED = "Filtered images"


POSITIONS = (
    ("First", TagPosition.FRONT),
    ("After the trigger word", TagPosition.AFTER_TRIGGER),
    ("Last", TagPosition.BACK),
)


class FindingPick(StrEnum):
    """Verbs of a finding's buttons. The subject after the colon is the key of a fix or finding, or a tag."""

    FIX = "fix"
    SHOW = "finding"
    TAG = "tag"


class _FieldTexts(NamedTuple):
    """Labels and descriptions of a bulk edit's two text fields; an empty label hides the second one."""

    first: str
    first_info: str
    second: str = ""
    second_info: str = ""


FIELDS: Mapping[BulkAction, _FieldTexts] = {
    BulkAction.ADD: _FieldTexts("Tags", "Separated by commas. A caption that already has a tag keeps it in its place."),
    BulkAction.REMOVE: _FieldTexts("Tags", "Whole tags, separated by commas: hair does not affect long hair."),
    BulkAction.REPLACE: _FieldTexts(
        "Tag", "One whole tag.", "With", "One or several tags; a tag that the caption has already is not repeated."
    ),
    BulkAction.REGEX: _FieldTexts(
        "Find", r"Matches anywhere in the caption, as in \b(\w+) dress.", "Replace with", r"\1 is the first group."
    ),
}


class CaptionsPanel:
    """Components of the section."""

    def __init__(self) -> None:
        with gr.Column(visible=False) as self.column:
            with gr.Row(elem_classes="actions"):
                self.undo = gr.Button("Undo", elem_id="captions-undo", min_width=100, size="sm", interactive=False)
                self.redo = gr.Button("Redo", elem_id="captions-redo", min_width=100, size="sm", interactive=False)
            self.findings = pickable(elem_id="captions-findings")
            html(heading("Bulk edit", "Preview the changes first; the last 50 edits can be undone."))
            with gr.Group(elem_classes="answers"):
                self.action = gr.Radio(
                    [action.value for action in BulkAction],
                    value=BulkAction.ADD.value,
                    label="Bulk edit",
                    show_label=False,
                    container=False,
                    elem_id="bulk-action",
                    elem_classes="segments small bulk-action",
                )
                first = FIELDS[BulkAction.ADD]
                self.first = gr.Textbox(label=first.first, info=first.first_info, max_lines=1, elem_id="bulk-first")
                self.second = gr.Textbox(label="With", max_lines=1, visible=False, elem_id="bulk-second")
                self.position = gr.Radio(
                    [(text, position.value) for text, position in POSITIONS],
                    value=TagPosition.AFTER_TRIGGER.value,
                    label="Position",
                    info="The first tags keep their place when tags are shuffled in training.",
                    elem_id="bulk-position",
                )
                self.scope = gr.Radio(
                    [scope.value for scope in Scope],
                    value=Scope.ALL.value,
                    label="Apply to",
                    info="Filtered images: all images that match the filter of the grid, on all its pages.",
                    elem_id="bulk-scope",
                )
            with gr.Row(elem_classes="actions"):
                self.preview = gr.Button("Preview", elem_id="bulk-preview", min_width=100)
                self.apply = gr.Button(
                    "Apply", variant="primary", elem_id="bulk-apply", min_width=120, interactive=False
                )
            self.changes = html(elem_id="bulk-changes")
            self.history = html(elem_id="captions-history")
            self.previewed = gr.State("")

    @property
    def inputs(self) -> list[Any]:
        """Components that a bulk edit reads."""
        return [self.action, self.first, self.second, self.position, self.scope, self.previewed]

    @property
    def outputs(self) -> list[Any]:
        """Components that the section changes."""
        return [
            self.column,
            self.findings,
            self.first,
            self.second,
            self.position,
            self.preview,
            self.apply,
            self.changes,
            self.undo,
            self.redo,
            self.history,
            self.previewed,
        ]

    def action_changed(self, action: str) -> Updates:
        """Show the fields of another bulk edit."""
        fields = FIELDS[BulkAction(action)]
        return {
            self.first: gr.Textbox(label=fields.first, info=fields.first_info),
            self.second: gr.Textbox(
                label=fields.second or "With", info=fields.second_info, visible=bool(fields.second)
            ),
            self.position: gr.Radio(visible=action == BulkAction.ADD),
            **self.clear_preview(),
        }

    def clear_preview(self) -> Updates:
        """Discard the preview."""
        return {self.changes: "", self.previewed: "", self.apply: gr.Button("Apply", interactive=False)}

    def render(self, contents: Contents) -> Updates:
        """Show the caption checks, and which edits can be undone or redone."""
        past = CaptionHistory.of(contents.project.dataset_dir).edits()
        done = [edit for edit in past if not edit.undone]
        undone = [edit for edit in past if edit.undone]
        return {
            self.findings: finding_list(contents.captions.findings) if contents.items else _no_findings(),
            self.undo: gr.Button(interactive=bool(done)),
            self.redo: gr.Button(interactive=bool(undone)),
            self.history: history_list(past),
            self.preview: gr.Button(interactive=bool(contents.items)),
        }

    def plan(self, contents: Contents, shown: Sequence[ImageItem], data: Data) -> EditPlan:
        """Return what the form would change; raise InputError for an invalid form or no images."""
        items = shown if data[self.scope] == Scope.FILTERED else contents.items
        if not items:
            raise InputError("No image matches the filter.", "Choose another filter, or all images.", code="nothing")
        known = {item.path: item.caption for item in items if item.caption is not None}
        return plan_edit([item.path for item in items], self._edit(contents, data), known)

    def show_preview(self, plan: EditPlan) -> Updates:
        """Show a preview, and enable the button that applies it."""
        count = len(plan.changes)
        return {
            self.changes: plan_table(plan),
            self.previewed: plan.digest,
            self.apply: gr.Button(f"Apply to {format_count(count, 'caption')}", interactive=count > 0),
        }

    def apply_previewed(self, contents: Contents, plan: EditPlan, data: Data) -> EditReport:
        """Apply a plan; raise InputError unless it is the one that was previewed."""
        if not data[self.previewed]:
            raise InputError("Nothing was previewed.", "Preview the changes first.", code="no_preview")
        if plan.digest != data[self.previewed]:
            raise InputError(
                "The captions or the form changed since the preview.", "Preview again.", code="other_preview"
            )
        return CaptionHistory.of(contents.project.dataset_dir).apply(plan)

    def _edit(self, contents: Contents, data: Data) -> Edit:
        first, second = data[self.first] or "", data[self.second] or ""
        match BulkAction(data[self.action]):
            case BulkAction.ADD:
                return edits.add(first, TagPosition(data[self.position]), contents.trigger)
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


def _finding(finding: Finding) -> dict[str, object]:
    show = Action(f"{FindingPick.SHOW}:{finding.key}", f"Show {len(finding.images):,}", "Shows these images.")
    fixes = [Action(f"{FindingPick.FIX}:{fix.key}", fix.label, "Can be undone.") for fix in finding.fixes]
    tags = list(finding.tags)[:MAX_TAGS] if finding.code != "common_tag" else []
    rest = len(finding.tags) - len(tags)
    return {
        "title": finding.rule.title,
        "message": finding.message,
        "why": finding.rule.why,
        "tags": [Action(f"{FindingPick.TAG}:{tag}", tag, "Shows the images with this tag.") for tag in tags],
        "more": f"and {rest:,} more" if tags and rest else "",
        "buttons": [show, *fixes],
    }


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


def _change(change: Change) -> dict[str, object]:
    before, after = split_tags(change.before or ""), split_tags(change.after)
    remark = "only its formatting or encoding changes" if before == after else "" if after else "empty"
    return {
        "name": display_name(change.image),
        "removed": [tag for tag in before if tag not in after],
        "tags": [{"text": tag, "added": tag not in before} for tag in after],
        "remark": remark,
    }


def history_list(past: Sequence[PastEdit]) -> Markup:
    """Return the latest edits, those that were undone struck through; empty without any."""
    edits_shown = [
        {
            "what": edit.what,
            "images": format_count(edit.images, "image"),
            "undone": edit.undone,
            "when": "undone" if edit.undone else _time_ago(edit.time),
        }
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
