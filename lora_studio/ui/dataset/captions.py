"""Captions: what the lint finds, each with its mends, and edits of all captions at once, seen before they are done."""

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
from lora_studio.ui.dataset.contents import Contents, ImageItem, display_name
from lora_studio.ui.dataset.view import NAMES_SHOWN
from lora_studio.ui.widgets.events import Updates
from lora_studio.ui.widgets.formatting import format_count
from lora_studio.ui.widgets.html import Tone, card, cards, empty_card, heading, html, note, pickable

CHANGES_SHOWN = 40
EDITS_SHOWN = 8
TAGS_SHOWN = 12


class BulkAction(StrEnum):
    """What can be done to all captions."""

    ADD = "Add"
    REMOVE = "Remove"
    REPLACE = "Replace"
    REGEX = "Regular expression"


class Scope(StrEnum):
    """Whose captions."""

    ALL = "All images"
    SHOWN = "Those shown"


POSITIONS = (
    ("In front", TagPosition.FRONT),
    ("After the trigger word", TagPosition.AFTER_TRIGGER),
    ("At the end", TagPosition.BACK),
)


class FindingPick(StrEnum):
    """What a finding's button asks for; what follows the colon is a mend's or a finding's key, or a tag."""

    FIX = "fix"
    SHOW = "finding"
    TAG = "tag"


class _FieldTexts(NamedTuple):
    """What the form asks for an act: the two texts' labels and reasons; an empty label hides the second."""

    first: str
    why: str
    second: str = ""
    second_why: str = ""


FIELDS: Mapping[BulkAction, _FieldTexts] = {
    BulkAction.ADD: _FieldTexts("Tags", "Separated by commas. A caption that has one already keeps it where it is."),
    BulkAction.REMOVE: _FieldTexts("Tags", "Whole tags, separated by commas: hair does not touch long hair."),
    BulkAction.REPLACE: _FieldTexts(
        "Tag", "One whole tag.", "With", "One or several; a tag that is there already is not doubled."
    ),
    BulkAction.REGEX: _FieldTexts(
        "Look for", r"Over the whole caption, as in \b(\w+) dress.", "Put in its place", r"\1 is the first group."
    ),
}


