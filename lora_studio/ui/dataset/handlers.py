"""Handlers of Review, Captions and Statistics, and of the filters above the grid."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gradio as gr

from lora_studio.dataset.captions.edit_history import CaptionHistory, EditReport
from lora_studio.dataset.captions.edits import EditPlan, plan_edit
from lora_studio.dataset.captions.lint import find_fix
from lora_studio.dataset.captions.text import with_trigger
from lora_studio.errors import InputError, StudioError
from lora_studio.ui.dataset.captions import FindingPick, report_card
from lora_studio.ui.dataset.chips import suggestion_list
from lora_studio.ui.dataset.contents import Contents
from lora_studio.ui.dataset.image_item import Filter, ImageItem
from lora_studio.ui.dataset.layout import INCLUDES_TAG, Data
from lora_studio.ui.dataset.page import DatasetPage
from lora_studio.ui.dataset.review import change_caption, chip_edit, neighbour, status_line
from lora_studio.ui.dataset.statistics import TagPick
from lora_studio.ui.widgets.events import NO_PROGRESS, Updates

MAX_TYPED = 100  # characters of a tag being typed that suggestions are searched for; add_tag.js cuts there too


class CaptionHandlers:
    """Event handlers that filter images, edit captions and mark them as reviewed."""

    def __init__(self, page: DatasetPage) -> None:
        self.page = page
        self.left = page.left
        self.review = page.review
        self.captions = page.captions
        self.statistics = page.statistics

    def wire(self, on: Callable[..., None]) -> None:
        """Register the events with `on(event, handler, more_inputs, **options)`."""
        on(self.left.filter.input, self.filter_changed, trigger_mode="always_last")
        on(self.left.tag.submit, self.filter_changed)
        on(self.left.tag.blur, self.filter_changed)
        on(self.left.tag_side.input, self.filter_changed, trigger_mode="always_last")
        on(self.review.previous.click, self.show_previous)
        on(self.review.next.click, self.show_next)
        on(self.review.save.click, self.save_caption)
        on(self.review.caption.blur, self.save_caption)
        on(self.review.add_trigger.click, self.add_trigger_word)
        queued: dict[str, Any] = {"trigger_mode": "multiple"}  # no click is dropped while another one is handled
        on(self.review.chips.click, self.chip_clicked, **queued)
        on(self.review.add.submit, self.chip_clicked, **queued)
        on(self.review.mark.click, self.mark_and_show_next)
        on(self.review.toggle.click, self.toggle_reviewed)
        on(self.review.undo.click, self.undo)
        on(self.captions.undo.click, self.undo)
        on(self.page.tag.undo.click, self.undo)
        on(self.captions.redo.click, self.redo)
        on(self.captions.findings.click, self.finding_clicked)
        on(self.captions.preview.click, self.preview, self.captions.inputs)
        on(self.captions.first.submit, self.preview, self.captions.inputs)
        on(self.captions.second.submit, self.preview, self.captions.inputs)
        on(self.captions.apply.click, self.apply, self.captions.inputs)
        on(self.statistics.table.click, self.tag_clicked)
        on(self.statistics.co_occurrence.click, self.tag_clicked)
        self.captions.action.input(
            self.captions.action_changed, self.captions.action, self.captions.outputs, **NO_PROGRESS
        )
        self.review.caption.change(
            self.caption_typed,
            [self.page.studio.project, self.review.caption],
            [self.review.hint, self.review.add_trigger],
            **NO_PROGRESS,
            trigger_mode="always_last",
        )
        self.review.add.input(
            self.suggest,
            [self.page.studio.project, self.review.current],
            self.review.suggestions,
            **NO_PROGRESS,
            trigger_mode="multiple",  # with always_last, gradio would send the event data of the first letter again
        )

    def filter_changed(self, data: Data) -> Updates:
        """Show the images that match the new filter."""
        return self._filter_by(data, {self.page.finding: ""})

    def show_previous(self, data: Data) -> Updates:
        """Show the previous image that matches the filter."""
        return self._step(data, -1)

    def show_next(self, data: Data) -> Updates:
        """Show the next image that matches the filter."""
        return self._step(data, 1)

    def save_caption(self, data: Data) -> Updates:
        """Save the caption in the text box."""
        contents = self.page.contents(data)
        if not self.review.save_caption(contents, data):
            return {}
        saved = self.review.after_save(contents, data)
        contents = contents.after_change([contents.item(data[self.review.current]).path])
        return saved | {self.page.top.tiles: self.page.tiles(contents), self.left.grid: self.page.grid(contents, data)}

    def add_trigger_word(self, data: Data) -> Updates:
        """Put the trigger word first in the caption."""
        trigger = self.page.contents(data).trigger
        text = with_trigger(data[self.review.caption] or "", trigger)
        return self.save_caption({**data, self.review.caption: text}) | {self.review.caption: text}

    def caption_typed(self, project_name: str, caption: str) -> Any:
        """Show the number of tokens and the position of the trigger word while a caption is typed."""
        try:
            trigger = self.page.studio.find_project(project_name).info().trigger_word
        except StudioError:
            return gr.skip()
        return self.review.caption_hints(trigger, caption or "")

    def chip_clicked(self, data: Data, event: gr.EventData) -> Updates:
        """Remove, add or move a tag of the caption on disk, see `ChipPick`."""
        self.page.save_pending_caption(data)
        contents = self.page.contents(data)
        item = contents.item(data[self.review.current])
        edit = chip_edit(str(event.pick), contents.trigger)
        changed = change_caption(contents, item, edit)
        contents = contents.after_change([item.path])
        return self.page.show_image(contents, contents.item(item.id), data) | {
            self.review.saved: status_line(f"{edit.what}." if changed else "No change.")
        }

    def mark_and_show_next(self, data: Data) -> Updates:
        """Mark the image as reviewed and show the next one."""
        return self._mark(data, lambda item: True, show_next=True)

    def toggle_reviewed(self, data: Data) -> Updates:
        """Mark the image as reviewed, or remove the mark."""
        return self._mark(data, lambda item: not item.reviewed, show_next=False)

    def undo(self, data: Data) -> Updates:
        """Undo the latest caption edit."""
        return self._apply_history(data, lambda history: history.undo())

    def redo(self, data: Data) -> Updates:
        """Redo the caption edit that was undone last."""
        return self._apply_history(data, lambda history: history.redo())

    def finding_clicked(self, data: Data, event: gr.EventData) -> Updates:
        """Fix a finding of the caption checks, or filter the images by it or by one of its tags."""
        verb, _, key = str(event.pick).partition(":")
        match verb:
            case FindingPick.FIX:
                finding, fix = find_fix(self.page.contents(data).captions.findings, key)
                return self._apply_history(data, lambda history: history.apply(plan_edit(finding.images, fix.edit)))
            case FindingPick.SHOW:
                return self._filter_by(
                    data, {self.left.tag: "", self.left.filter: Filter.ALL.value, self.page.finding: key}
                )
            case FindingPick.TAG:
                return self._filter_by_tag(data, key)
        raise InputError("Unknown button.", "Reload the page.", code="pick")

    def preview(self, data: Data) -> Updates:
        """Preview a bulk edit."""
        self.page.save_pending_caption(data)
        return self.captions.show_preview(self._plan(self.page.contents(data), data))

    def apply(self, data: Data) -> Updates:
        """Apply the bulk edit that was previewed."""
        contents = self.page.contents(data)
        report = self.captions.apply_previewed(contents, self._plan(contents, data), data)
        return self._captions_changed(data, contents, report) | self.captions.clear_preview()

    def tag_clicked(self, data: Data, event: gr.EventData) -> Updates:
        """Filter the images by a tag of the statistics, or show another page of its table."""
        verb, _, subject = str(event.pick).partition(":")
        if verb == TagPick.TAG and subject:
            return self._filter_by_tag(data, subject)
        if verb == TagPick.PAGE and subject.isdecimal():
            return self.page.render({**data, self.statistics.page: int(subject)}) | {self.statistics.page: int(subject)}
        raise InputError("Unknown button.", "Reload the page.", code="pick")

    def suggest(self, project: str, current: str, event: gr.EventData) -> Any:
        """Return tags that complete the typed text."""
        try:
            contents = Contents.of(self.page.studio.find_project(project))
        except StudioError:
            return gr.skip()
        typed = str(event.text)[:MAX_TYPED]
        return suggestion_list(typed, self.review.suggester.suggest(contents, typed, contents.by_id.get(current)))

    def _step(self, data: Data, step: int) -> Updates:
        self.page.save_pending_caption(data)
        contents = self.page.contents(data)
        item = neighbour(contents, data[self.review.current], self.page.selection(contents, data), step)
        return self.page.render(data, contents) if item is None else self.page.show_image(contents, item, data)

    def _plan(self, contents: Contents, data: Data) -> EditPlan:
        shown = contents.matching(self.page.selection(contents, data))
        return self.captions.plan(contents, shown, data)

    def _filter_by_tag(self, data: Data, tag: str) -> Updates:
        all_images: Updates = {self.left.filter: Filter.ALL.value, self.page.finding: ""}
        return self._filter_by(data, {self.left.tag: tag, self.left.tag_side: INCLUDES_TAG, **all_images})

    def _filter_by(self, data: Data, filters: Updates) -> Updates:
        """Set filters and show the first page of the grid."""
        return self.page.render({**data, **filters, self.page.grid_page: 0}) | filters

    def _apply_history(self, data: Data, action: Callable[[CaptionHistory], EditReport]) -> Updates:
        self.page.save_pending_caption(data)
        contents = self.page.contents(data)
        return self._captions_changed(data, contents, action(CaptionHistory.of(contents.project.dataset_dir)))

    def _captions_changed(self, data: Data, contents: Contents, report: EditReport) -> Updates:
        """Show captions after an edit, with a report of what changed."""
        contents = contents.after_change([*report.changed, *(item.image for item in report.kept)])
        updates = self.page.render(data, contents)
        item = contents.by_id.get(data[self.review.current])
        if item is not None:
            updates |= self.review.show_image(contents, item)
        return updates | {self.page.top.message: report_card(report)}

    def _mark(self, data: Data, reviewed: Callable[[ImageItem], bool], *, show_next: bool) -> Updates:
        self.page.save_pending_caption(data)
        contents = self.page.contents(data)
        item = contents.item(data[self.review.current])
        if item.info is None:
            raise InputError(
                f"{item.name} has not been scanned yet.", "Wait for the scan, or scan in Curate.", code="not_scanned"
            )
        if reviewed(item):
            manifest = contents.manifest.with_reviewed([(item.info.sha256, item.caption)])
        else:
            manifest = contents.manifest.without_reviewed([item.info.sha256])
        manifest.save_marks(contents.project.path)
        contents = contents.after_change()
        item = contents.item(item.id)
        if show_next:
            item = neighbour(contents, item.id, self.page.selection(contents, data), 1) or item
        return self.page.show_image(contents, item, data)