class CaptionsPanel:
    """The right side of Captions."""

    def __init__(self) -> None:
        with gr.Column(visible=False) as self.column:
            with gr.Row(elem_classes="actions"):
                self.undo = gr.Button("Undo", elem_id="captions-undo", min_width=100, size="sm", interactive=False)
                self.redo = gr.Button("Do again", elem_id="captions-redo", min_width=100, size="sm", interactive=False)
            self.findings = pickable(elem_id="captions-findings")
            html(heading("Change many captions", "See what would change first; the last 50 edits can be undone."))
            with gr.Group(elem_classes="answers"):
                self.action = gr.Radio(
                    [action.value for action in BulkAction],
                    value=BulkAction.ADD.value,
                    label="What to do",
                    show_label=False,
                    container=False,
                    elem_id="bulk-action",
                    elem_classes="segments small bulk-action",
                )
                first = FIELDS[BulkAction.ADD]
                self.first = gr.Textbox(label=first.first, info=first.why, max_lines=1, elem_id="bulk-first")
                self.second = gr.Textbox(label="With", max_lines=1, visible=False, elem_id="bulk-second")
                self.position = gr.Radio(
                    [(text, position.value) for text, position in POSITIONS],
                    value=TagPosition.AFTER_TRIGGER.value,
                    label="Where",
                    info="The first tags stay in place when tags are shuffled in training.",
                    elem_id="bulk-position",
                )
                self.scope = gr.Radio(
                    [scope.value for scope in Scope],
                    value=Scope.ALL.value,
                    label="Whose captions",
                    info="Those shown: what the filters on the left let through, on all its pages.",
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
        """What the form says."""
        return [self.action, self.first, self.second, self.position, self.scope, self.previewed]

    @property
    def outputs(self) -> list[Any]:
        """Everything that this panel changes."""
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
        """Another act was chosen: the form asks for what it needs."""
        fields = FIELDS[BulkAction(action)]
        return {
            self.first: gr.Textbox(label=fields.first, info=fields.why),
            self.second: gr.Textbox(label=fields.second or "With", info=fields.second_why, visible=bool(fields.second)),
            self.position: gr.Radio(visible=action == BulkAction.ADD),
            **self.clear_preview(),
        }

    def clear_preview(self) -> Updates:
        """What was seen does not hold any more."""
        return {self.changes: "", self.previewed: "", self.apply: gr.Button("Apply", interactive=False)}

    def render(self, contents: Contents) -> Updates:
        """What the lint says, and what can be undone."""
        past = CaptionHistory.of(contents.project.dataset_dir).edits()
        done = [edit for edit in past if not edit.undone]
        undone = [edit for edit in past if edit.undone]
        return {
            self.findings: finding_list(contents.findings) if contents.items else _nothing(),
            self.undo: gr.Button(interactive=bool(done)),
            self.redo: gr.Button(interactive=bool(undone)),
            self.history: history_list(past),
            self.preview: gr.Button(interactive=bool(contents.items)),
        }

    def plan(self, contents: Contents, shown: Sequence[ImageItem], data: Mapping[Any, Any]) -> EditPlan:
        """What the form would change; raises InputError for what it cannot do."""
        items = shown if data[self.scope] == Scope.SHOWN else contents.items
        if not items:
            raise InputError("No image is shown.", "Choose another filter, or all images.", code="nothing")
        known = {item.path: item.caption for item in items if item.caption is not None}
        return plan_edit([item.path for item in items], self._edit(contents, data), known)

    def show_preview(self, plan: EditPlan) -> Updates:
        """Show a plan, and let it be carried out."""
        count = len(plan.changes)
        return {
            self.changes: plan_table(plan),
            self.previewed: plan.digest,
            self.apply: gr.Button(f"Apply to {format_count(count, 'caption')}", interactive=count > 0),
        }

    def apply_previewed(self, contents: Contents, plan: EditPlan, data: Mapping[Any, Any]) -> EditReport:
        """Do what was seen; raises InputError if something else would be done by now."""
        if not data[self.previewed]:
            raise InputError("Nothing was previewed.", "Look at what would change first.", code="no_preview")
        if plan.digest != data[self.previewed]:
            raise InputError(
                "The captions or the form changed since the preview.", "Preview once more.", code="other_preview"
            )
        return CaptionHistory.of(contents.project.dataset_dir).apply(plan)

    def _edit(self, contents: Contents, data: Mapping[Any, Any]) -> Edit:
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
    """What the lint found, each with its mends and the way to its images."""
    if not findings:
        return card("Nothing to mend", "The captions pass every check.", tone=Tone.OK)
    return Markup('{}<div class="entries findings">{}</div>').format(
        heading("Checks", "Doubtful is not wrong: mend what you agree with. Each mend can be undone."),
        Markup("").join(_finding(finding) for finding in findings),
    )


def _finding(finding: Finding) -> Markup:
    buttons = [
        _button(FindingPick.SHOW, finding.key, f"Show {len(finding.images):,}", "Show these images on the left.")
    ]
    buttons += [_button(FindingPick.FIX, fix.key, fix.label, "It can be undone.") for fix in finding.fixes]
    shown = list(finding.tags)[:TAGS_SHOWN] if finding.code != "common_tag" else []
    tags = Markup("").join(_button(FindingPick.TAG, tag, tag, "Show the images that have it.") for tag in shown)
    rest = len(finding.tags) - len(shown)
    more = Markup('<span class="hint">and {} more</span>').format(f"{rest:,}") if shown and rest else ""
    return Markup(
        '<div class="entry"><div class="words"><strong>{}</strong><p>{}</p><p class="hint">{}</p>{}</div>'
        '<div class="acts">{}</div></div>'
    ).format(
        finding.rule.title,
        finding.message,
        finding.rule.why,
        Markup('<div class="acts tags">{}{}</div>').format(tags, more) if shown else "",
        Markup("").join(buttons),
    )


def _button(pick: FindingPick, subject: str, text: str, title: str) -> Markup:
    return Markup('<button type="button" class="act" data-pick="{}:{}" title="{}">{}</button>').format(
        pick.value, subject, title, text
    )


def _nothing() -> Markup:
    return empty_card("Checks of your captions will stand here", "Import images first, then tag them.")


def plan_table(plan: EditPlan) -> Markup:
    """What would change, tag by tag: what goes is struck out, what comes is marked."""
    if not plan.changes:
        return note("No caption would change.", f"{plan.what}: {format_count(plan.unchanged, 'caption')} looked at.")
    rows = Markup("").join(_change(change) for change in plan.changes[:CHANGES_SHOWN])
    rest = len(plan.changes) - CHANGES_SHOWN
    return Markup(
        '<p class="hint" role="status">{} would change, {} would not.</p>'
        '<div class="table-scroll changes" tabindex="0" role="region" aria-label="What would change"><table><tbody>{}'
        "</tbody></table></div>{}"
    ).format(
        format_count(len(plan.changes), "caption"),
        f"{plan.unchanged:,}",
        rows,
        Markup('<p class="hint">and {} more</p>').format(f"{rest:,}") if rest > 0 else "",
    )


def _change(change: Change) -> Markup:
    before, after = split_tags(change.before or ""), split_tags(change.after)
    pieces = [Markup("<del>{}</del>").format(tag) for tag in before if tag not in after]
    pieces += [
        Markup("<ins>{}</ins>").format(tag) if tag not in before else Markup("<span>{}</span>").format(tag)
        for tag in after
    ]
    if before == after:
        pieces.append(Markup('<span class="hint">the same text, written anew</span>'))
    elif not after:
        pieces.append(Markup('<span class="hint">nothing is left</span>'))
    return Markup('<tr><th scope="row" title="{0}">{0}</th><td>{1}</td></tr>').format(
        display_name(change.image), Markup(" ").join(pieces)
    )


def history_list(past: Sequence[PastEdit]) -> Markup:
    """The latest edits, what can be done again struck out."""
    if not past:
        return Markup("")
    lines = Markup("").join(
        Markup('<li class="{}"><span>{}</span> <span class="hint">{} · {}</span></li>').format(
            "undone" if edit.undone else "",
            edit.what,
            format_count(edit.images, "image"),
            "undone" if edit.undone else _ago(edit.time),
        )
        for edit in past[:EDITS_SHOWN]
    )
    return Markup('{}<ul class="edits" aria-label="Latest edits">{}</ul>').format(heading("Latest edits"), lines)


def _ago(moment: float) -> str:
    """When it was, as people say it."""
    seconds = max(time.time() - moment, 0)
    if seconds < 60:
        return "just now"
    if seconds < 3600:
        return f"{int(seconds // 60)} min ago"
    return time.strftime("%d %b, %H:%M", time.localtime(moment))


def report_card(report: EditReport) -> Markup:
    """What was done, and what was left because somebody else changed it."""
    done = card(report.what, f"{format_count(len(report.changed), 'caption')} changed.", tone=Tone.OK)
    if not report.kept:
        return done
    lines = [f"{display_name(item.image)}: {item.reason}." for item in report.kept[:NAMES_SHOWN]]
    if len(report.kept) > NAMES_SHOWN:
        lines.append(f"and {len(report.kept) - NAMES_SHOWN} more")
    return cards([done, card("Left as they are", "\n".join(lines), tone=Tone.WARNING)])
